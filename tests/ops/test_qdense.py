from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.qparams import Array
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


def test_equals_the_oracle_in_int16(verify: Verify, codes: Codes) -> None:
    params = {"in_zp": 7, "out_zp": 0, "lo": -30000, "hi": 32767}
    weight, bias, factor = constants(1, (9, 33))
    verify("qdense", params, codes(2, (3, 33), "uint8"), weight, bias, factor * 256, dtype="int16")


@QUICK
@given(
    DTYPES,
    SEEDS,
    st.sampled_from([(1,), (17,), (2, 3), (8,)]),
    st.integers(1, 70),
    st.sampled_from([1, 10, 64]),
)
def test_equals_the_oracle(
    verify: Verify,
    verify_rule: Verify,
    codes: Codes,
    dtype: str,
    seed: int,
    rows: tuple[int, ...],
    k: int,
    n: int,
) -> None:
    zero_points = {"in_zp": zero_point(dtype, seed), "out_zp": zero_point(dtype, seed + 1)}
    params = {**zero_points, **bounds(dtype, seed % 2 == 0)}
    arrays = codes(seed, (*rows, k), dtype), *constants(seed, (n, k))
    verify("qdense", params, *arrays, dtype=dtype)
    verify_rule(rule, "qdense", params, *arrays, dtype=dtype)


def test_large(verify: Verify, verify_rule: Verify, codes: Codes) -> None:
    params = {"in_zp": 120, "out_zp": 3, **bounds("uint8")}
    arrays = codes(0, (1, 513), "uint8"), *constants(0, (201, 513))
    verify("qdense", params, *arrays, dtype="uint8")
    verify_rule(rule, "qdense", params, *arrays, dtype="uint8")
