"""Fixed-point arithmetic against exact rational numbers, and against values that LiteRT's sources state."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_qplugin.core import fixed_point, interpolated

REALS = st.floats(2.0**-30, 2.0**6)
WIDE = st.integers(-(2**47), 2**47 - 1)
CODES = np.arange(-32768, 32768, dtype="int64")
SCALES = st.floats(2.0**-20, 2.0**-4)


def logistic(real: np.ndarray) -> np.ndarray:
    return 16384 * (1 + np.tanh(real / 2))


def half_up(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def half_away(value: Fraction) -> int:
    return half_up(value) if value >= 0 else -half_up(-value)


@given(REALS)
def test_multipliers_have_31_bits(real: float) -> None:
    fixed, exponent = fixed_point.quantize_multiplier(real)
    assert 2**30 <= fixed < 2**31
    assert abs(Fraction(fixed) * Fraction(2) ** (exponent - 31) - Fraction(real)) <= Fraction(real) / 2**31


@pytest.mark.parametrize(
    ("real", "multiplier"),
    [(1.0, (2**30, 1)), (0.5, (2**30, 0)), (0.0, (0, 0)), (2.0**-33, (0, 0)), (1 - 2.0**-40, (2**30, 1))],
)
def test_multipliers_at_the_edges(real: float, multiplier: tuple[int, int]) -> None:
    assert fixed_point.quantize_multiplier(real) == multiplier


@given(st.integers(-(2**24), 2**24), REALS)
def test_two_roundings(x: int, real: float) -> None:
    fixed, exponent = multiplier = fixed_point.quantize_multiplier(real)
    once = half_up(Fraction(x * 2 ** max(exponent, 0) * fixed, 2**31))
    wanted = half_away(Fraction(once, 2 ** max(-exponent, 0)))
    assert fixed_point.multiply(np.array([x]), multiplier).item() == wanted


@given(WIDE, REALS)
def test_one_rounding(x: int, real: float) -> None:
    fixed, exponent = fixed_point.quantize_multiplier(real)
    factor = min((fixed + 2**15) >> 16, 32767)
    wanted = half_up(Fraction(x * factor) * Fraction(2) ** (exponent - 15))
    found = fixed_point.multiply_reduced(np.array([x]), *fixed_point.reduced_factors(real)).item()
    assert found == (wanted + 2**31) % 2**32 - 2**31


def test_factors_keep_their_shape_and_have_a_limit() -> None:
    factor, shift = fixed_point.reduced_factors(np.array([0.5, 127.9, 2.0**-40]))
    assert factor.dtype == shift.dtype == "int32" and factor.shape == shift.shape == (3,)
    assert factor[2] == 0
    with pytest.raises(ValueError, match="LiteRT computes with less than 128"):
        fixed_point.reduced_factors(np.array([0.5, 128.0]))


@given(REALS, st.integers(1, 2**16))
def test_means_fold_the_count_in(real: float, count: int) -> None:
    multiplier = fixed_point.quantize_multiplier(real)
    fixed, exponent = fixed_point.mean_multiplier(multiplier, count)
    assert exponent >= -31 and 0 <= fixed < 2**31
    exact = Fraction(multiplier[0], count) * Fraction(2) ** multiplier[1]
    assert 0 <= exact - fixed * Fraction(2) ** exponent < Fraction(2) ** exponent


def test_rounding() -> None:
    values = np.array([-6, -5, -3, -2, 2, 3, 5, 6])
    assert fixed_point.divide_by_power(values, 2).tolist() == [-2, -1, -1, -1, 1, 1, 1, 2]
    assert fixed_point.half_sum(values, 0).tolist() == [-3, -3, -2, -1, 1, 2, 3, 3]
    assert fixed_point.round_away(np.float32([-2.5, -0.5, 0.49, 1.5])).tolist() == [-3, -1, 0, 2]
    assert fixed_point.round_away(np.float64([0.49999999999999994, 2.0**52 + 1])).tolist() == [0, 2**52 + 1]
    assert fixed_point.high_product(np.array([-32768]), -32768).tolist() == [32767]


def test_the_logistic_table() -> None:
    table = interpolated.sigmoid_table()
    exact = 65536 / (1 + np.exp(np.arange(256) / -24))
    assert table[:4].tolist() == [32768, 33451, 34133, 34813] and table[255] == 65535
    assert (np.abs(table - exact) <= 1.5).all() and (np.diff(table) >= 0).all()


@settings(deadline=None, derandomize=True, max_examples=30)
@given(SCALES)
def test_interpolated_functions_are_close(scale: float) -> None:
    real = CODES * np.float64(np.float32(scale))
    near = np.abs(interpolated.logistic(CODES, scale) - logistic(real))
    assert near.max() < 12
    assert np.abs(interpolated.tanh(CODES, scale) - 32768 * np.tanh(real)).max() < 24


@pytest.mark.parametrize("integer_bits", range(7))
def test_gemmlowps_functions_are_close(integer_bits: int) -> None:
    real = CODES * 2.0 ** (integer_bits - 15)
    wanted = np.clip(32768 * np.tanh(real), -32768, 32767)
    assert np.abs(interpolated.fixed_tanh(CODES, integer_bits) - wanted).max() < 16
    if integer_bits == 3:
        assert np.abs(interpolated.fixed_logistic(CODES) - logistic(real)).max() < 8


def test_powers_of_two_are_gemmlowps() -> None:
    np.testing.assert_array_equal(interpolated.tanh(CODES, 2.0**-12), interpolated.fixed_tanh(CODES))
    np.testing.assert_array_equal(interpolated.tanh(CODES, 2.0**-11), interpolated.fixed_tanh(CODES, 4))
    np.testing.assert_array_equal(interpolated.logistic(CODES, 2.0**-12), interpolated.fixed_logistic(CODES))


def test_interpolation() -> None:
    table = interpolated.interpolation_table(lambda x: x, -32768.0, 32767.0, 1.0)
    assert table.dtype == "int16" and table.shape == (513,)
    assert np.abs(interpolated.interpolate(CODES, table) - CODES).max() <= 1
    exponential, reciprocal = interpolated.softmax_tables()
    assert (exponential[0], exponential[512]) == (2, 32767)
    assert (reciprocal[0], reciprocal[512]) == (32767, 16384)
