"""Pooling and mean: sums or maxima over windows, requantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.core.qparams import INTEGER_RANGE
from tvm_qplugin.kernels.arith import Expr, clamp, f32, finish, wide
from tvm_qplugin.kernels.movement import padded


def qavgpool2d(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """The window's sum, requantized by ``multiplier / n``; padding counts only if asked to.

    Raw codes are summed, in int16 where they fit; padding holds the zero point, which adds nothing.
    """
    (x,) = inputs
    source = padded(x, p["padding"], p["in_zp"])
    rows, cols = _axes(p)
    taps = p["pool"][0] * p["pool"][1]
    narrow = "int16" if taps * 256 < 2**15 else "int32"
    total = te.compute(
        out.shape,
        lambda n, h, w, c: te.sum(
            source[n, _at(p, 0, h, rows), _at(p, 1, w, cols), c].astype(narrow), axis=[rows, cols]
        ),
        name="pool",
    )
    factor = _average_factor(p, x)

    def element(n: Expr, h: Expr, w: Expr, c: Expr) -> Expr:
        return finish(wide(total[n, h, w, c], taps * p["in_zp"]), factor(h, w), p, out.dtype)

    return te.compute(out.shape, element, name="requantize")


def qmaxpool2d(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """The window's maximum, clamped; padding never wins."""
    (x,) = inputs
    low, high = INTEGER_RANGE[str(x.dtype)]
    source = padded(x, p["padding"], low)
    rows, cols = _axes(p)
    top = te.compute(
        out.shape,
        lambda n, h, w, c: te.max(source[n, _at(p, 0, h, rows), _at(p, 1, w, cols), c], axis=[rows, cols]),
        name="pool",
    )
    if p["lo"] <= low and p["hi"] >= high:
        return top
    lo, hi = tirx.const(max(p["lo"], low), x.dtype), tirx.const(min(p["hi"], high), x.dtype)
    return te.compute(out.shape, lambda *i: clamp(top(*i), lo, hi), name="clamp")


def qmean(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Mean over ``axes``; ``multiplier`` already contains 1/n."""
    (x,) = inputs
    rank = len(x.shape)
    reduced = sorted(axis % rank for axis in p["axes"])
    axes = {a: te.reduce_axis((0, int(x.shape[a])), f"r{a}") for a in reduced}

    def total(*i: Expr) -> Expr:
        kept = iter(i if not p["keepdims"] else [v for a, v in enumerate(i) if a not in axes])
        index = [axes[a] if a in axes else next(kept) for a in range(rank)]
        return te.sum(wide(x(*index), p["in_zp"]), axis=list(axes.values()))

    acc = te.compute(out.shape, total, name="sum")
    factor = f32(p["multiplier"])
    return te.compute(out.shape, lambda *i: finish(acc(*i), factor, p, out.dtype), name="requantize")


def _axes(p: Params) -> tuple[tirx.IterVar, tirx.IterVar]:
    return te.reduce_axis((0, p["pool"][0]), "kh"), te.reduce_axis((0, p["pool"][1]), "kw")


def _at(p: Params, axis: int, position: Expr, tap: Expr) -> Expr:
    return position * p["strides"][axis] + tap * p.get("dilation", (1, 1))[axis]


def _average_factor(p: Params, x: te.Tensor) -> Callable[[Expr, Expr], Expr]:
    """A function ``(h, w) -> multiplier / n``, constant where every window is full."""
    kh, kw = p["pool"]
    if p["count_include_pad"] or not any(p["padding"]):
        constant = f32(float(np.float32(p["multiplier"]) / np.float32(kh * kw)))
        return lambda h, w: constant
    extents = int(x.shape[1]), int(x.shape[2])

    def count(axis: int, position: Expr) -> Expr:
        inside = [
            tirx.all(at >= 0, at < extents[axis]).astype("int32")
            for tap in range(p["pool"][axis])
            for at in [_at(p, axis, position, tap) - p["padding"][axis]]
        ]
        return sum(inside[1:], inside[0])

    return lambda h, w: f32(p["multiplier"]) / (count(0, h) * count(1, w)).astype("float32")
