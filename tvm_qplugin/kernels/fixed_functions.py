"""gemmlowp's logistic and hyperbolic tangent of ``core/interpolated.py`` as scalar statements in int64.

Every function must be called inside of a ``tvm.script.ir_builder`` frame: it stores what it uses twice.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder

from tvm_qplugin.core.fixed_point import round_away
from tvm_qplugin.kernels.arith import Expr, clamp
from tvm_qplugin.kernels.fixed_point import divide_by_power, i32, i64

T: Any = builder


def keep(value: Expr) -> Expr:
    """The value in a variable of its own: simplification would see through a binding and never end."""
    held = T.alloc_buffer((1,), str(value.ty.dtype), scope="local")
    T.buffer_store(held, value, [i32(0)])
    return held[0]


def saturate(value: Expr) -> Expr:
    """Clipped to int16."""
    return clamp(value, i64(-(2**15)), i64(2**15 - 1))


def high_product(a: Expr, b: Expr) -> Expr:
    """The upper half of the doubled 16-bit product, half away from zero."""
    product = keep(a * b)
    nudge = tirx.Select(product >= i64(0), i64(1 << 14), i64(1 - (1 << 14)))
    return keep(tirx.min(tirx.truncdiv(product + nudge, i64(1 << 15)), i64(2**15 - 1)))


def fixed_logistic(x: Expr) -> Expr:
    """Q3.12 to Q0.15."""
    value = keep(saturate(_reciprocal(_exponential(_negative(x), 3)) << i64(1)))
    signed = tirx.Select(x > i64(0), value, i64(32767) - value)
    return keep(tirx.Select(x == i64(0), i64(1 << 14), signed))


def fixed_tanh(x: Expr, integer_bits: int = 3) -> Expr:
    """Q3.12, or other ``integer_bits``, to Q0.15."""
    exponential = _exponential(_negative(x), integer_bits + 1)
    value = keep(saturate((_reciprocal(exponential) - i64(1 << 13)) << i64(2)))
    signed = tirx.Select(x < i64(0), -value, value)
    return keep(tirx.Select(x == i64(0), i64(0), signed))


def _negative(x: Expr) -> Expr:
    return keep(tirx.min(x, -x))


def _exponential(x: Expr, integer_bits: int) -> Expr:
    """``exp`` of numbers up to 0 with ``integer_bits``, as Q0.15."""
    fraction = 15 - integer_bits
    quarter = 1 << (fraction - 2)
    near = keep((x & i64(quarter - 1)) - i64(quarter))
    result = _exponential_near_0(near << i64(integer_bits))
    for exponent in range(-2, min(integer_bits, 5)):
        factor = int(round_away(np.array([math.exp(-(2.0**exponent)) * 32768]))[0])
        passed = ((near - x) & i64(1 << (fraction + exponent))) != i64(0)
        result = keep(tirx.Select(passed, high_product(result, i64(factor)), result))
    if integer_bits > 5:
        result = tirx.Select(x < i64(-(1 << (fraction + 5))), i64(0), result)
    return keep(tirx.Select(x == i64(0), i64(32767), result))


def _exponential_near_0(x: Expr) -> Expr:
    """``exp`` on [-1/4, 0), Q0.15."""
    constant, third = i64(28918), i64(10923)
    y = keep(x + i64(1 << 12))
    square = high_product(y, y)
    fourth = keep(divide_by_power(high_product(square, square), 2))
    tail = keep(high_product(fourth + high_product(square, y), third) + square)
    return keep(saturate(constant + high_product(y + divide_by_power(tail, 1), constant)))


def _reciprocal(x: Expr) -> Expr:
    """``2 / (1 + x)`` on [0, 1] as Q2.13."""
    total = keep(x + i64(32767))
    half = keep(divide_by_power(total, 1))
    value = keep(i64(23130) + high_product(half, i64(-15420)))
    for _ in range(3):
        error = i64(1 << 13) - high_product(half, value)
        value = keep(value + saturate(high_product(value, error) << i64(2)))
    return value
