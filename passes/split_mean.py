"""Split means over large images, which small devices do not take in one piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.passes.rebuild import Rebuilder, op_name, rebuild_main, shape_of

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="SplitMean")
@dataclass(frozen=True)
class SplitMean:
    """Average over small windows first where a mean over height and width has more than ``limit`` pixels.

    In: a float module in NHWC. Out: such means as ``avg_pool2d`` with windows that tile the image and a
    mean of at most ``limit`` pixels: equal in real numbers, within half a step of the input's scale where
    the pool is quantized. The Edge TPU maps a mean over [1, 64, 128, 3], not one over [1, 256, 128, 3]:
    hence the default.
    """

    limit: int = 64 * 128

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, lambda func: _Split(func, self.limit))


class _Split(Rebuilder):
    def __init__(self, func: relax.Function, limit: int) -> None:
        """Means of up to ``limit`` pixels stay."""
        super().__init__(func)
        self.limit = limit

    def rewrite(self, call: Expr, name: str) -> Expr:
        """A pool in front of the mean."""
        if op_name(call) != "mean":
            return call
        x, shape = call.args[0], shape_of(call.args[0])
        axes = range(len(shape)) if call.attrs.axis is None else call.attrs.axis
        reduced = sorted(int(axis) % len(shape) for axis in axes)
        if len(shape) != 4 or not {1, 2} <= set(reduced) or shape[1] * shape[2] <= self.limit:
            return call
        window = tile_of(shape[1], shape[2], self.limit)
        pooled = relax.op.nn.avg_pool2d(x, window, window, layout="NHWC", out_layout="NHWC", padding=[0] * 4)
        return relax.op.mean(pooled, reduced, keepdims=bool(call.attrs.keepdims))


def tile_of(height: int, width: int, limit: int) -> tuple[int, int]:
    """The smallest window that tiles an image so that at most ``limit`` tiles remain.

    >>> tile_of(256, 128, 64 * 128)
    (2, 2)
    """
    windows = [(h, w) for h in _divisors(height) for w in _divisors(width)]
    fitting = [(h, w) for h, w in windows if (height // h) * (width // w) <= limit]
    return min(fitting, key=lambda window: (window[0] * window[1], max(window)))


def _divisors(extent: int) -> list[int]:
    return [i for i in range(1, extent + 1) if extent % i == 0]
