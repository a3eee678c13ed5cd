"""``core/fixed_point.py`` and ``core/interpolated.py`` as scalar expressions."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from tvm_qplugin.core.attrs import Params
from tvm_qplugin.kernels.arith import Expr, clamp


def i32(value: int) -> Expr:
    """An int32 constant."""
    return tirx.const(value, "int32")


def i64(value: int) -> Expr:
    """An int64 constant."""
    return tirx.const(value, "int64")


def multiply(x: Expr, multiplier: Sequence[int]) -> Expr:
    """An int32 or int64 expression times ``(fixed, exponent)``, in int64: two roundings."""
    fixed, exponent = multiplier
    value = x.astype("int64")
    if exponent > 0:
        value = (value << i64(exponent)).astype("int32").astype("int64")
    return divide_by_power((value * i64(fixed) + i64(1 << 30)) >> i64(31), max(-exponent, 0))


def divide_by_power(value: Expr, exponent: int) -> Expr:
    """``value / 2 ** exponent`` of an int64, half away from zero."""
    if exponent == 0:
        return value
    return (value + (i64((1 << exponent) >> 1) + (value >> i64(63)))) >> i64(exponent)


def multiply_reduced(x: Expr, factor: Expr, shift: Expr) -> Expr:
    """An int64 sum times a factor of 15 bits, one rounding, in int32."""
    bits = shift.astype("int64")
    return ((x * factor.astype("int64") + (i64(1) << (bits - i64(1)))) >> bits).astype("int32")


def round_away(x: Expr) -> Expr:
    """A float64 to the nearest integer, half away from zero."""
    half, whole = tirx.const(0.5, "float64"), tirx.trunc(x)
    part = x - whole
    up, down = (part >= half).astype("float64"), (part <= -half).astype("float64")
    return whole + up - down


def interpolate(x: Expr, table: te.Tensor) -> Expr:
    """An int32 code in an int16 table of 513 entries, in int32."""
    index = (x >> i32(7)) + i32(256)
    left = table(index).astype("int32")
    return left + (((table(index + i32(1)).astype("int32") - left) * (x & i32(127)) + i32(64)) >> i32(7))


def clipped(value: Expr, p: Params, dtype: str) -> Expr:
    """A distance to the zero point as a code between ``lo`` and ``hi``."""
    kind, zero = str(value.ty.dtype), int(p["out_zp"])
    lo, hi = (tirx.const(p[key] - zero, kind) for key in ("lo", "hi"))
    return (clamp(value, lo, hi) + tirx.const(zero, kind)).astype(dtype)
