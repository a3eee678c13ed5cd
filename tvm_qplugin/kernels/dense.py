"""Dense layers, integer and float: ``x @ w.T + bias`` over the last axis."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.kernels.arith import Expr, finish, wide
from tvm_qplugin.kernels.conv import bounded


def qdense(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Integer dense layer, bias, requantization and clamp."""
    x, w, bias, factor = inputs
    k = te.reduce_axis((0, int(w.shape[1])), "k")

    def product(*i: Expr) -> Expr:
        return te.sum(wide(x(*i[:-1], k), p["in_zp"]) * wide(w[i[-1], k]), axis=k)

    acc = te.compute(out.shape, product, name="dense")

    def element(*i: Expr) -> Expr:
        return finish(acc(*i) + bias[i[-1]], factor[i[-1]], p, out.dtype)

    return te.compute(out.shape, element, name="requantize")


def fdense(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Float dense layer, bias and clamp, all in the dtype of the output."""
    x, w, bias = inputs
    k = te.reduce_axis((0, int(w.shape[1])), "k")

    def product(*i: Expr) -> Expr:
        return te.sum(x(*i[:-1], k) * w[i[-1], k].astype(out.dtype), axis=k)

    acc = te.compute(out.shape, product, name="dense")
    return te.compute(out.shape, lambda *i: bounded(p, acc(*i) + bias[i[-1]].astype(out.dtype)), name="bias")
