"""A model in float with int8 weights, run layer by layer, where each can be changed before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, IRModule

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.layer_walk import Layer, LayerWalk
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import ExpandWeights, stored_arguments, stored_constant
from tvm_qplugin.passes.float_layers import FloatLayer, layers_of


class StoredWalk(LayerWalk):
    """Runs samples through a module of a scheme such as ``dynamic``, as it is compiled.

    Its layers are those with int8 weights. ``bias`` is float32 here, and ``unit`` 1.
    """

    def __init__(self, stored: IRModule, samples: Sequence[list[Array]]) -> None:
        func = ir.main_function(stored)
        self._named = {var.name: var for var, _ in ir.bindings(func)}
        self._found = {self._named[layer.members[0].name]: layer for layer in _layers(stored)}
        self._results, self._as_tuple = ir.output_vars(func), ir.returns_tuple(func)
        super().__init__(stored, samples)

    def module(self) -> IRModule:
        """The module as it was changed."""
        env: dict[relax.Var, relax.Expr] = {}
        with ir.Emitter(self.mod) as out:
            for var, value in self._bound.items():
                env[var] = out.emit(ir.substitute(value, env), var.name)
            return out.finish([env.get(var, var) for var in self._results], self._as_tuple)

    def _lowered(self, quantized: IRModule) -> IRModule:
        return quantized

    def _is_remade(self, var: relax.Var) -> bool:
        """Stored constants too: what is compiled knows its weights."""
        return super()._is_remade(var) or stored_constant(self.mod, self._bound[var]) is not None

    def _source(self, var: relax.Var) -> relax.Var:
        return self._bound[var].args[0]

    def _layer(self, var: relax.Var) -> Layer | None:
        layer = self._found.get(var)
        if layer is None or layer.grid is None:
            return None
        outputs = len(layer.weight)
        scale = np.broadcast_to(layer.grid.scale.reshape(-1), (outputs,)).astype("float64")
        end = layer.members[-1].name
        return Layer(end, layer.kernel, layer.params, layer.weight, layer.bias, scale, np.ones(outputs))

    def _change(self, var: relax.Var, layer: Layer) -> None:
        old = self._found[var]
        assert old.grid is not None
        weight = layer.weight.T if layer.dense else layer.weight
        self._bound[self._bound[var].args[1]] = ir.dequantize(ir.const(weight), old.grid)
        total = next((m for m in self._members(old) if ir.op_name(self._bound[m]) == "relax.add"), None)
        if total is not None:
            self._bound[total] = self._added(total, layer.bias)
        elif layer.bias.any():
            self._bound[var] = relax.op.add(self._bound[var], ir.const(layer.bias))

    def _members(self, layer: FloatLayer) -> list[relax.Var]:
        return [self._named[member.name] for member in layer.members]

    def _added(self, total: relax.Var, bias: Array) -> Call:
        """The sum with another bias."""
        call = self._bound[total]
        constant = {arg for arg in call.args if not isinstance(arg, relax.Var) or arg in self._remade}
        args = [ir.const(bias) if arg in constant else arg for arg in call.args]
        return Call(call.op, args, call.attrs, call.ty_args, ret_ty=call.ty)


def _layers(stored: IRModule) -> list[FloatLayer]:
    """The layers with int8 weights; their variables are those of the expanded module."""
    known = stored_arguments(stored)
    expanded = tvm.transform.Sequential([ExpandWeights()])(stored)
    found: Mapping[relax.Var, FloatLayer] = layers_of(ir.main_function(expanded), known)
    return [layer for layer in found.values() if layer.grid is not None]
