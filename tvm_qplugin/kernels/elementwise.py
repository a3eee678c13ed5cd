"""Elementwise kernels: conversions, add, multiply, maximum, minimum, prelu, clamp, table lookup."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.core.qparams import INTEGER_RANGE
from tvm_qplugin.kernels.arith import (
    Expr,
    broadcast,
    clamp,
    f32,
    finish,
    limits,
    round_clamped,
    transposed,
    wide,
)
from tvm_qplugin.kernels.fixed_point import clipped, multiply


def quantize(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """``clip(rint(x * (1 / scale)) + zp)``; ``axes`` transposes first."""
    (x,) = inputs
    inverse = f32(float(np.float32(1) / np.float32(p["scale"])))

    def element(*i: Expr) -> Expr:
        return round_clamped(x(*transposed(i, p.get("axes"))) * inverse, p, out.dtype)

    return te.compute(out.shape, element, name="quantize")


def dequantize(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """``(q - zp) * scale``; ``axes`` transposes afterwards."""
    (q,) = inputs

    def element(*i: Expr) -> Expr:
        centred = wide(q(*transposed(i, p.get("axes"))), p["in_zp"])
        return centred.astype("float32") * f32(p["scale"])

    return te.compute(out.shape, element, name="dequantize")


def requantize(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """The same real numbers on another grid: a multiplier with 8 fractional bits, half up."""
    (q,) = inputs
    multiplier, half, bits = (tirx.const(value, "int32") for value in (p["multiplier"], 128, 8))
    lo, hi = (tirx.const(p[k] - p["out_zp"], "int32") for k in ("lo", "hi"))

    def element(*i: Expr) -> Expr:
        scaled = (wide(q(*i), p["in_zp"]) * multiplier + half) >> bits
        return (clamp(scaled, lo, hi) + tirx.const(p["out_zp"], "int32")).astype(out.dtype)

    return te.compute(out.shape, element, name="requantize")


def qadd(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Fixed-point addition, one rounding shift; in int64 only where int32 could overflow."""
    a, b = inputs
    rounding = 1 << (p["shift"] - 1)
    largest = 255 * (abs(p["a_mul"]) + abs(p["b_mul"])) + rounding
    accumulator = "int32" if largest < 2**31 else "int64"
    lo, hi = (tirx.const(p[k] - p["out_zp"], accumulator) for k in ("lo", "hi"))

    def term(x: te.Tensor, i: Sequence[Expr], side: str) -> Expr:
        value = wide(broadcast(x, i), p[f"{side}_zp"]).astype(accumulator)
        return value * tirx.const(p[f"{side}_mul"], accumulator)

    def element(*i: Expr) -> Expr:
        total = term(a, i, "a") + term(b, i, "b") + tirx.const(rounding, accumulator)
        shifted = clamp(total >> tirx.const(p["shift"], accumulator), lo, hi)
        return (shifted + tirx.const(p["out_zp"], accumulator)).astype(out.dtype)

    return te.compute(out.shape, element, name="qadd")


def qmul(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Product of two quantized tensors, requantized."""
    a, b = inputs

    def element(*i: Expr) -> Expr:
        product = wide(broadcast(a, i), p["a_zp"]) * wide(broadcast(b, i), p["b_zp"])
        return finish(product, f32(p["multiplier"]), p, out.dtype)

    return te.compute(out.shape, element, name="qmul")


def qextreme(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """The larger or the smaller of two codes of one grid, clamped."""
    a, b = inputs
    chosen = tirx.max if p["largest"] else tirx.min
    lo, hi = limits(p, out.dtype)

    def element(*i: Expr) -> Expr:
        return clamp(chosen(broadcast(a, i), broadcast(b, i)), lo, hi)

    return te.compute(out.shape, element, name="qextreme")


def qprelu(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """A slope for each channel below 0."""
    q, alpha = inputs

    def element(*i: Expr) -> Expr:
        distance = wide(q(*i), p["in_zp"])
        sloped = distance * wide(broadcast(alpha, i[-1:]), p["alpha_zp"])
        upper, lower = multiply(distance, p["positive"]), multiply(sloped, p["negative"])
        return clipped(tirx.Select(distance < tirx.const(0, "int32"), lower, upper), p, out.dtype)

    return te.compute(out.shape, element, name="qprelu")


def qclamp(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """A stand-alone activation on one grid."""
    (q,) = inputs
    lo, hi = limits(p, str(q.dtype))
    return te.compute(out.shape, lambda *i: clamp(q(*i), lo, hi).astype(out.dtype), name="qclamp")


def qlut(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Any unary function, as a table of 256 results."""
    q, table = inputs
    lowest = INTEGER_RANGE[str(q.dtype)][0]
    return te.compute(out.shape, lambda *i: table(wide(q(*i), lowest)).astype(out.dtype), name="qlut")
