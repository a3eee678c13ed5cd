"""Elementwise kernels of int16 in LiteRT's fixed point: requantize, add, multiply."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.core.oracle16 import ADD_BITS
from tvm_qplugin.kernels.arith import Expr, broadcast, wide
from tvm_qplugin.kernels.fixed_point import clipped, i32, multiply


def requantize16(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """The same real numbers on another grid, int16 or 8 bits."""
    (q,) = inputs

    def element(*i: Expr) -> Expr:
        return clipped(multiply(wide(q(*i), p["in_zp"]), p["multiplier"]), p, out.dtype)

    return te.compute(out.shape, element, name="requantize")


def qadd16(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Sum or difference."""
    a, b = inputs
    size = int(np.prod(out.shape))

    def term(x: te.Tensor, i: Sequence[Expr], side: str) -> Expr:
        value, (fixed, exponent) = wide(broadcast(x, i)), p[f"{side}_multiplier"]
        once = multiply(value, (fixed, exponent + ADD_BITS))
        twice = multiply(value << i32(ADD_BITS), (fixed, exponent))
        if p["vectorized"] in (0, size):
            return once if p["vectorized"] else twice
        return tirx.Select(_position(i, out) < p["vectorized"], once, twice)

    def element(*i: Expr) -> Expr:
        left, right = term(a, i, "a"), term(b, i, "b")
        total = left - right if p["subtract"] else left + right
        return clipped(multiply(total, p["out_multiplier"]), p, out.dtype)

    return te.compute(out.shape, element, name="qadd")


def _position(index: Sequence[Expr], out: TensorSpec) -> Expr:
    """The number of an element in the order of memory."""
    position: Expr = i32(0)
    for at, extent in zip(index, out.shape, strict=True):
        position = position * extent + at
    return position


def qmul16(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Product of two quantized tensors."""
    a, b = inputs

    def element(*i: Expr) -> Expr:
        product = wide(broadcast(a, i)) * wide(broadcast(b, i))
        return clipped(multiply(product, p["multiplier"]), p, out.dtype)

    return te.compute(out.shape, element, name="qmul")
