"""Divisions by a root mean square that stand in a model as square, mean and root: one operator each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.passes.fuse_layer_norm import NormParts
from tvm_qplugin.passes.rebuild import constant, op_name, rebuild_main, shape_of, value_of

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="FuseRMSNorm")
@dataclass(frozen=True)
class FuseRMSNorm:
    """Recognize RMS norms of the last axis, with or without constant scales (Zhang and Sennrich 2019).

    In: a float module, constants on the right. Out: ``R.nn.rms_norm`` for
    ``x / sqrt(mean(x**2) + epsilon) * gamma``, in the spellings that ``FuseLayerNorm`` knows. Squares would
    lose most in few bits.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Fuse)


class _Fuse(NormParts):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """The operator where the quotient stands; a multiplication behind one scales it."""
        normal, gamma = self.affine(call, "multiply")
        if op_name(normal) == "nn.rms_norm" and gamma is not None:
            x, known = normal.args[0], value_of(normal.args[1])
            if known is None or gamma.size != known.size or gamma.shape[-1] != known.size:
                return call
            return _norm(x, known * gamma.reshape(-1), float(normal.attrs.epsilon))
        parts = self.by_root(call)
        if parts is None or not parts[0].same_as(parts[1]):
            return call
        return _norm(parts[0], np.ones(shape_of(parts[0])[-1]), parts[2])


def _norm(x: Expr, gamma: Any, epsilon: float) -> Expr:
    return relax.op.nn.rms_norm(x, constant(gamma.astype("float32")), axes=[-1], epsilon=epsilon)
