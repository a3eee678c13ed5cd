"""The scheme ``dynamic``: int8 weights, activations quantized at run time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import Call
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import DYNAMIC, DYNAMIC_LAYERS
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.core.spec import WEIGHT
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import check_rules, group
from tvm_qplugin.passes.op_kinds import kind_of, obstacle
from tvm_qplugin.passes.rebuild import Rebuilder, constant
from tvm_qplugin.passes.stored import labelled
from tvm_qplugin.passes.weights import quantize_weight

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="QuantizeDynamic")
@dataclass(frozen=True)
class QuantizeDynamic:
    """Store the weights of convolutions and dense layers as int8 behind ``R.dequantize``.

    In: a canonical float module. Out: the same with weights symmetric in [-127, 127], one scale for each
    output channel (for the whole of a dense or ordinary convolution's weight where ``recipe`` says so),
    biases as they were, attribute ``qplugin.scheme`` = "dynamic". Weights of fewer than ``smallest``
    elements stay float, as TFLite's converter leaves them; the reason stands in ``qplugin.reasons``.
    Products of two tensors, both to be quantized at run time, are named in ``qplugin.dynamic``.
    Of a QDQ module, which gets no ``qplugin.scheme``, only layers in float are looked at; what it quantizes
    is named in ``qplugin.dynamic_layers``.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe("dynamic", "dynamic"))
    smallest: int = 1024

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        check_rules(self.recipe)
        work = _Quantize(ir.main_function(mod), self.recipe, self.smallest)
        result = mod.clone()
        result["main"] = work.run()
        if work.products:
            result = ir.with_main_attr(result, DYNAMIC, json.dumps(work.products))
        if work.layers and self.recipe.integer:
            result = ir.with_main_attr(result, DYNAMIC_LAYERS, json.dumps(work.layers))
        return labelled(result, self.recipe, work.reasons)


class _Quantize(Rebuilder):
    def __init__(self, func: relax.Function, recipe: Recipe, smallest: int) -> None:
        super().__init__(func)
        self.recipe, self.smallest = recipe, smallest
        self.kinds = {member: (op.kind, op.output) for op in group(func) for member in op.members}
        self.reasons: dict[str, str] = {}
        self.products: list[str] = []
        self.layers: list[str] = []

    def rewrite(self, call: Expr, name: str) -> Expr:
        """A layer with a quantized weight."""
        kind = kind_of(call)
        if kind not in ("conv2d", "dense", "matmul"):
            return call
        choice = self.recipe.choose(*self.kinds[name])
        if self.recipe.integer and (choice.scheme != "dynamic" or kind == "matmul"):
            return call
        reason = self._reason(call, kind, choice.scheme)
        if reason:
            self.reasons[name] = reason
            return call
        if kind == "matmul":
            self.products.append(name)
            return call
        self.layers.append(name)
        weight = call.args[1].value.numpy()
        per_channel = choice.per_channel or is_depthwise(call)
        axis = (0 if kind == "conv2d" else 1) if per_channel else None
        q, grid = quantize_weight(weight, replace(WEIGHT, axis=axis), None, np.ones(()))
        made = self.emit(ir.dequantize(constant(q), grid), self.fresh(f"{name}_weight_dq"))
        return Call(call.op, [call.args[0], made], call.attrs, call.ty_args)

    def _reason(self, call: Expr, kind: str, scheme: str) -> str:
        """Why a weight stays float; empty if it does not."""
        if scheme != "dynamic":
            return "the recipe keeps it in float" if scheme == "float" else f"its scheme is {scheme}"
        reason, size = obstacle(kind, call), ir.spec_of(call.args[1]).size
        if not reason and kind != "matmul" and size < self.smallest:
            return f"its weight has {size} elements, fewer than {self.smallest}"
        return reason


def is_depthwise(call: Expr) -> bool:
    """A convolution of every channel on its own: TFLite takes it per channel only."""
    if ir.op_name(call) != "relax.nn.conv2d":
        return False
    groups = int(call.attrs.groups)
    return (
        groups > 1 and ir.spec_of(call.args[1]).shape[3] == 1 and ir.spec_of(call.args[0]).shape[3] == groups
    )
