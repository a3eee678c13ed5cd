"""Give quantized layers other int8 weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.quantized_layers import layers_called
from tvm_qplugin.passes.rebuild import Rebuilder, edit_weight, op_name, rebuild_main, with_args

Expr = Any
Var = Any


@tvm.transform.module_pass(opt_level=0, name="RoundAdaptively")
@dataclass(frozen=True)
class RoundAdaptively:
    """Replace the int8 weights of convolutions and dense layers; their scales stay.

    In: a QDQ module; ``weights`` maps a layer, by the name of its output tensor, to int8 with the output
    channels first (dense: [N, K]). Out: the same with these weights. Raises ModelError for a name
    that is no quantized layer.
    """

    weights: Mapping[str, Array]

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        layers = {layer.product: name for name, layer in layers_called(mod, self.weights).items()}
        return rebuild_main(mod, lambda func: _Rounding(func, self.weights, layers))


class _Rounding(Rebuilder):
    def __init__(self, func: relax.Function, weights: Mapping[str, Array], layers: Mapping[Var, str]) -> None:
        """``layers`` names the layer that a product belongs to."""
        super().__init__(func)
        self.weights, self.layers = weights, layers

    def visit(self, var: Var, value: Expr) -> None:
        """The product of a layer gets its new weight."""
        if var not in self.layers:
            return super().visit(var, value)
        call = self.mapped(value)
        weight = self.weights[self.layers[var]]
        stored = weight.T if op_name(call) == "matmul" else weight
        axes = {axis: axis for axis in range(stored.ndim)}
        edited = edit_weight(call.args[1], self.defined.get, lambda _: stored, axes)
        self.known[var] = self.emit(with_args(call, [call.args[0], edited]), var.name)
