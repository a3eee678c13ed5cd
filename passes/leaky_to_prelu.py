"""LeakyReLU as PReLU, which more devices have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.passes.rebuild import Rebuilder, constant, op_name, rebuild_main, shape_of

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="LeakyToPRelu")
@dataclass(frozen=True)
class LeakyToPRelu:
    """Write ``leakyrelu`` as ``prelu`` with the same slope for every channel of the last axis.

    In: a float module in NHWC. Out: the same function. In int8 the slope is the largest code of a grid
    of its own, so exact; LiteRT's PRELU rounds twice: its result is within 3/4 of a step of the real one.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Slopes)


class _Slopes(Rebuilder):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """One slope a channel."""
        if op_name(call) != "nn.leakyrelu" or not shape_of(call.args[0]):
            return call
        shape = shape_of(call.args[0])
        slopes = np.full(shape[-1:], float(call.attrs.alpha), "float32")
        return relax.op.nn.prelu(call.args[0], constant(slopes), axis=len(shape) - 1)
