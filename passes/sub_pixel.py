"""Say transposed convolutions as convolutions whose channels become pixels, which have integer kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.rebuild import (
    Rebuilder,
    constant,
    op_name,
    rebuild_main,
    shape_of,
    value_of,
    with_args,
)

Expr = Any
Var = Any
CLAMPS = ("nn.relu", "clip")


@tvm.transform.module_pass(opt_level=0, name="SubPixel")
@dataclass(frozen=True)
class SubPixel:
    """Replace ``nn.conv2d_transpose``.

    In: ``main`` in NCHW with constant IOHW weights. Out: for strides ``(s, t)`` a convolution with ``s * t``
    times the channels (Shi et al., arXiv:1609.05158), the bias and the clamp behind it, then their
    rearrangement as pixels, and a slice where the result does not begin or end with a block. Dilated ones
    and those with quantized weights stay.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _SubPixel)


@dataclass(frozen=True)
class Axis:
    """One spatial axis: position ``m`` of the convolution makes the pixels ``stride * m + phase - cut``.

    ``taps[phase][k]``: which tap of the old kernel is tap ``k`` of the new one, -1 for a zero. ``before`` and
    ``after`` are the pads of the new convolution.
    """

    extent: int
    stride: int
    cut: int
    before: int
    after: int
    taps: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, size: int, extent: int, kernel: int, stride: int, pad: int) -> Axis:
        """With nothing to cut in front, unless cutting makes the new kernel smaller."""
        found = [_axis(size, extent, kernel, stride, pad, cut) for cut in (0, pad % stride)]
        return min(found, key=lambda axis: len(axis.taps[0]))


def _axis(size: int, extent: int, kernel: int, stride: int, pad: int, cut: int) -> Axis:
    reach: list[dict[int, int]] = []
    for phase in range(stride):
        shift, first = divmod(phase + pad - cut, stride)
        reach.append({shift - i: tap for i, tap in enumerate(range(first, kernel, stride))})
    offsets = [offset for taps in reach for offset in taps]
    low, high = min(offsets), max(offsets)
    count = -(-(extent + cut) // stride)
    taps = tuple(tuple(found.get(offset, -1) for offset in range(low, high + 1)) for found in reach)
    return Axis(extent, stride, cut, -low, count - size + high, taps)


@dataclass(frozen=True)
class Blocks:
    """A convolution's result: channels are ``groups`` x phases of both axes x ``depth``."""

    groups: int
    depth: int
    rows: Axis
    columns: Axis

    def weight(self, old: Array) -> Array:
        """The OIHW weight made of an IOHW one."""
        inputs = old.shape[0] // self.groups
        padded = np.pad(old, [(0, 0), (0, 0), (0, 1), (0, 1)])
        grouped = padded.reshape(self.groups, inputs, self.depth, *padded.shape[2:])
        rows, columns = (np.array(axis.taps) for axis in (self.rows, self.columns))
        taps = grouped[:, :, :, rows[:, None, :, None], columns[None, :, None, :]]  # G I O s t KH KW
        return taps.transpose(0, 3, 4, 2, 1, 5, 6).reshape(-1, inputs, rows.shape[1], columns.shape[1])

    def bias(self, old: Array) -> Array:
        """A bias of the channels of all phases, made of one a channel or one for all."""
        phases = self.rows.stride * self.columns.stride
        spread = np.broadcast_to(old.reshape(-1), (self.groups * self.depth,))
        spread = np.repeat(spread.reshape(self.groups, 1, self.depth), phases, axis=1)
        return spread.reshape(1, -1, 1, 1)

    def pixels(self, x: Expr) -> Expr:
        """The rearrangement, without what is not in the result."""
        n, _, h, w = shape_of(x)
        s, t = self.rows.stride, self.columns.stride
        if s * t > 1:
            x = relax.op.reshape(x, (n, self.groups, s, t, self.depth, h, w))
            x = relax.op.permute_dims(x, [0, 1, 4, 5, 2, 6, 3])
            x = relax.op.reshape(x, (n, self.groups * self.depth, h * s, w * t))
        begin = [self.rows.cut, self.columns.cut]
        end = [self.rows.cut + self.rows.extent, self.columns.cut + self.columns.extent]
        whole = begin == [0, 0] and end == [h * s, w * t]
        return x if whole else relax.op.strided_slice(x, [2, 3], begin, end)


class _SubPixel(Rebuilder):
    def __init__(self, func: relax.Function) -> None:
        super().__init__(func)
        self.made: dict[Var, tuple[Var, Blocks]] = {}
        self.single = {str(var.name) for var, count in self.uses.items() if count == 1}

    def visit(self, var: Var, value: Expr) -> None:
        """A transposed convolution, or what can be done before its channels become pixels."""
        call = self.mapped(value)
        is_first = op_name(call) == "nn.conv2d_transpose"
        found = _expanded(call, shape_of(var)) if is_first else self._later(call)
        if found is None:
            super().visit(var, value)
            return
        inner, blocks = found
        source = self.emit(inner, self.fresh(f"{var.name}_blocks"))
        self.known[var] = self.emit(blocks.pixels(source), var.name)
        self.made[self.known[var]] = source, blocks

    def _later(self, call: Expr) -> tuple[Expr, Blocks] | None:
        """A bias or a clamp of a result that nothing else uses."""
        kind = op_name(call)
        x = call.args[0] if kind in ("add", *CLAMPS) else call
        if x not in self.made or x.name not in self.single:
            return None
        source, blocks = self.made[x]
        if kind in CLAMPS:
            return with_args(call, [source, *call.args[1:]]), blocks
        bias = value_of(call.args[1])
        channels = blocks.groups * blocks.depth
        if bias is None or bias.shape not in ((), (channels, 1, 1), (1, channels, 1, 1)):
            return None
        return relax.op.add(source, constant(blocks.bias(bias))), blocks


def _expanded(call: Expr, shape: tuple[int, ...]) -> tuple[Expr, Blocks] | None:
    """The convolution for a transposed one with a result of this shape."""
    a, weight = call.attrs, value_of(call.args[1])
    layouts = (a.data_layout, a.kernel_layout, a.out_layout)
    if weight is None or layouts != ("NCHW", "IOHW", "NCHW") or any(int(d) != 1 for d in a.dilation):
        return None
    size = shape_of(call.args[0])[2:]
    rows, columns = (
        Axis.of(size[i], shape[2 + i], weight.shape[2 + i], int(a.strides[i]), int(a.padding[i]))
        for i in range(2)
    )
    pads = [rows.before, columns.before, rows.after, columns.after]
    if min(pads) < 0:
        return None
    blocks = Blocks(int(a.groups), weight.shape[1], rows, columns)
    made = constant(np.ascontiguousarray(blocks.weight(weight)))
    return relax.op.nn.conv2d(call.args[0], made, (1, 1), pads, groups=blocks.groups), blocks
