"""Slices with a step as pools and convolutions, for devices whose slices have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.passes.rebuild import Rebuilder, constant, op_name, rebuild_main, shape_of, value_of

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="UnitStrides")
@dataclass(frozen=True)
class UnitStrides:
    """Pick every n-th row and column of an image by a pool of one pixel, channels by a convolution.

    In: a float module in NHWC. Out: the same function; a ``strided_slice`` of height or width keeps its
    begin and end, but a ``max_pool2d`` of 1x1 takes the steps; one of channels with a step, and a ``take``
    of channels, is a 1x1 ``conv2d`` whose weights are 0 and 1. In int8 both give the codes of the slice
    where the output has the input's scale, else within half a step.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Unit)


class _Unit(Rebuilder):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """A slice whose steps are all 1, or none."""
        if op_name(call) == "take" and len(shape_of(call.args[0])) == 4:
            index = value_of(call.args[1])
            along = call.attrs.axis is not None and int(call.attrs.axis) == 3
            return _picked(call.args[0], index) if along and index is not None and index.ndim == 1 else call
        if op_name(call) != "strided_slice" or len(shape_of(call.args[0])) != 4 or len(call.args) < 5:
            return call
        bounds = _bounds(call)
        steps = [step for _, _, step in bounds]
        if steps == [1, 1, 1, 1] or steps[0] != 1 or min(steps) < 1:
            return call
        image = _pooled(call.args[0], bounds)
        first, last, step = bounds[3]
        return image if step == 1 else _picked(image, np.arange(first, last, step))


def _bounds(call: Expr) -> list[tuple[int, int, int]]:
    """Begin, end and step of all axes."""
    shape = shape_of(call.args[0])
    chosen = [slice(0, extent, 1) for extent in shape]
    axes, *parts = ([int(field) for field in arg.fields] for arg in call.args[1:5])
    for axis, begin, end, step in zip(axes, *parts, strict=True):
        chosen[axis] = slice(begin, end, step)
    return [_whole(*part.indices(extent), extent) for part, extent in zip(chosen, shape, strict=True)]


def _whole(begin: int, end: int, step: int, extent: int) -> tuple[int, int, int]:
    """The same picks with an open end, if that adds none."""
    same = step > 0 and len(range(begin, end, step)) == len(range(begin, extent, step))
    return begin, extent if same else end, step


def _pooled(x: Expr, bounds: Sequence[tuple[int, int, int]]) -> Expr:
    """Height and width with their steps; channels only where they have none."""
    axes = [0, 1, 2, 3] if bounds[3][2] == 1 else [0, 1, 2]
    cut = [axis for axis in axes if bounds[axis][:2] != (0, shape_of(x)[axis])]
    if cut:
        begin, end = ([bounds[axis][i] for axis in cut] for i in (0, 1))
        x = relax.op.strided_slice(x, cut, begin, end, [1] * len(cut))
    steps = [bounds[1][2], bounds[2][2]]
    if steps == [1, 1]:
        return x
    return relax.op.nn.max_pool2d(x, (1, 1), steps, [0] * 4, layout="NHWC", out_layout="NHWC")


def _picked(x: Expr, channels: Any) -> Expr:
    """The channels of a list, by a convolution of one pixel."""
    taken = np.asarray(channels, "int64")
    weight = np.zeros((len(taken), 1, 1, _channels(x)), "float32")
    weight[np.arange(len(taken)), 0, 0, taken % _channels(x)] = 1
    return relax.op.nn.conv2d(
        x, constant(weight), padding=[0] * 4, data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC"
    )


def _channels(x: Expr) -> int:
    while not isinstance(x, relax.Var):  # slices and pools of height and width keep the channels
        x = x.args[0]
    return shape_of(x)[3]
