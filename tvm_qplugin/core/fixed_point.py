"""LiteRT's fixed-point arithmetic on integers: quantized multipliers, rounding shifts, saturation.

Sources: ``common.cc`` and ``quantization_util.cc`` of LiteRT, ``fixedpoint.h`` of gemmlowp. Arrays are int64,
whatever the C++ has; where that wraps to int32, so do these functions.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tvm_qplugin.core.qparams import Array

Multiplier = tuple[int, int]
"""``(fixed, exponent)``: the real number ``fixed * 2 ** (exponent - 31)``."""

LARGEST_EXPONENT = 7
"""Of the multiplier of a 64-bit sum; LiteRT's shifts are undefined beyond."""


def quantize_multiplier(real: float) -> Multiplier:
    """``real`` with a mantissa of 31 bits; 0 where it is below 2 ** -32 (``QuantizeMultiplier``)."""
    mantissa, exponent = math.frexp(real)
    fixed = int(math.copysign(math.floor(abs(mantissa) * (1 << 31) + 0.5), mantissa))
    if abs(fixed) == 1 << 31:
        fixed, exponent = fixed // 2, exponent + 1
    return (fixed, exponent) if exponent >= -31 else (0, 0)


def multiply(x: Array, multiplier: Multiplier) -> Array:
    """``MultiplyByQuantizedMultiplier(int32)``: half up after the product, half away after the shift."""
    fixed, exponent = multiplier
    shifted = wrap(x.astype("int64") << max(exponent, 0))
    return divide_by_power((shifted * fixed + (1 << 30)) >> 31, max(-exponent, 0))


def multiply_reduced(x: Array, factor: npt.ArrayLike, shift: npt.ArrayLike) -> Array:
    """``MultiplyByQuantizedMultiplier(int64)``: one rounding, half up, by ``reduced_factors``.

    ``x`` within 2 ** 47, else the product overflows as LiteRT's.
    """
    bits = np.asarray(shift, "int64")
    return wrap((x.astype("int64") * np.asarray(factor, "int64") + (np.int64(1) << (bits - 1))) >> bits)


def reduced_factors(reals: npt.ArrayLike) -> tuple[Array, Array]:
    """Factors of 15 bits and shifts for ``multiply_reduced``, int32 of the shape of ``reals``.

    ValueError where one is 2 ** 7 or more.
    """
    found = np.array([quantize_multiplier(float(real)) for real in np.ravel(reals)], "int64").reshape(-1, 2)
    if (found[:, 1] > LARGEST_EXPONENT).any():
        raise ValueError(f"a multiplier of {np.max(reals)}; LiteRT computes with less than 128")
    fixed, exponent = (column.reshape(np.shape(reals)) for column in found.T)
    return np.minimum((fixed + (1 << 15)) >> 16, 2**15 - 1).astype("int32"), (15 - exponent).astype("int32")


def mean_multiplier(multiplier: Multiplier, count: int) -> Multiplier:
    """The multiplier with ``1 / count`` folded in, as MEAN does it."""
    fixed, exponent = multiplier
    shift = min(count.bit_length() - 1, 32, 31 + exponent)
    return (fixed << shift) // count, exponent - shift


def divide_by_power(value: Array, exponent: int) -> Array:
    """``value / 2 ** exponent``, half away from zero (``RoundingDivideByPOT``)."""
    half = (1 << exponent) >> 1
    return np.asarray(np.sign(value) * ((np.abs(value) + half) >> exponent))


def high_product(a: Array, b: Array | int) -> Array:
    """The upper half of the doubled 16-bit product, half away (``SaturatingRoundingDoublingHighMul``)."""
    product = a * b
    nudged = product + np.where(product >= 0, 1 << 14, 1 - (1 << 14))
    return np.minimum(np.sign(nudged) * (np.abs(nudged) >> 15), 2**15 - 1)


def half_sum(a: Array, b: Array | int) -> Array:
    """``(a + b) / 2``, half away from zero (``RoundingHalfSum``)."""
    return divide_by_power(a + b, 1)


def saturate(value: Array) -> Array:
    """Clipped to int16."""
    return np.clip(value, -(2**15), 2**15 - 1)


def wrap(value: Array) -> Array:
    """What a cast to int32 leaves."""
    return np.asarray(value.astype("int32").astype("int64"))


def round_away(x: Array) -> Array:
    """To the nearest integer, half away from zero, in the precision of ``x`` (``TfLiteRound``)."""
    whole = np.trunc(x)
    return np.asarray(whole + np.copysign(np.abs(x - whole) >= 0.5, x).astype(x.dtype))
