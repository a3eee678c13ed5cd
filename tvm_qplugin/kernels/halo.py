"""Halos: physical borders of zero points around NHWC tensors, so that a consumer need not pad."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from tvm_qplugin.core.attrs import Params
from tvm_qplugin.kernels.arith import Expr

Halo = tuple[int, int, int, int]


def inside_halo(params: Params, inputs: Sequence[te.Tensor]) -> list[te.Tensor]:
    """The inputs without their halos (``in_halo`` or ``a_halo`` of the first, ``b_halo`` of the second)."""
    halos = [params.get("in_halo") or params.get("a_halo"), params.get("b_halo")]
    pairs = zip(inputs, [*halos, *[None] * len(inputs)], strict=False)
    return [_strip(x, halo) if halo and any(halo) else x for x, halo in pairs]


def _strip(x: te.Tensor, halo: Halo) -> te.Tensor:
    top, left, bottom, right = halo
    n, h, w, c = (int(e) for e in x.shape)
    shape = (n, h - top - bottom, w - left - right, c)
    return te.compute(shape, lambda n, h, w, c: x[n, h + top, w + left, c], name=f"{x.op.name}_inside")


def with_halo(params: Params, y: te.Tensor) -> te.Tensor:
    """``y`` surrounded by ``out_halo`` rows and columns of ``out_zp``."""
    top, left, bottom, right = params.get("out_halo") or (0, 0, 0, 0)
    if not (top or left or bottom or right):
        return y
    n, h, w, c = (int(e) for e in y.shape)
    fill = tirx.const(params["out_zp"], y.dtype)

    def element(b: Expr, i: Expr, j: Expr, k: Expr) -> Expr:
        inside = tirx.all(i >= top, i < h + top, j >= left, j < w + left)
        return tirx.if_then_else(inside, y[b, i - top, j - left, k], fill)

    return te.compute((n, h + top + bottom, w + left + right, c), element, name="halo")
