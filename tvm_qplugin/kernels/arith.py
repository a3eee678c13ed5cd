"""Integer arithmetic shared by the definitions: widening, requantization, clamping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from tvm import te, tirx

from tvm_qplugin.core.attrs import Params
from tvm_qplugin.core.qparams import INTEGER_RANGE

Expr: TypeAlias = Any  # a scalar expression: TVM 0.27 has no public class that covers all of them


def f32(value: float) -> Expr:
    """A float32 constant."""
    return tirx.const(float(np.float32(value)), "float32")


def single(value: Expr, native: bool = True) -> Expr:
    """A finite float16 (or float32) as float32; ``native``: the target has an instruction for that.

    Without one the bits are moved into place: float16's exponents are 112 smaller than float32's.
    """
    value = value.asobject() if isinstance(value, te.TensorSlice) else value
    if native or str(value.ty.dtype) != "float16":
        return value.astype("float32")
    bits = tirx.reinterpret("uint16", value).astype("uint32")
    magnitude = tirx.bitwise_and(bits, tirx.const(0x7FFF, "uint32")) << tirx.const(13, "uint32")
    sign = tirx.bitwise_and(bits, tirx.const(0x8000, "uint32")) << tirx.const(16, "uint32")
    scaled = tirx.reinterpret("uint32", tirx.reinterpret("float32", magnitude) * f32(2.0**112))
    return tirx.reinterpret("float32", tirx.bitwise_or(scaled, sign))


def wide(value: Expr, zero_point: int = 0) -> Expr:
    """``int32(value) - zero_point``."""
    cast = value.astype("int32")
    return cast - tirx.const(zero_point, "int32") if zero_point else cast


def clamp(value: Expr, lo: Expr, hi: Expr) -> Expr:
    """``value`` between ``lo`` and ``hi``."""
    return tirx.max(tirx.min(value, hi), lo)


def limits(p: Params, dtype: str) -> tuple[Expr, Expr]:
    """The clamp of an output, within what ``dtype`` can hold."""
    low, high = INTEGER_RANGE[dtype]
    return tirx.const(max(p["lo"], low), dtype), tirx.const(min(p["hi"], high), dtype)


def round_clamped(scaled: Expr, p: Params, dtype: str) -> Expr:
    """``clip(rint(scaled) + out_zp, lo, hi)``; the clamp comes first so that no cast overflows."""
    zero_point = int(p["out_zp"])
    bounds = [tirx.const(p[k] - zero_point, str(scaled.ty.dtype)) for k in ("lo", "hi")]
    bounded = clamp(scaled, bounds[0], bounds[1])
    rounded = tirx.nearbyint(bounded).astype("int32")
    return (rounded + tirx.const(zero_point, "int32")).astype(dtype)


def separate(product: Expr) -> Expr:
    """A float32 product that the compiler must not contract with an addition; bounded by 2 ** 24."""
    return tirx.min(product, f32(2.0**24))


def finish(acc: Expr, factor: Expr, p: Params, dtype: str) -> Expr:
    """Requantize an int32 accumulator: the oracle's ``requantize``."""
    return round_clamped(acc.astype("float32") * factor, p, dtype)


def broadcast(x: te.Tensor, index: Sequence[Expr]) -> Expr:
    """``x`` at ``index`` under numpy's broadcasting."""
    shape = [int(e) for e in x.shape]
    aligned = list(index)[len(index) - len(shape) :]
    return x(*[tirx.const(0, "int32") if e == 1 else i for e, i in zip(shape, aligned, strict=True)])


def transposed(index: Sequence[Expr], axes: Sequence[int] | None) -> list[Expr]:
    """Where element ``index`` of ``x.transpose(axes)`` lies in ``x``."""
    if not axes:
        return list(index)
    source: list[Expr] = list(index)
    for position, axis in enumerate(axes):
        source[axis] = index[position]
    return source
