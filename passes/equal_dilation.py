"""Give convolutions the same dilation in both directions, which is all that some devices know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.rebuild import Rebuilder, edit_weight, op_name, rebuild_main, value_of

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="EqualDilation")
@dataclass(frozen=True)
class EqualDilation:
    """Spread kernels by zeros where height and width are dilated differently.

    In: a module in NHWC with OHWI weights (constants, or dequantized constants with zero point 0). Out:
    the same function with equal dilations: that of a direction with one tap is free; otherwise zeros are
    inserted between the taps of both, and nothing is dilated.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Equal)


class _Equal(Rebuilder):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """A convolution of equal dilation."""
        if op_name(call) != "nn.conv2d" or call.attrs.kernel_layout != "OHWI":
            return call
        dilation = [int(step) for step in call.attrs.dilation]
        taps = [int(extent) for extent in call.args[1].ty.shape][1:3]
        if dilation[0] == dilation[1]:
            return call
        if 1 in taps:
            return _with(call, call.args[1], [dilation[taps.index(1) - 1]] * 2)
        weight = _spread(self, call.args[1], dilation)
        return call if weight is None else _with(call, weight, [1, 1])


def _spread(build: Rebuilder, weight: Expr, dilation: list[int]) -> Expr | None:
    """The weight with zeros between its taps; None where a code of 0 is not the number 0."""

    def insert(value: Array) -> Array:
        o, h, w, i = value.shape
        spans = [(taps - 1) * step + 1 for taps, step in zip((h, w), dilation, strict=True)]
        spread = np.zeros((o, *spans, i), value.dtype)
        spread[:, :: dilation[0], :: dilation[1]] = value
        return spread

    bound: Expr = build.defined.get(weight) if isinstance(weight, relax.Var) else None
    if op_name(bound) == "dequantize":
        zero = value_of(bound.args[2])
        if zero is None or zero.any():
            return None
    return edit_weight(weight, build.defined.get, insert, {axis: axis for axis in range(4)})


def _with(call: Expr, weight: Expr, dilation: list[int]) -> Expr:
    a = call.attrs
    return relax.op.nn.conv2d(
        call.args[0],
        weight,
        a.strides,
        a.padding,
        dilation,
        a.groups,
        a.data_layout,
        a.kernel_layout,
        a.out_layout,
        a.out_dtype,
    )
