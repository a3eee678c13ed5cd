"""Add integers to the biases of quantized layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.quantized_layers import layers_called
from tvm_qplugin.passes.rebuild import Rebuilder, op_name, rebuild_main, with_args

Expr = Any
Var = Any


@tvm.transform.module_pass(opt_level=0, name="CorrectBias")
@dataclass(frozen=True)
class CorrectBias:
    """Shift the int32 biases of convolutions and dense layers.

    In: a QDQ module; ``shifts`` maps a layer, by the name of its output tensor, to int64 [O] in units of its
    bias (input scale times weight scale). Out: the same with other biases; a layer that has none gets
    one. Raises ModelError for a name that is no quantized layer.
    """

    shifts: Mapping[str, Array]

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        layers = {layer.total: name for name, layer in layers_called(mod, self.shifts).items()}
        return rebuild_main(mod, lambda func: _Shifting(func, self.shifts, layers))


class _Shifting(Rebuilder):
    def __init__(self, func: relax.Function, shifts: Mapping[str, Array], layers: Mapping[Var, str]) -> None:
        """``layers`` names the layer that a sum belongs to."""
        super().__init__(func)
        self.shifts, self.layers = shifts, layers

    def visit(self, var: Var, value: Expr) -> None:
        """The sum of a layer gets its new bias."""
        if var not in self.layers:
            return super().visit(var, value)
        name, call = self.layers[var], self.mapped(value)
        if op_name(call) == "add":
            self.known[var] = self.emit(with_args(call, self._shifted(call, name)), var.name)
        else:
            product = self.emit(call, self.fresh(f"{var.name}_product"))
            bias = self._bias(np.zeros_like(self.shifts[name]), self._params(call, name), name)
            self.known[var] = self.emit(relax.op.add(product, bias), var.name)

    def _shifted(self, call: Expr, name: str) -> list[Expr]:
        """The operands of the addition with the constant one shifted."""
        for i, arg in enumerate(call.args):
            value: Any = self.defined.get(arg) if isinstance(arg, relax.Var) else None
            array = ir.const_value(value.args[0]) if op_name(value) == "dequantize" else None
            if array is not None and array.dtype == "int32":
                bias = self._bias(array, ir.qparams_of(value), name)
                return [*call.args[:i], bias, *call.args[i + 1 :]]
        raise ModelError(f"{name}: its bias is no dequantized int32 constant; quantize the float model here")

    def _params(self, call: Expr, name: str) -> QuantParams:
        """The parameters that a bias of this layer has: the product of the scales of its operands."""
        x, weight = (ir.qparams_of(self.defined[arg]) for arg in call.args)
        if x is None or weight is None:
            raise ModelError(f"{name}: its input or its weight is not quantized")
        scale = np.broadcast_to(np.float32(x.scale) * weight.scale, self.shifts[name].shape)
        return QuantParams.of(scale, 0, "int32", 0)

    def _bias(self, old: Array, params: QuantParams | None, name: str) -> Expr:
        assert params is not None
        new = np.clip(old.astype("int64") + self.shifts[name], *INTEGER_RANGE["int32"])
        made = ir.dequantize(ir.const(new.astype("int32")), params)
        return self.emit(made, self.fresh(f"{name}_bias_corrected_dq"))
