"""Run a module through the numpy oracle: what compiled artifacts and LiteRT must equal, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.core import dynamic
from tvm_qplugin.core.errors import InputError
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.island import Island
from tvm_qplugin.kernels import extra_constants
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import ExpandWeights, float_arguments
from tvm_qplugin.passes.float_layers import FloatLayer, layers_of
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.select_kernels import kernel_of

Step = Callable[[Mapping[relax.Var, Array]], dict[relax.Var, Array]]


class Simulator:
    """The oracle's answer for a QDQ module, or for one of the scheme ``dynamic``.

    Integer kernels and integer data movement run in numpy; float islands, whose results depend on
    the order of summation and on what is fused, run as TVM compiles them, each as a whole. Layers with
    int8 weights and float inputs run as LiteRT runs them (``core/dynamic.py``), whether or not ``build`` has
    kernels for that.
    """

    def __init__(self, module: IRModule) -> None:
        stored = {key: found for key, found in float_arguments(module).items() if found.grid}
        passes = [ExpandWeights(grouped=False), LowerInteger(storage="int8")]
        self.module = tvm.transform.Sequential(passes)(module)
        self._func = ir.main_function(self.module)
        layers = layers_of(self._func, stored) if stored else {}
        self._steps = steps_of(self.module, {v: layer for v, layer in layers.items() if layer.grid})

    def run(self, *arrays: Array) -> list[Array]:
        """Outputs for one set of inputs; InputError unless they fit the module's parameters."""
        env = self._evaluate(arrays)
        return [env[var] for var in ir.output_vars(self._func)]

    def tensors(self, *arrays: Array) -> dict[str, Array]:
        """Every integer tensor, and every float one that leaves an island, by name."""
        return {var.name: value for var, value in self._evaluate(arrays).items()}

    def _evaluate(self, arrays: Sequence[Array]) -> dict[relax.Var, Array]:
        _check(self._func.params, arrays)
        env: dict[relax.Var, Array] = dict(zip(self._func.params, arrays, strict=True))
        for step in self._steps:
            env |= step(env)
        return env


def simulate(module: IRModule, *arrays: Array) -> list[Array]:
    """The oracle's outputs of a QDQ or dynamic-range module for one set of inputs; see ``Simulator``."""
    return Simulator(module).run(*arrays)


def _check(params: Sequence[relax.Var], arrays: Sequence[Array]) -> None:
    """InputError unless there is an array of the right shape and dtype for every parameter."""
    expected = [ir.spec_of(param) for param in params]
    given = [(np.shape(array), str(getattr(array, "dtype", type(array).__name__))) for array in arrays]
    if given != [(spec.shape, spec.dtype) for spec in expected]:
        wanted = ", ".join(f"{p.name}: {s.dtype} {s.shape}" for p, s in zip(params, expected, strict=True))
        raise InputError(f"arrays given: {given or 'none'}; expected {wanted}; pass one array for each")


def steps_of(mod: IRModule, layers: Mapping[relax.Var, FloatLayer] | None = None) -> list[Step]:
    """A lowered module in an order in which every float island runs at once.

    ``layers``: those that quantize their input at run time, by the variable of their result. The depth of
    a tensor is the largest number of float islands behind it, up to an output. Floats of equal depth are
    compiled together, as FuseOps sees them; integers of that depth come before them.
    """
    func, layers = ir.main_function(mod), layers or {}
    inside = {member for layer in layers.values() for member in layer.members[:-1]}
    bound = {
        var: layers[var].head if var in layers else value
        for var, value in ir.bindings(func)
        if var not in inside and not isinstance(value, relax.Var | relax.Tuple)
    }
    floats = {var for var, value in bound.items() if var not in layers and not _in_numpy(mod, value)}
    depth = _depths(bound, floats)
    steps: list[Step] = []
    for level in sorted(set(depth.values()), reverse=True):
        here = [var for var in bound if depth[var] == level]
        for var in here:
            if var in layers:
                steps.append(_Layer(var, layers[var]))
            elif var not in floats:
                steps.append(_Integer(mod, var, bound[var]))
        island = {var: bound[var] for var in here if var in floats}
        if island:
            rest = [value for var, value in bound.items() if var not in island]
            read = {used for value in rest for used in ir.variables(value)} | set(ir.output_vars(func))
            steps.append(Island(mod, island, [var for var in island if var in read]))
    return steps


def _depths(bound: Mapping[relax.Var, relax.Expr], floats: set[relax.Var]) -> dict[relax.Var, int]:
    depth: dict[relax.Var, int] = {}
    for var, value in reversed(list(bound.items())):
        depth.setdefault(var, 0)
        for used in ir.variables(value):
            step = int(used in floats and var not in floats)
            depth[used] = max(depth.get(used, 0), depth[var] + step)
    for var, value in bound.items():
        if isinstance(value, relax.TupleGetItem):
            depth[var] = depth[value.tuple_value]
    return depth


def _in_numpy(mod: IRModule, value: relax.Expr) -> bool:
    moved = ir.op_name(value) in _MOVEMENT and str(value.ty.dtype) in ("int8", "uint8", "int16")
    looked_up = ir.op_name(value) == "relax.take" and ir.const_value(value.args[1]) is None
    kernel = kernel_of(mod, value)
    return (moved and not looked_up) or (kernel is not None and kernel.name != "wexpand")


@dataclass
class _Integer:
    """One kernel or movement of integers, in numpy."""

    mod: IRModule
    var: relax.Var
    value: Any

    def __call__(self, env: Mapping[relax.Var, Array]) -> dict[relax.Var, Array]:
        kernel = kernel_of(self.mod, self.value)
        if kernel is None:
            move = _MOVEMENT[ir.op_name(self.value)]
            tensors = self.value.args[: 2 if move is _take else 1]
            return {self.var: move(self.value, [_argument(arg, env) for arg in tensors])}
        args = [_argument(arg, env) for arg in self.value.args[1].fields]
        extra = len(extra_constants(kernel.name, kernel.params, kernel.args))
        result = ORACLE[kernel.name](kernel.params, *args[: len(args) - extra], kernel.out.dtype)
        return {self.var: result}


@dataclass
class _Layer:
    """One layer with an int8 weight and a float input, as LiteRT computes it."""

    var: relax.Var
    layer: FloatLayer

    def __call__(self, env: Mapping[relax.Var, Array]) -> dict[relax.Var, Array]:
        layer, grid = self.layer, self.layer.grid
        assert grid is not None
        run = dynamic.conv2d if layer.kernel == "fconv2d" else dynamic.dense
        source = _argument(layer.source, env)
        return {self.var: run(layer.params, source, layer.weight, grid.scale, layer.bias)}


def _argument(expr: Any, env: Mapping[relax.Var, Array]) -> Any:
    if isinstance(expr, relax.Tuple):
        return tuple(_argument(field, env) for field in expr.fields)
    array = ir.const_value(expr)
    return env[expr] if array is None else array


def _slice(call: tvm.ir.Call, args: list[Array]) -> Array:
    axes, begin, end = ([int(i) for i in field.fields] for field in call.args[1:4])
    strides = [int(i) for i in call.args[4].fields] if len(call.args) > 4 else [1] * len(axes)
    index = [slice(None)] * args[0].ndim
    for axis, first, last, step in zip(axes, begin, end, strides, strict=True):
        index[axis] = slice(first, None if last < -args[0].shape[axis] and step < 0 else last, step)
    return args[0][tuple(index)]


def _take(call: tvm.ir.Call, args: list[Array]) -> Array:
    axis = None if call.attrs.axis is None else int(call.attrs.axis)
    return np.take(args[0], args[1], axis=axis, mode="clip" if str(call.attrs.mode) == "clip" else "wrap")


def _permute(call: tvm.ir.Call, args: list[Array]) -> Array:
    axes = call.attrs.axes
    return args[0].transpose(None if axes is None else [int(a) for a in axes])


_MOVEMENT: dict[str, Callable[[tvm.ir.Call, list[Any]], Array]] = {
    "relax.reshape": lambda call, args: args[0].reshape(ir.spec_of(call).shape),
    "relax.concat": lambda call, args: np.concatenate(args[0], axis=int(call.attrs.axis)),
    "relax.permute_dims": _permute,
    "relax.strided_slice": _slice,
    "relax.take": _take,
}
