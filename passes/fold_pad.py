"""Zeros padded in front of a convolution as the convolution's own padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.passes.rebuild import Rebuilder, op_name, rebuild_main

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="FoldPad")
@dataclass(frozen=True)
class FoldPad:
    """Add the zeros that are padded at height and width to the padding of the convolution behind.

    In: a float module in NHWC. Out: the same function; what is SAME padding then needs no PAD in a
    ``.tflite``. The values are the same: both pad with zeros.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Fold)


class _Fold(Rebuilder):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """A convolution of the image before it was padded."""
        if op_name(call) != "nn.conv2d" or call.attrs.data_layout != "NHWC":
            return call
        pad: Expr = self.defined.get(call.args[0])
        if op_name(pad) != "nn.pad" or not _zeros_around(pad):
            return call
        top, bottom, left, right = (int(width) for width in pad.attrs.pad_width[2:6])
        a = call.attrs
        padding = [int(n) + more for n, more in zip(a.padding, (top, left, bottom, right), strict=True)]
        return relax.op.nn.conv2d(
            pad.args[0],
            call.args[1],
            a.strides,
            padding,
            a.dilation,
            a.groups,
            a.data_layout,
            a.kernel_layout,
            a.out_layout,
            a.out_dtype,
        )


def _zeros_around(pad: Expr) -> bool:
    """Zeros, none of them negative in number, at height and width only."""
    widths = [int(width) for width in pad.attrs.pad_width]
    constant = pad.attrs.pad_mode == "constant" and float(pad.attrs.pad_value) == 0.0
    return constant and len(widths) == 8 and not any(widths[:2] + widths[6:]) and min(widths) >= 0
