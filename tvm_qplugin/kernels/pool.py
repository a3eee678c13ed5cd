"""Pooling, mean and sum: sums or maxima over windows, requantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.core.qparams import AVERAGE_TAPS, INTEGER_RANGE, average_factor, centre, mean_offset
from tvm_qplugin.kernels.arith import Expr, clamp, f32, limits, round_clamped, separate, wide
from tvm_qplugin.kernels.movement import padded


def qavgpool2d(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """The mean of int8 codes, half away from 0; padding (zero points) counts only if asked to.

    Stored codes are summed, in int16 where they fit.
    """
    (x,) = inputs
    zero, taps = centre(str(x.dtype)), p["pool"][0] * p["pool"][1]
    source = padded(x, p["padding"], p["in_zp"] if p["count_include_pad"] else zero)
    rows, cols = _axes(p)
    narrow = "int16" if x.dtype != "int16" and taps * 256 < 2**15 else "int32"
    total = te.compute(
        out.shape,
        lambda n, h, w, c: te.sum(
            source[n, _at(p, 0, h, rows), _at(p, 1, w, cols), c].astype(narrow), axis=[rows, cols]
        ),
        name="pool",
    )
    if x.dtype == "int16":
        return _divided(p, total, x, out)
    factor = _Factor(p, x)
    centred = {**p, "out_zp": zero}

    def element(n: Expr, h: Expr, w: Expr, c: Expr) -> Expr:
        acc = wide(total[n, h, w, c], taps * zero)
        return round_clamped(acc.astype(factor.dtype) * factor(h, w), centred, out.dtype)

    return te.compute(out.shape, element, name="requantize")


def _divided(p: Params, total: te.Tensor, x: te.Tensor, out: TensorSpec) -> te.Tensor:
    """Sums of int16 by the size of their window, half away from 0.

    Where sizes differ, as a float64 product with the reciprocal, which no CPU needs a division for: quotients
    are below 2 ** 15 + 1 and, if none, 2 ** -16 away from integers; the factor is 2 ** -40 too large.
    """
    taps, count = _Factor(p, x), p["pool"][0] * p["pool"][1]
    lo, hi = tirx.const(p["lo"], "int32"), tirx.const(p["hi"], "int32")

    def element(n: Expr, h: Expr, w: Expr, c: Expr) -> Expr:
        size = tirx.const(count, "int32") if taps.full else taps.count(h, w)
        half = tirx.truncdiv(size, tirx.const(2, "int32"))
        acc = total[n, h, w, c]
        rounded = acc + tirx.Select(acc > 0, half, -half)
        if taps.full:
            return clamp(tirx.truncdiv(rounded, size), lo, hi).astype(out.dtype)
        factor = tirx.const(1.0 + 2.0**-40, "float64") / size.astype("float64")
        return clamp((rounded.astype("float64") * factor).astype("int32"), lo, hi).astype(out.dtype)

    return te.compute(out.shape, element, name="requantize")


def qmaxpool2d(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """The window's maximum, clamped; padding never wins."""
    (x,) = inputs
    low, high = INTEGER_RANGE[str(x.dtype)]
    lo, hi = limits(p, str(x.dtype))
    source = padded(x, p["padding"], low)
    rows, cols = _axes(p)
    top = te.compute(
        out.shape,
        lambda n, h, w, c: te.max(source[n, _at(p, 0, h, rows), _at(p, 1, w, cols), c], axis=[rows, cols]),
        name="pool",
    )
    if p["lo"] <= low and p["hi"] >= high:
        return top
    return te.compute(out.shape, lambda *i: clamp(top(*i), lo, hi), name="clamp")


def qmean(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Mean or sum over ``axes``; the ``multiplier`` of a mean contains 1/n."""
    (x,) = inputs
    count = int(np.prod([int(x.shape[axis]) for axis in p["axes"]]))
    dtype, zero = str(x.dtype), centre(str(x.dtype))
    acc = sums(p, x, out)
    offset = float(mean_offset(p, count, dtype))
    factor, centred = f32(p["multiplier"]), {**p, "out_zp": centre(out.dtype)}

    def element(*i: Expr) -> Expr:
        raw = wide(acc(*i), count * zero).astype("float32")
        return round_clamped(separate(raw * factor) + f32(offset), centred, out.dtype)

    return te.compute(out.shape, element, name="requantize")


def qreduce(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """The largest or the smallest code along ``axes``, clamped."""
    (x,) = inputs
    lo, hi = limits(p, out.dtype)
    found = _reduced(p, x, out, te.max if p["largest"] else te.min, lambda value: value)
    return te.compute(out.shape, lambda *i: clamp(found(*i), lo, hi), name="clamp")


def sums(p: Params, x: te.Tensor, out: TensorSpec) -> te.Tensor:
    """Sums over ``axes`` in int32."""
    return _reduced(p, x, out, te.sum, wide)


def _reduced(
    p: Params, x: te.Tensor, out: TensorSpec, reduce: Callable[..., Expr], read: Callable[[Expr], Expr]
) -> te.Tensor:
    """One value for all elements along ``axes``."""
    rank = len(x.shape)
    axes = {axis % rank: te.reduce_axis((0, int(x.shape[axis])), f"r{axis % rank}") for axis in p["axes"]}

    def total(*i: Expr) -> Expr:
        kept = iter(i if not p["keepdims"] else [v for a, v in enumerate(i) if a not in axes])
        index = [axes[a] if a in axes else next(kept) for a in range(rank)]
        return reduce(read(x(*index)), axis=list(axes.values()))

    return te.compute(out.shape, total, name="reduced")


def _axes(p: Params) -> tuple[tirx.IterVar, tirx.IterVar]:
    return te.reduce_axis((0, p["pool"][0]), "kh"), te.reduce_axis((0, p["pool"][1]), "kw")


def _at(p: Params, axis: int, position: Expr, tap: Expr) -> Expr:
    return position * p["strides"][axis] + tap * p.get("dilation", (1, 1))[axis]


class _Factor:
    """``1 / n`` of a window, a little too large: that turns ties away from 0 and moves nothing else.

    A sum of n codes is at least 1 / 2n away from a tie if it is none, and a quotient is less than 256:
    2 ** -21 more serves for up to 4096 elements, 2 ** -40 in float64 for every other window.
    """

    def __init__(self, p: Params, x: te.Tensor) -> None:
        self.pool, self.strides, self.padding = p["pool"], p["strides"], p["padding"]
        self.extents = int(x.shape[1]), int(x.shape[2])
        self.full = bool(p["count_include_pad"]) or not any(p["padding"])
        taps = self.pool[0] * self.pool[1]
        self.dtype = "float32" if taps <= AVERAGE_TAPS else "float64"

    def __call__(self, h: Expr, w: Expr) -> Expr:
        """The factor of the window at ``(h, w)``."""
        above = average_factor(1) if self.dtype == "float32" else 1.0 + 2.0**-40
        if self.full:
            n = self.pool[0] * self.pool[1]
            return tirx.const(average_factor(n) if self.dtype == "float32" else above / n, self.dtype)
        return tirx.const(above, self.dtype) / self.count(h, w).astype(self.dtype)

    def count(self, h: Expr, w: Expr) -> Expr:
        """How many elements of the window at ``(h, w)`` lie inside the image."""
        return self._count(0, h) * self._count(1, w)

    def _count(self, axis: int, position: Expr) -> Expr:
        """How many rows (columns) of a window lie inside the image."""
        inside = [
            tirx.all(at >= 0, at < self.extents[axis]).astype("int32")
            for tap in range(self.pool[axis])
            for at in [position * self.strides[axis] + tap - self.padding[axis]]
        ]
        return sum(inside[1:], inside[0])
