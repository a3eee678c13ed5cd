"""Float convolutions and dense layers as tagged kernels, so that targets can schedule them too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import MEMBERS, TensorSpec
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.float_layers import FloatLayer, layers_of


@tvm.transform.module_pass(opt_level=0, name="LowerFloat")
@dataclass(frozen=True)
class LowerFloat:
    """Turn float conv2d and dense with constant weights into ``fconv2d`` and ``fdense`` kernels.

    In: any module whose ``main`` is NHWC. Out: bias and clamp inside the kernel where nothing else
    reads what is between, ``qplugin.members`` tells of which variables; everything else as it was.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``; a module without such layers comes back unchanged."""
        func = ir.main_function(mod)
        layers = layers_of(func)
        if not layers:
            return mod
        with ir.Emitter(mod) as out:
            env = _rewrite(func, layers, out)
            outputs = [env.get(var, var) for var in ir.output_vars(func)]
            members = {end.name: [m.name for m in layer.members] for end, layer in layers.items()}
            return out.finish(outputs, ir.returns_tuple(func), **{MEMBERS: json.dumps(members)})


def _rewrite(
    func: relax.Function, layers: Mapping[relax.Var, FloatLayer], out: ir.Emitter
) -> dict[relax.Var, relax.Expr]:
    env: dict[relax.Var, relax.Expr] = {}
    inside = {var for layer in layers.values() for var in layer.members[:-1]}
    for var, value in ir.bindings(func):
        if var in layers:
            env[var] = _emit(layers[var], env, out)
        elif isinstance(value, relax.Var | relax.Tuple):
            env[var] = ir.substitute(value, env)
        elif var not in inside:
            env[var] = out.emit(ir.substitute(value, env), var.name)
    return env


def _emit(layer: FloatLayer, env: Mapping[relax.Var, relax.Expr], out: ir.Emitter) -> relax.Expr:
    end = layer.members[-1]
    operands = [env.get(layer.source, layer.source), ir.const(layer.weight), ir.const(layer.bias)]
    spec: TensorSpec = ir.spec_of(end)
    func = build_kernel(layer.kernel, layer.params, [ir.spec_of(operand) for operand in operands], spec)
    ty = relax.TensorType(spec.shape, spec.dtype)
    return out.emit(
        relax.call_tir(out.bb.add_func(func.without_attr("global_symbol"), layer.kernel), operands, ty),
        end.name,
    )
