from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.qparams import Array, add_params
from tvm_qplugin.kernels import output_shape
from tvm_qplugin.schedules.cpu_conv import rule

Verify = Callable[..., None]
Codes = Callable[..., Array]
QUICK = settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
DTYPES = st.sampled_from(["int8", "uint8"])
SEEDS = st.integers(0, 2**16)


def bounds(dtype: str, narrow: bool = False) -> dict[str, int]:
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    return {"lo": low + 40 * narrow, "hi": high - 30 * narrow}


def zero_point(dtype: str, seed: int) -> int:
    low = -128 if dtype == "int8" else 0
    return low + seed * 37 % 256


def constants(seed: int, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, shape).astype("int8")
    bias = rng.integers(-5000, 5001, shape[0]).astype("int32")
    size = 127.0 * 127 * float(np.sqrt(np.prod(shape[1:])))
    return weight, bias, rng.uniform(20 / size, 200 / size, shape[0]).astype("float32")


def window(dtype: str, seed: int, groups: int = 1) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    return {
        "strides": [int(s) for s in rng.integers(1, 3, 2)],
        "padding": [int(s) for s in rng.integers(0, 3, 4)],
        "dilation": [int(s) for s in rng.integers(1, 3, 2)],
        "groups": groups,
        "in_zp": zero_point(dtype, seed),
        "out_zp": zero_point(dtype, seed + 1),
        **bounds(dtype, seed % 2 == 0),
    }


@QUICK
@given(DTYPES, SEEDS, st.integers(1, 9), st.sampled_from([1, 8, 21, 32]), st.integers(1, 3))
def test_dense_channels(
    verify: Verify, verify_rule: Verify, codes: Codes, dtype: str, seed: int, c: int, o: int, k: int
) -> None:
    arrays = codes(seed, (1, 9, 8 + seed % 6, c), dtype), *constants(seed, (o, k, 3, c))
    verify("qconv2d", window(dtype, seed), *arrays, dtype=dtype)
    verify_rule(rule, "qconv2d", window(dtype, seed), *arrays, dtype=dtype)


@QUICK
@given(DTYPES, SEEDS, st.sampled_from([(8, 8, 8), (21, 21, 21), (4, 4, 8), (2, 6, 4), (40, 40, 40)]))
def test_groups(
    verify: Verify, verify_rule: Verify, codes: Codes, dtype: str, seed: int, sizes: tuple[int, int, int]
) -> None:
    groups, c, o = sizes
    arrays = codes(seed, (1, 9, 11, c), dtype), *constants(seed, (o, 3, 3, c // groups))
    verify("qconv2d", window(dtype, seed, groups), *arrays, dtype=dtype)
    verify_rule(rule, "qconv2d", window(dtype, seed, groups), *arrays, dtype=dtype)


def test_widths_without_divisors(verify_rule: Verify, codes: Codes) -> None:
    params = {**window("uint8", 2), "strides": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1]}
    verify_rule(
        rule, "qconv2d", params, codes(0, (2, 4, 37, 8), "uint8"), *constants(0, (24, 3, 3, 8)), dtype="uint8"
    )


def test_extreme_codes(verify: Verify, verify_rule: Verify) -> None:
    x, w = np.full((1, 3, 3, 64), 255, "uint8"), np.full((16, 3, 3, 64), -127, "int8")
    params = {**window("uint8", 2), "strides": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "in_zp": 0}
    arrays = x, w, np.zeros(16, "int32"), np.full(16, -1e-5, "float32")
    verify("qconv2d", params, *arrays, dtype="uint8")
    verify_rule(rule, "qconv2d", params, *arrays, dtype="uint8")


@QUICK
@given(DTYPES, SEEDS, st.booleans())
def test_with_an_addition(verify: Verify, codes: Codes, dtype: str, seed: int, subtract: bool) -> None:
    """The convolution clamps to its own bounds before the sum is made."""
    a_mul, b_mul, shift = add_params(0.1, 0.05, 0.07)
    zero_points = {f"{name}_zp": zero_point(dtype, seed + i) for i, name in enumerate(("a", "b", "out"))}
    add = {"a_mul": a_mul, "b_mul": -b_mul if subtract else b_mul, "shift": shift}
    params = {**window(dtype, seed), "add": {**add, **zero_points, **bounds(dtype, seed % 3 == 0)}}
    arrays = codes(seed, (1, 9, 8, 5), dtype), *constants(seed, (21, 3, 3, 5))
    shape = output_shape("qconv2d_add", params, [a.shape for a in arrays])
    verify("qconv2d_add", params, *arrays, codes(seed + 1, shape, dtype), dtype=dtype)


@QUICK
@given(DTYPES, SEEDS, st.sampled_from([1, 8, 21, 32]))
def test_results_in_int16(
    verify: Verify, verify_rule: Verify, codes: Codes, dtype: str, seed: int, o: int
) -> None:
    weight, bias, factor = constants(seed, (o, 3, 3, 4))
    arrays = codes(seed, (1, 9, 8, 4), dtype), weight, bias, np.float32(300) * factor
    params = {**window(dtype, seed), "out_zp": 0, "lo": -32768, "hi": 32767}
    verify("qconv2d", params, *arrays, dtype="int16")
    verify_rule(rule, "qconv2d", params, *arrays, dtype="int16")
