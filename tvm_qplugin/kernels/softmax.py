"""Softmax by table, as LiteRT's int8 kernel."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.kernels.arith import Expr, clamp, f32, wide

FAR = 256.0  # beyond every output code, whatever the zero point


def qsoftmax(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """``floor(e / (sum(e) * out_scale) + 0.5)``, ``e`` looked up by the distance to the maximum.

    The sum runs in index order. The product is clamped before 0.5 is added: that changes no result
    and keeps the compiler from contracting both into a fused multiply-add.
    """
    q, table = inputs
    axis = p["axis"] % len(out.shape)
    kept = [e for a, e in enumerate(out.shape) if a != axis] or [1]

    def full(i: Sequence[Expr], k: Expr) -> list[Expr]:
        outer = list(i)[: len(out.shape) - 1]
        return [*outer[:axis], k, *outer[axis:]]

    def others(i: Sequence[Expr]) -> list[Expr]:
        return [v for a, v in enumerate(i) if a != axis] or [tirx.const(0, "int32")]

    k = te.reduce_axis((0, out.shape[axis]), "k")
    top = te.compute(kept, lambda *i: te.max(wide(q(*full(i, k))), axis=k), name="top")
    e = te.compute(out.shape, lambda *i: table(255 - (top(*others(i)) - wide(q(*i)))), name="e")
    j = te.reduce_axis((0, out.shape[axis]), "j")
    total = te.compute(kept, lambda *i: te.sum(e(*full(i, j)), axis=j), name="total")
    inverse = te.compute(kept, lambda *i: f32(1.0) / (total(*i) * f32(p["out_scale"])), name="inverse")

    def element(*i: Expr) -> Expr:
        product = clamp(e(*i) * inverse(*others(i)), f32(0), f32(FAR))
        code = tirx.floor(product + f32(0.5)).astype("int32") + tirx.const(p["out_zp"], "int32")
        lo, hi = tirx.const(p["lo"], "int32"), tirx.const(p["hi"], "int32")
        return clamp(code, lo, hi).astype(out.dtype)

    return te.compute(out.shape, element, name="softmax")
