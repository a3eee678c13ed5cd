"""LiteRT's arithmetic: what does not need LiteRT to be checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_qplugin.core import lite, oracle
from tvm_qplugin.core.qparams import QuantParams, clamp_bounds, mean_factor, rescale_multiplier

SCALES = st.floats(1e-4, 1.0)
ZEROS = st.integers(-128, 127)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(SCALES, SCALES, ZEROS, ZEROS, st.integers(0, 999))
def test_storage_as_uint8_changes_nothing(s_in: float, s_out: float, a: int, c: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-128, 128, (1, 6, 5, 3))
    factor = mean_factor(s_in, s_out, 30)
    kernels: list[tuple[Any, dict[str, Any]]] = [
        (oracle.qmean, {"axes": (1, 2), "keepdims": True, "multiplier": factor, "out_zp": c}),
        (oracle.requantize_tensor, {"multiplier": 77, "out_zp": c}),
    ]
    window = {"pool": (2, 3), "strides": (1, 1), "padding": (1, 0, 0, 1), "out_zp": a}
    kernels += [(oracle.qavgpool2d, {**window, "count_include_pad": pads}) for pads in (False, True)]
    for kernel, p in kernels:
        signed = kernel({**p, "in_zp": a, "lo": -100, "hi": 127}, x.astype("int8"), "int8")
        moved = {"in_zp": a + 128, "out_zp": p["out_zp"] + 128, "lo": 28, "hi": 255}
        unsigned = kernel({**p, **moved}, (x + 128).astype("uint8"), "uint8")
        np.testing.assert_array_equal(unsigned.astype("int32") - 128, signed)


@given(SCALES, ZEROS, st.floats(-8, 8), st.booleans())
def test_bounds_as_uint8(scale: float, zero: int, bound: float, builtin: bool) -> None:
    signed = clamp_bounds(QuantParams.of(scale, zero), bound, bound, builtin)
    unsigned = clamp_bounds(QuantParams.of(scale, zero + 128, "uint8"), bound, bound, builtin)
    assert [code - 128 for code in unsigned] == list(signed)


@pytest.mark.parametrize(("ratio", "multiplier"), [(1, 256), (2.0**-8, 1), (128, 2**15), (0.0039, None)])
def test_conversions_that_xnnpack_takes(ratio: float, multiplier: int | None) -> None:
    assert rescale_multiplier(ratio, 1.0) == multiplier


@given(SCALES, SCALES, ZEROS, ZEROS)
def test_tables_are_within_a_step_of_the_real_function(s_in: float, s_out: float, a: int, c: int) -> None:
    source, target = QuantParams.of(s_in, a), QuantParams.of(s_out, c)
    real = source.dequantize(np.arange(-128, 128)).astype("float64")
    wanted = target.quantize(real).astype("int32")
    room = 1 + np.abs(real / target.scale) / max(1.0, 256 * s_in / s_out)
    assert (np.abs(lite.requantized(source, target) - wanted) <= room).all()
    assert (np.abs(lite.clipped(None, None, source, target) - wanted) <= 1).all()


def test_hard_swish_refuses_an_output_much_finer_than_its_input() -> None:
    assert lite.hard_swish(QuantParams.of(1.0), QuantParams.of(1 / 512)) is None
