"""LiteRT's functions of int16 tensors: interpolated tables, and gemmlowp's logistic and tanh.

Sources: ``LUTPopulate``, ``LUTLookup``, ``logistic.h`` and ``tanh.h`` of LiteRT, ``fixedpoint.h`` of
gemmlowp. Codes are int64 arrays in the range of int16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tvm_qplugin.core.fixed_point import divide_by_power, half_sum, high_product, round_away, saturate
from tvm_qplugin.core.qparams import Array

SEGMENTS = 512
UNIT = 2.0**-15
"""The scale of what lies in [-1, 1): outputs of logistic, tanh and softmax."""
Q3_12 = 2.0**-12
"""The scale of inputs in [-8, 8), which gemmlowp's functions take."""

_ABOVE = (
    "4 8 12 14 15 16 17 19 20 21 22 25 27 28 29 30 31 33 34 35 37 39 40 41 43 44 45 46 49 50 54 62 63 64 66 "
    "82 86 93 100 103 112 116 135 255"
)
"""Entries of LiteRT's table of the logistic function that lie 1 above the rounded value."""


@cache
def sigmoid_table() -> Array:
    """``65536 * logistic(i / 24)`` for ``i`` in 0..255, as LiteRT has it (measured through TANH)."""
    table = np.floor(65536 / (1 + np.exp(np.arange(256) / -24)) + 0.5).astype("int64")
    table[[int(index) for index in _ABOVE.split()]] += 1
    return table


def logistic(x: Array, scale: float) -> Array:
    """LOGISTIC of codes on ``scale`` (zero point 0), on the scale 2 ** -15."""
    if scale == Q3_12:
        return fixed_logistic(x)
    distance, left, right, part = _neighbours(x, scale, 9)
    inside = np.where(np.abs(distance) >> 9 >= 255, 0x7FFF << 10, (left << 9) + part * (right - left))
    return np.where(distance >= 0, inside + (1 << 9), (1 << 25) - inside + (1 << 9) - 1) >> 10


def tanh(x: Array, scale: float) -> Array:
    """TANH of codes on ``scale`` (zero point 0), on the scale 2 ** -15."""
    if scale in (Q3_12, 2 * Q3_12):
        return fixed_tanh(saturate(x << 1) if scale != Q3_12 else x)
    distance, left, right, part = _neighbours(x, scale, 8)
    inside = np.where(np.abs(distance) >> 8 >= 255, 0xFFFF << 8, (left << 8) + part * (right - left))
    return np.where(distance >= 0, inside - (1 << 23) + 128, -inside + (1 << 23) + 127) >> 8


def _neighbours(x: Array, scale: float, bits: int) -> tuple[Array, Array, Array, Array]:
    """The input in 1 / 12288 of a unit, the table's entries around its magnitude, the position between."""
    factor, shift = distance_factor(scale)
    distance = (x.astype("int64") * factor + ((1 << shift) >> 1)) >> shift
    size, table = np.abs(distance), sigmoid_table()
    index = np.minimum(size >> bits, 254)
    return distance, table[index], table[index + 1], size & ((1 << bits) - 1)


def distance_factor(scale: float) -> tuple[int, int]:
    """What codes on ``scale`` are multiplied and shifted by to count 1 / 12288 of a unit."""
    real, shift = float(np.float32(scale)) * 3 * 4096, 0
    while real <= 32767 / 2 and shift <= 30:
        real, shift = 2 * real, shift + 1
    return int(real), shift


def interpolation_table(
    function: Callable[[Array], Array], low: float, high: float, unit: float, dtype: Any = np.float32
) -> Array:
    """513 values of ``function`` on ``[low, high]`` in ``unit``, each moved by half the error amid a segment.

    Computed in ``dtype`` step by step, as ``LUTPopulate``. ``function`` takes and gives float64; its results
    are rounded to ``dtype``. int16.
    """
    step = (dtype(high) - dtype(low)) / dtype(SEGMENTS)
    at = dtype(low) + np.arange(SEGMENTS).astype(dtype) * step
    after = dtype(low) + np.arange(1, SEGMENTS + 1).astype(dtype) * step
    inverse = dtype(65536) / (dtype(unit) * dtype(32767) - dtype(unit) * dtype(-32768))

    def scaled(x: Array) -> Array:
        return np.asarray(function(x.astype("float64")).astype(dtype) * inverse)

    middle = round_away((scaled(after) + round_away(scaled(at))) / dtype(2))
    bias = round_away((middle - round_away(scaled(at + step / dtype(2)))) / dtype(2))
    last = round_away(scaled(np.array([high], dtype)))
    return np.clip(np.append(round_away(scaled(at)) - bias, last), -32768, 32767).astype("int16")


def interpolate(x: Array, table: Array) -> Array:
    """``LUTLookup``: the segment of the upper 9 bits, the position in it by the lower 7, half up."""
    index, part = 256 + (x >> 7), x & 127
    left = table.astype("int64")[index]
    return left + (((table.astype("int64")[index + 1] - left) * part + 64) >> 7)


@cache
def softmax_tables() -> tuple[Array, Array]:
    """``exp`` on [-10, 0] and ``1 / (1 + x)`` on [0, 1], both on the scale 2 / 65535, int16 [513] each."""
    unit, step = 2.0 / 65535.0, 10.0 / 65535.0
    exponential = interpolation_table(np.exp, step * -65535, step * 0, unit, np.float64)
    step = 1.0 / 65535.0
    reciprocal = interpolation_table(lambda x: 1 / (1 + x), step * 0, step * 65535, unit, np.float64)
    return exponential, reciprocal


def fixed_logistic(x: Array) -> Array:
    """gemmlowp's logistic: Q3.12 to Q0.15."""
    value = saturate(_reciprocal(_exponential(-np.abs(x), 3)) << 1)
    return np.where(x == 0, 1 << 14, np.where(x > 0, value, 32767 - value))


def fixed_tanh(x: Array, integer_bits: int = 3) -> Array:
    """gemmlowp's tanh: Q3.12 (or other ``integer_bits``) to Q0.15."""
    value = saturate((_reciprocal(_exponential(-np.abs(x), integer_bits + 1)) - (1 << 13)) << 2)
    return np.where(x == 0, 0, np.where(x < 0, -value, value))


def _exponential(x: Array, integer_bits: int) -> Array:
    """``exp`` of numbers up to 0 with ``integer_bits``, as Q0.15."""
    fraction = 15 - integer_bits
    quarter = 1 << (fraction - 2)
    near = (x & (quarter - 1)) - quarter
    result = _exponential_near_0(near << integer_bits)
    for exponent in range(-2, min(integer_bits, 5)):
        factor = int(round_away(np.array([math.exp(-(2.0**exponent)) * 32768]))[0])
        passed = ((near - x) & (1 << (fraction + exponent))) != 0
        result = np.where(passed, high_product(result, factor), result)
    if integer_bits > 5:
        result = np.where(x < -(1 << (fraction + 5)), 0, result)
    return np.where(x == 0, 32767, result)


def _exponential_near_0(x: Array) -> Array:
    """``exp`` on [-1/4, 0), Q0.15: the Taylor series around -1/8 up to the fourth power."""
    constant, third = 28918, 10923
    y = x + (1 << 12)
    square = high_product(y, y)
    fourth = divide_by_power(high_product(square, square), 2)
    tail = divide_by_power(high_product(fourth + high_product(square, y), third) + square, 1)
    return saturate(constant + high_product(y + tail, constant))


def _reciprocal(x: Array) -> Array:
    """``2 / (1 + x)`` on [0, 1] as Q2.13: three steps of Newton's method."""
    half = half_sum(x, 32767)
    value = 23130 + high_product(half, -15420)
    for _ in range(3):
        value = value + saturate(high_product(value, (1 << 13) - high_product(half, value)) << 2)
    return value
