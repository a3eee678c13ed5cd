"""The kernels of int16x8 against the oracle, exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core import oracle16
from tvm_qplugin.core.fixed_point import quantize_multiplier, reduced_factors
from tvm_qplugin.core.interpolated import softmax_tables
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array

Verify = Callable[..., None]
Codes = Callable[..., Array]
QUICK = settings(
    max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
SEEDS = st.integers(0, 2**16)
SCALES = st.floats(2.0**-16, 2.0**-8)


def bounds(seed: int, dtype: str = "int16") -> dict[str, int]:
    low, high = INTEGER_RANGE[dtype]
    return {"out_zp": 0, "lo": 0 if seed % 3 == 0 else low, "hi": high - high // 3 * (seed % 2)}


def layer(seed: int, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Weight, bias and the real multipliers."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, shape).astype("int8")
    bias = rng.integers(-(2**33), 2**33, shape[0]).astype("int64")
    bias[: shape[0] // 2] //= 2**12
    size = 2.0**15 * 127 * float(np.sqrt(np.prod(shape[1:])))
    return weight, bias, rng.uniform(2.0**14 / size, 2.0**16 / size, shape[0])


def reduced(weight: Array, bias: Array, reals: Array) -> tuple[Array, ...]:
    return weight, bias, *reduced_factors(reals)


@QUICK
@given(SEEDS, st.integers(1, 9), st.sampled_from([1, 8, 21]), st.booleans())
def test_convolution(verify: Verify, codes: Codes, seed: int, c: int, o: int, wide: bool) -> None:
    rng = np.random.default_rng(seed)
    p = {name: [int(v) for v in rng.integers(1, 3, 2)] for name in ("strides", "dilation")}
    p["padding"] = [int(v) for v in rng.integers(0, 3, 4)]
    arrays = codes(seed, (1, 9, 8 + seed % 6, c), "int16"), *reduced(*layer(seed, (o, 3, 2, c)))
    verify("qconv2d16", {**p, "groups": 1, "wide": wide, **bounds(seed)}, *arrays, dtype="int16")


@QUICK
@given(SEEDS, st.sampled_from([(8, 8, 8), (21, 21, 21), (4, 4, 8), (2, 6, 4)]))
def test_groups(verify: Verify, codes: Codes, seed: int, sizes: tuple[int, int, int]) -> None:
    groups, c, o = sizes
    arrays = codes(seed, (1, 9, 11, c), "int16"), *reduced(*layer(seed, (o, 3, 3, c // groups)))
    p = {"strides": [1, 2], "padding": [1, 0, 2, 1], "dilation": [1, 1], "groups": groups, "wide": False}
    verify("qconv2d16", {**p, **bounds(seed)}, *arrays, dtype="int16")


@QUICK
@given(SEEDS, st.sampled_from([(1, 16, 24), (5, 40, 7), (2, 3, 1)]), st.booleans())
def test_dense(verify: Verify, codes: Codes, seed: int, sizes: tuple[int, int, int], wide: bool) -> None:
    rows, depth, outputs = sizes
    arrays = codes(seed, (rows, depth), "int16"), *layer(seed, (outputs, depth))
    verify("qdense16", {"wide": wide, **bounds(seed)}, *arrays, dtype="int16")


def test_sums_beyond_int32(verify: Verify) -> None:
    x, w = np.full((1, 2, 2, 1600), -32768, "int16"), np.full((8, 1, 1, 1600), 127, "int8")
    bias, reals = np.full(8, -(2**35), "int64"), np.geomspace(2.0**-40, 2.0**-22, 8)
    window = {"strides": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1, "wide": True}
    verify("qconv2d16", {**window, **bounds(1)}, x, w, bias, *reduced_factors(reals), dtype="int16")
    dense = x[0, 0], w[:, 0, 0], bias, reals
    verify("qdense16", {"wide": True, **bounds(1)}, *dense, dtype="int16")


@QUICK
@given(SEEDS, SCALES, SCALES, st.booleans())
def test_add(verify: Verify, codes: Codes, seed: int, s_a: float, s_b: float, subtract: bool) -> None:
    p = {**bounds(seed), **oracle16.add_multipliers(s_a, s_b, (s_a + s_b) / 1.5), "subtract": subtract}
    other = (1, 5, 7, 24) if seed % 2 else (24,)
    p["vectorized"] = [0, 840, 832][seed % 3] if seed % 2 else 0
    verify("qadd16", p, codes(seed, (1, 5, 7, 24), "int16"), codes(seed + 1, other, "int16"), dtype="int16")


@QUICK
@given(SEEDS, SCALES, SCALES)
def test_multiply(verify: Verify, codes: Codes, seed: int, s_a: float, s_b: float) -> None:
    p = {**bounds(seed), "multiplier": oracle16.mul_multiplier(s_a, s_b, s_a * s_b * 20_000)}
    other = (1, 5, 7, 24) if seed % 2 else (1, 1, 1, 24)
    verify("qmul16", p, codes(seed, (1, 5, 7, 24), "int16"), codes(seed + 1, other, "int16"), dtype="int16")


@QUICK
@given(SEEDS, st.floats(2.0**-9, 2.0**9), st.sampled_from(["int16", "int8", "uint8"]), st.booleans())
def test_requantize(verify: Verify, codes: Codes, seed: int, ratio: float, other: str, back: bool) -> None:
    source, target = ("int16", other) if back else (other, "int16")
    zero = {"int16": 0, "int8": -9, "uint8": 130}
    lo, hi = INTEGER_RANGE[target]
    p = {"in_zp": zero[source], "out_zp": zero[target], "lo": lo, "hi": hi}
    p["multiplier"] = quantize_multiplier(ratio)
    verify("requantize16", p, codes(seed, (3, 7, 16), source), dtype=target)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("window", [(2, 2), (3, 3), (9, 8)])
def test_pools(verify: Verify, codes: Codes, window: tuple[int, int], counted: bool) -> None:
    p = {"pool": list(window), "strides": [2, 1], "padding": [1, 0, 1, 1], "in_zp": 0, **bounds(2)}
    x = codes(0, (1, 9, 8, 20), "int16")
    verify("qavgpool2d", {**p, "count_include_pad": counted}, x, dtype="int16")
    verify("qmaxpool2d", {**p, "dilation": [1, 1]}, x, dtype="int16")


@pytest.mark.parametrize(
    ("axes", "keep"), [((1, 2), True), ((1, 2), False), ((3,), True), ((1, 2, 3), False)]
)
def test_mean(verify: Verify, codes: Codes, axes: tuple[int, ...], keep: bool) -> None:
    for seed, ratio in enumerate([1.0, 0.37, 3.3]):
        x = codes(seed, (1, 6, 5, 24), "int16")
        count = int(np.prod([x.shape[axis] for axis in axes]))
        p = {"axes": axes, "keepdims": keep, "multiplier": oracle16.mean_of(ratio, 1.0, count), **bounds(1)}
        verify("qmean16", p, x, dtype="int16")


@pytest.mark.parametrize(("shape", "axis"), [((5, 10), 1), ((2, 3, 12), 1), ((1, 1001), 1), ((7,), 0)])
def test_softmax(verify: Verify, codes: Codes, shape: tuple[int, ...], axis: int) -> None:
    for seed, scale in enumerate([2.0**-16, 2.0**-12, 0.01]):
        p = {"axis": axis, "multiplier": oracle16.softmax_multiplier(scale), **bounds(1)}
        verify(
            "qsoftmax16", {**p, "hi": 32767}, codes(seed, shape, "int16"), *softmax_tables(), dtype="int16"
        )


@pytest.mark.parametrize("size", [(14, 18), (3, 4), (1, 1)])
@pytest.mark.parametrize("coordinate", ["half_pixel", "asymmetric", "align_corners"])
def test_resize(verify: Verify, codes: Codes, coordinate: str, size: tuple[int, int]) -> None:
    x, p = codes(0, (1, 7, 9, 12), "int16"), {"size": list(size), "coordinate": coordinate}
    verify("qresize2d16", p, x, dtype="int16")
    verify("qresize2d", {**p, "method": "nearest", "rounding": "round_prefer_ceil"}, x, dtype="int16")


def test_what_int8_kernels_do_for_int16(verify: Verify, codes: Codes) -> None:
    x = codes(0, (1, 6, 5, 24), "int16")
    verify("qclamp", {"lo": -30_000, "hi": 1234}, x, dtype="int16")
    verify("qpad", {"pad_width": [0, 0, 1, 2, 0, 1, 0, 0], "value": 0}, x, dtype="int16")
    table = np.random.default_rng(0).integers(-32768, 32768, 65536).astype("int16")
    verify("qlut", {}, x, table, dtype="int16")
    verify("dequantize", {"in_zp": 0, "scale": 3e-4, "axes": [0, 3, 1, 2]}, x, dtype="float32")
    real = (x.astype("float32") * np.float32(1.01) + np.float32(0.5)) * np.float32(3e-4)
    p = {"out_zp": 0, "lo": -32768, "hi": 32767, "scale": 3e-4}
    verify("quantize", p, real, dtype="int16")
