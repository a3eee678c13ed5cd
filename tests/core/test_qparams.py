"""Properties of the reference arithmetic, against exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_qplugin.core.qparams import INTEGER_RANGE, QuantParams, add_params, clamp_bounds, requantize

SMALL = ("int8", "uint8", "int16")
WIDTH = st.floats(2.0**-13, 2.0**13, width=32)
BOUND = st.floats(-1e4, 1e4, width=32)


def _round(value: Fraction) -> int:
    return round(value)


@st.composite
def params(draw):
    dtype = draw(st.sampled_from(SMALL))
    return QuantParams.of(draw(WIDTH), draw(st.integers(*INTEGER_RANGE[dtype])), dtype)


@given(params())
def test_every_code_survives_a_round_trip(p):
    lo, hi = INTEGER_RANGE[p.dtype]
    codes = np.arange(lo, hi + 1).astype(p.dtype)
    assert (p.quantize(p.dequantize(codes)) == codes).all()


@given(params(), st.floats(-1e6, 1e6, width=32))
def test_quantize_is_the_nearest_code(p, x):
    lo, hi = INTEGER_RANGE[p.dtype]
    scaled = Fraction(float(np.float32(x) / p.scale))
    assert int(p.quantize(np.float32(x))) == min(max(_round(scaled) + int(p.zero_point), lo), hi)


@given(params())
def test_json_round_trip(p):
    assert QuantParams.from_json(p.to_json()).same(p)


@given(BOUND, BOUND, st.sampled_from(SMALL), st.booleans(), st.booleans())
def test_a_range_contains_zero_exactly(a, b, dtype, symmetric, narrow):
    p = QuantParams.from_range(min(a, b), max(a, b), dtype, symmetric=symmetric, narrow=narrow)
    assert p.fake_quant(np.float32(0)) == 0


@given(BOUND, BOUND, st.sampled_from(SMALL))
def test_a_range_is_covered_to_half_a_step(a, b, dtype):
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    p = QuantParams.from_range(low, high, dtype)
    step = float(p.scale) * (0.5 + 1e-2)
    for x in (low, high):
        assert abs(float(p.fake_quant(np.float32(x))) - x) <= step


@given(WIDTH, WIDTH)
def test_symmetric_narrow_int8(a, b):
    p = QuantParams.from_range(-a, b, symmetric=True, narrow=True)
    assert p.zero_point == 0 and float(p.scale) == pytest.approx(max(a, b) / 127, rel=1e-6)


def test_per_channel_along_an_axis():
    p = QuantParams.from_range([-1, -2], [1, 4], symmetric=True, narrow=True, axis=1)
    x = np.float32([[1, 4], [-1, -2]])
    assert (p.quantize(x) == [[127, 127], [-127, -64]]).all()


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.floats(2.0**-40, 1.0, width=32),
    st.integers(-128, 127),
)
def test_requantize_against_rationals(acc, factor, zero_point):
    product = np.float32(np.int32(acc)) * np.float32(factor)
    exact = Fraction(float(np.float32(acc))) * Fraction(factor)
    assert abs(Fraction(float(product)) - exact) <= abs(exact) * Fraction(1, 2**24) + Fraction(1, 2**149)
    expected = min(max(_round(Fraction(float(product))) + zero_point, -128), 127)
    assert int(requantize(np.int32(acc), factor, zero_point, -128, 127)) == expected


@given(st.integers(-(2**23), 2**23), st.integers(0, 30), st.integers(-128, 127))
def test_requantize_by_a_power_of_two_is_exact(acc, shift, zero_point):
    expected = min(max(_round(Fraction(acc, 2**shift)) + zero_point, -128), 127)
    assert int(requantize(np.int32(acc), 2.0**-shift, zero_point, -128, 127)) == expected


@given(WIDTH, WIDTH, WIDTH)
def test_add_params_are_the_ratios(a, b, out):
    ratios = [float(np.float32(s) / np.float32(out)) for s in (a, b)]
    if max(ratios) >= 2.0**8 or max(ratios) < 2.0**-10:
        return
    *multipliers, shift = add_params(a, b, out)
    assert 2**20 <= max(multipliers) <= 2**21 and 12 < shift < 31
    for multiplier, ratio in zip(multipliers, ratios, strict=True):
        assert abs(Fraction(multiplier) - Fraction(ratio) * 2**shift) <= Fraction(1, 2)


@given(params(), BOUND, BOUND)
def test_clamp_bounds_are_ordered(p, a, b):
    lo, hi = clamp_bounds(p, min(a, b), max(a, b))
    assert INTEGER_RANGE[p.dtype][0] <= lo <= hi <= INTEGER_RANGE[p.dtype][1]
