"""Softmax by table, as LiteRT's int8 kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.kernels.arith import Expr, clamp, f32, wide

FAR = 256.0  # beyond every output code, whatever the zero point


class Rows:
    """The vectors along one axis of a shape, and what is left of the shape without it."""

    def __init__(self, axis: int, shape: Sequence[int]) -> None:
        self.axis, self.shape = axis % len(shape), shape
        self.kept = [extent for a, extent in enumerate(shape) if a != self.axis] or [1]

    def reduced(self, x: te.Tensor, reduce: Callable[..., Expr], name: str) -> te.Tensor:
        """Maxima or sums over the axis; integers in int32."""
        k = te.reduce_axis((0, self.shape[self.axis]), f"{name}_k")

        def element(*i: Expr) -> Expr:
            outer = list(i)[: len(self.shape) - 1]
            value = x(*outer[: self.axis], k, *outer[self.axis :])
            return reduce(value if "float" in str(x.dtype) else wide(value), axis=k)

        return te.compute(self.kept, element, name=name)

    def others(self, i: Sequence[Expr]) -> list[Expr]:
        """The indices of an element without that of the axis."""
        return [v for a, v in enumerate(i) if a != self.axis] or [tirx.const(0, "int32")]


def qsoftmax(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """``floor(e / (sum(e) * out_scale) + 0.5)``, ``e`` looked up by the distance to the maximum.

    The sum runs in index order. The product is clamped before 0.5 is added: that changes no result
    and keeps the compiler from contracting both into a fused multiply-add.
    """
    q, table = inputs
    rows = Rows(p["axis"], out.shape)
    top = rows.reduced(q, te.max, "top")
    e = te.compute(out.shape, lambda *i: table(255 - (top(*rows.others(i)) - wide(q(*i)))), name="e")
    total = rows.reduced(e, te.sum, "total")
    inverse = te.compute(rows.kept, lambda *i: f32(1.0) / (total(*i) * f32(p["out_scale"])), name="inverse")

    def element(*i: Expr) -> Expr:
        product = clamp(e(*i) * inverse(*rows.others(i)), f32(0), f32(FAR))
        code = tirx.floor(product + f32(0.5)).astype("int32") + tirx.const(p["out_zp"], "int32")
        lo, hi = tirx.const(p["lo"], "int32"), tirx.const(p["hi"], "int32")
        return clamp(code, lo, hi).astype(out.dtype)

    return te.compute(out.shape, element, name="softmax")
