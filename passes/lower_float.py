"""Float convolutions and dense layers as tagged kernels, so that targets can schedule them too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import KERNEL, MEMBERS, REPORT, Implementation, KernelCall, TensorSpec
from tvm_qplugin.core.once import Once
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import Stored
from tvm_qplugin.passes.float_layers import FloatLayer, layers_of
from tvm_qplugin.passes.select_kernels import KernelRule

Dynamic = dict[relax.Var, tuple[FloatLayer, Implementation]]
"""Layers that quantize their input at run time and their kernels, by the last of their members."""


@tvm.transform.module_pass(opt_level=0, name="LowerFloat")
@dataclass(frozen=True)
class LowerFloat:
    """Turn float conv2d and dense with constant weights into ``fconv2d`` and ``fdense`` kernels.

    In: any module whose ``main`` is NHWC. Out: bias and clamp inside the kernel where nothing else
    reads what is between, ``qplugin.members`` tells of which variables; everything else as it was.

    ``stored``: constants as they were before they were expanded (``stored_arguments``). Where a weight was
    int8 and one of ``rules`` has a kernel ``dconv2d`` or ``ddense`` for ``target``, that is called, with the
    weight as it was. Weights and biases that were float16 stay so: the kernels widen what they load. Dense
    layers whose weight has scales of groups become ``wdense``, whatever the target.
    """

    stored: Mapping[tuple[str, int], Stored] = field(default_factory=dict)
    rules: tuple[KernelRule, ...] = ()
    target: tvm.target.Target | None = None

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``; a module without such layers comes back unchanged."""
        func = ir.main_function(mod)
        layers = layers_of(func, {key: found for key, found in self.stored.items() if found.grid is None})
        if not layers:
            return mod
        with ir.Emitter(mod) as out:
            dynamic = self._dynamic(func)
            env = _rewrite(func, layers, dynamic, out)
            outputs = [env.get(var, var) for var in ir.output_vars(func)]
            members = {end.name: [m.name for m in layer.members] for end, layer in layers.items()}
            attributes = {MEMBERS: json.dumps(members), **_report(func, layers, dynamic)}
            return out.finish(outputs, ir.returns_tuple(func), **attributes)

    def _known(self, func: relax.Function) -> dict[relax.Var, FloatLayer]:
        """The layers with their weights as they are stored."""
        return layers_of(func, self.stored) if self.stored else {}

    def _dynamic(self, func: relax.Function) -> Dynamic:
        """The layers whose inputs are quantized at run time, and their kernels."""
        target = self.target
        found: Dynamic = {}
        if target is None:
            return found
        for end, layer in self._known(func).items():
            call = _dynamic_call(layer)
            with target:
                made = next(filter(None, (rule(call, target) for rule in self.rules)), None) if call else None
            if made is not None:
                found[end] = layer, made
        return found


def _dynamic_call(layer: FloatLayer) -> KernelCall | None:
    """A layer as the kernel that takes its int8 weight; None if it has none."""
    if layer.grid is None:
        return None
    scale = layer.grid.scale.reshape(-1)
    arrays = dict(enumerate((layer.weight, scale, layer.bias), 1))
    specs = [TensorSpec(array.shape, str(array.dtype)) for array in arrays.values()]
    name = "dconv2d" if layer.kernel == "fconv2d" else "ddense"
    out = ir.spec_of(layer.members[-1])
    return KernelCall(name, layer.params, (ir.spec_of(layer.source), *specs), out, arrays)


def _report(func: relax.Function, layers: Mapping[relax.Var, FloatLayer], dynamic: Dynamic) -> dict[str, str]:
    """The report, with what the layers are computed in and the bytes of weights that are stored small.

    Layers that quantize their inputs run on integers, with all their members.
    """
    text = (func.attrs or {}).get(REPORT)
    if text is None:
        return {}
    known = {
        member.name: {"kernel": str(made.func.attrs[KERNEL]), "integer": True, "reason": ""}
        for layer, made in dynamic.values()
        for member in layer.members
    }
    once = Once()
    for layer, _ in dynamic.values():
        known[layer.members[0].name]["weight_bytes"] = once.bytes(layer.weight)
    for layer in layers.values():
        reason, arrays = _storage(layer)
        if reason:
            size = sum(map(once.bytes, arrays))
            kernel = layer.kernel if layer.grouped is None else "wdense"
            known[layer.members[0].name] = {"kernel": kernel, "weight_bytes": size, "reason": reason}
    entries = [{**entry, **known.get(entry["variable"], {})} for entry in json.loads(str(text))]
    return {REPORT: json.dumps(entries)}


def _rewrite(
    func: relax.Function,
    layers: Mapping[relax.Var, FloatLayer],
    dynamic: Dynamic,
    out: ir.Emitter,
) -> dict[relax.Var, relax.Expr]:
    env: dict[relax.Var, relax.Expr] = {}
    inside = {var for layer in layers.values() for var in layer.members[:-1]}
    for var, value in ir.bindings(func):
        if var in dynamic:
            layer, made = dynamic[var]
            env[var] = _call(made, layer, env, out)
        elif var in layers:
            env[var] = _emit(layers[var], env, out)
        elif isinstance(value, relax.Var | relax.Tuple):
            env[var] = ir.substitute(value, env)
        elif var not in inside:
            env[var] = out.emit(ir.substitute(value, env), var.name)
    return env


def _call(
    made: Implementation, layer: FloatLayer, env: Mapping[relax.Var, relax.Expr], out: ir.Emitter
) -> relax.Expr:
    source, end = env.get(layer.source, layer.source), layer.members[-1]
    args = [source if isinstance(arg, int) else ir.const(arg) for arg in made.args]
    function = out.bb.add_func(made.func.without_attr("global_symbol"), str(made.func.attrs[KERNEL]))
    return out.emit(relax.call_tir(function, args, end.ty), end.name)


def _storage(layer: FloatLayer) -> tuple[str, Sequence[Array]]:
    """How weights are stored that are not float32, and their arrays."""
    if layer.grouped is not None:
        return f"computed in float32 with a weight of int{layer.grouped.bits}", layer.grouped.arrays
    halves = [array for array in _constants(layer) if array.dtype == "float16"]
    dtype = ir.spec_of(layer.members[-1]).dtype
    return f"computed in {dtype}, stored as float16" if halves else "", halves


def _constants(layer: FloatLayer) -> list[Array]:
    """Weight and bias in the dtypes that they are stored in; what was float16 is so exactly.

    Infinities are float32: not every target widens them in hardware.
    """
    arrays = {1: layer.weight, 2: layer.bias}
    halves = {index for index in layer.halves if np.isfinite(arrays[index]).all()}
    return [array.astype("float16") if index in halves else array for index, array in arrays.items()]


def _emit(layer: FloatLayer, env: Mapping[relax.Var, relax.Expr], out: ir.Emitter) -> relax.Expr:
    end, stored = layer.members[-1], layer.grouped
    constants = _constants(layer)
    weights = constants[:1] if stored is None else stored.arrays
    kernel = layer.kernel if stored is None else "wdense"
    params = layer.params if stored is None else {**layer.params, **stored.params}
    operands = [env.get(layer.source, layer.source), *map(ir.const, weights), ir.const(constants[1])]
    spec: TensorSpec = ir.spec_of(end)
    func = build_kernel(kernel, params, [ir.spec_of(operand) for operand in operands], spec)
    ty = relax.TensorType(spec.shape, spec.dtype)
    function = out.bb.add_func(func.without_attr("global_symbol"), kernel)
    return out.emit(relax.call_tir(function, operands, ty), end.name)
