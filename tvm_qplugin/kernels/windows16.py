"""Means, softmax and bilinear resizing of int16 in LiteRT's fixed point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.core.oracle16 import blend_table
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels.arith import Expr, clamp, f32, wide
from tvm_qplugin.kernels.fixed_point import clipped, i32, i64, interpolate, multiply, round_away
from tvm_qplugin.kernels.pool import sums
from tvm_qplugin.kernels.softmax import Rows


def qmean16(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Mean over ``axes``; ``multiplier`` already contains 1/n."""
    acc = sums(p, inputs[0], out)

    def element(*i: Expr) -> Expr:
        return clipped(multiply(acc(*i), p["multiplier"]), p, out.dtype)

    return te.compute(out.shape, element, name="requantize")


def qsum16(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Sum over ``axes``; clamped before it is rounded, so that nothing is contracted with the product."""
    acc = sums(p, inputs[0], out)

    def element(*i: Expr) -> Expr:
        scaled = clamp(acc(*i).astype("float32") * f32(p["multiplier"]), f32(p["lo"]), f32(p["hi"]))
        return clipped(round_away(scaled.astype("float64")).astype("int32"), p, out.dtype)

    return te.compute(out.shape, element, name="requantize")


def qsoftmax16(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """``e * (1 / sum(e))``, both from tables; the sum is normalized by its highest bit."""
    q, exponentials, reciprocals = inputs
    rows = Rows(p["axis"], out.shape)
    top = rows.reduced(q, te.max, "top")

    def exponential(*i: Expr) -> Expr:
        distance = multiply(wide(q(*i)) - top(*rows.others(i)), p["multiplier"]) + i64(32767)
        return interpolate(clamp(distance, i64(-32768), i64(32767)).astype("int32"), exponentials)

    e = te.compute(out.shape, exponential, name="e")
    total = rows.reduced(e, te.sum, "total")
    bits = te.compute(rows.kept, lambda *i: _highest_bit(total(*i)), name="bits")

    def reciprocal(*i: Expr) -> Expr:
        normal = ((total(*i).astype("int64") << (i64(30) - bits(*i))) + i64(1 << 13)) >> i64(14)
        centred = clamp(normal - i64((1 << 15) + (1 << 16)), i64(-32768), i64(32767))
        return interpolate(centred.astype("int32"), reciprocals)

    inverse = te.compute(rows.kept, reciprocal, name="inverse")

    def element(*i: Expr) -> Expr:
        row = rows.others(i)
        product = e(*i).astype("int64") * inverse(*row).astype("int64")
        return clipped((product + (i64(1) << (bits(*row) - i64(1)))) >> bits(*row), p, out.dtype)

    return te.compute(out.shape, element, name="softmax")


def _highest_bit(total: Expr) -> Expr:
    """The position of the highest bit of a positive int32, in int64."""
    found = [(total >= i32(1 << bit)).astype("int64") for bit in range(1, 31)]
    return sum(found[1:], found[0])


def tables(p: Params, shape: Sequence[int]) -> list[Array]:
    """Int32 tables that follow ``q``: the rows' (low, high, weight), then the columns'."""
    found = [
        table for axis in (0, 1) for table in blend_table(shape[axis + 1], p["size"][axis], p["coordinate"])
    ]
    return [np.ascontiguousarray(table, "int32") for table in found]


def qresize2d16(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """``inputs`` are ``q`` and its ``tables``; columns are blended first, in int32, then rows, in int64."""
    q, top, bottom, row_weight, left, right, col_weight = inputs

    def blend(low: Expr, high: Expr, weight: Expr) -> Expr:
        return (low << tirx.const(10, low.ty.dtype)) + (high - low) * weight

    def element(n: Expr, h: Expr, w: Expr, c: Expr) -> Expr:
        upper, lower = (
            blend(wide(q[n, row[h], left[w], c]), wide(q[n, row[h], right[w], c]), col_weight[w]).astype(
                "int64"
            )
            for row in (top, bottom)
        )
        total = blend(upper, lower, row_weight[h].astype("int64"))
        return ((total + (i64(1 << 19) + (total >> i64(63)))) >> i64(20)).astype(out.dtype)

    return te.compute(out.shape, element, name="bilinear")
