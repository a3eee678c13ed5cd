"""Resize of NHWC tensors: nearest, or bilinear with 11-bit weights; index tables are arguments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.core.oracle import resize_table
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels.arith import Expr, wide


def tables(p: Params, shape: Sequence[int]) -> list[Array]:
    """Int32 tables that follow ``q``: the rows' (low, high, weight), then the columns'.

    For ``nearest`` only the source indices: rows, columns.
    """
    used = 1 if p["method"] == "nearest" else 3
    rows = resize_table(shape[1], p["size"][0], p)[:used]
    cols = resize_table(shape[2], p["size"][1], p)[:used]
    return [np.ascontiguousarray(table, "int32") for table in (*rows, *cols)]


def qresize2d(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """``inputs`` are ``q`` and its ``tables``."""
    return _nearest(inputs, out) if p["method"] == "nearest" else _bilinear(inputs, out)


def _nearest(inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    q, rows, cols = inputs
    return te.compute(
        out.shape, lambda n, h, w, c: q[n, rows[h], cols[w], c].astype(out.dtype), name="nearest"
    )


def _bilinear(inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Columns are blended first, then rows, all in int32: |q| < 256 leaves 22 bits for the weights."""
    q, top, bottom, row_weight, left, right, col_weight = inputs

    def blend(low: Expr, high: Expr, weight: Expr) -> Expr:
        return (low << tirx.const(11, "int32")) + (high - low) * weight

    def element(n: Expr, h: Expr, w: Expr, c: Expr) -> Expr:
        upper, lower = (
            blend(wide(q[n, row[h], left[w], c]), wide(q[n, row[h], right[w], c]), col_weight[w])
            for row in (top, bottom)
        )
        acc = blend(upper, lower, row_weight[h]) + tirx.const(1 << 21, "int32")
        return (acc >> tirx.const(22, "int32")).astype(out.dtype)

    return te.compute(out.shape, element, name="bilinear")
