"""Kernels that only move bytes: constant padding."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.kernels.arith import Expr


def qpad(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Constant padding; ``pad_width`` is flat: before, after per axis."""
    (x,) = inputs
    return pad(x, p["pad_width"], p["value"])


def padded(x: te.Tensor, padding: Sequence[int], value: float) -> te.Tensor:
    """An NHWC tensor padded by ``(top, left, bottom, right)``."""
    top, left, bottom, right = padding
    return pad(x, (0, 0, top, bottom, left, right, 0, 0), value) if any(padding) else x


def pad(x: te.Tensor, width: Sequence[int], value: float) -> te.Tensor:
    """``numpy.pad(x, constant_values=value)`` with ``width`` flat: before, after per axis."""
    extents = [int(e) for e in x.shape]
    before, after = list(width)[::2], list(width)[1::2]
    shape = [b + e + a for b, e, a in zip(before, extents, after, strict=True)]
    fill = tirx.const(value, x.dtype)

    def element(*i: Expr) -> Expr:
        source = [v - b if b else v for v, b in zip(i, before, strict=True)]
        tests = [v >= b for v, b in zip(i, before, strict=True) if b]
        tests += [i[k] < before[k] + e for k, e in enumerate(extents) if after[k]]
        return tirx.if_then_else(tirx.all(*tests), x(*source), fill) if tests else x(*source)

    return te.compute(shape, element, name="pad")
