"""Write down what batch norms know of their outputs, before they are folded away."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.qparams import Array, pack_floats, unpack_floats
from tvm_qplugin.passes import ir

NORMS = "qplugin.norms"
"""Attribute of ``main``: mean and standard deviation of each channel of tensors, a JSON object by name."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of every channel of a tensor, float32 [C]."""

    mean: Array
    std: Array


@tvm.transform.module_pass(opt_level=0, name="NoteBatchNorm")
@dataclass(frozen=True)
class NoteBatchNorm:
    """Keep the offset and factor of every batch norm as the moments of its output.

    In: ``main`` with ``nn.batch_norm`` and the selection of its first result. Out: the same with the
    attribute ``qplugin.norms`` (see ``norms_of``). In training a batch norm puts out the mean beta and the
    deviation gamma.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Read the constants."""
        func = ir.main_function(mod)
        defined, found = ir.definitions(func), {}
        for var, value in ir.bindings(func):
            norm = defined.get(value.tuple_value) if isinstance(value, relax.TupleGetItem) else None
            if norm is None or ir.op_name(norm) != "relax.nn.batch_norm" or value.index != 0:
                continue
            gamma, beta = (ir.const_value(arg) for arg in norm.args[1:3])
            if gamma is not None and beta is not None:
                found[var.name] = {"mean": pack_floats(beta), "std": pack_floats(np.abs(gamma))}
        return ir.with_main_attr(mod, NORMS, json.dumps(found)) if found else mod


def norms_of(mod: IRModule) -> Mapping[str, Moments]:
    """The moments that ``NoteBatchNorm`` found; empty where it found none, or did not run."""
    text = (ir.main_function(mod).attrs or {}).get(NORMS)
    entries = json.loads(str(text)) if text else {}
    return {name: Moments(unpack_floats(e["mean"]), unpack_floats(e["std"])) for name, e in entries.items()}
