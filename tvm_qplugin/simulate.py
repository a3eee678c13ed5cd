"""Run a QDQ module through the numpy oracle: what every compiled artifact must equal, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.build import compile_function
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels import extra_constants
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.select_kernels import kernel_of


class Simulator:
    """The oracle's answer for a QDQ module.

    Integer kernels and integer data movement run in numpy; float islands, whose results depend on
    the order of summation, run as TVM compiles them.
    """

    def __init__(self, module: IRModule) -> None:
        self.module = tvm.transform.Sequential([LowerInteger(storage="int8")])(module)
        self._func = ir.main_function(self.module)
        self._float: dict[relax.Var, Callable[[Sequence[Array]], list[Array]]] = {}

    def run(self, *arrays: Array) -> list[Array]:
        """Outputs for one set of inputs (shapes and dtypes of the module's parameters)."""
        env: dict[relax.Var, Any] = dict(zip(self._func.params, arrays, strict=True))
        for var, value in ir.bindings(self._func):
            env[var] = self._evaluate(var, value, env)
        return [env[var] for var in ir.output_vars(self._func)]

    def tensors(self, *arrays: Array) -> dict[str, Array]:
        """Every intermediate tensor by name, for comparing layer by layer."""
        env: dict[relax.Var, Any] = dict(zip(self._func.params, arrays, strict=True))
        for var, value in ir.bindings(self._func):
            env[var] = self._evaluate(var, value, env)
        return {var.name: value for var, value in env.items() if isinstance(value, np.ndarray)}

    def _evaluate(self, var: relax.Var, value: relax.Expr, env: dict[relax.Var, Any]) -> Any:
        if isinstance(value, relax.Var):
            return env[value]
        if isinstance(value, relax.Tuple):
            return tuple(self._argument(field, env) for field in value.fields)
        if isinstance(value, relax.TupleGetItem):
            return env[value.tuple_value][value.index]
        kernel = kernel_of(self.module, value)
        if kernel is not None:
            args = [self._argument(arg, env) for arg in value.args[1].fields]
            extra = len(extra_constants(kernel.name, kernel.params, kernel.args))
            return ORACLE[kernel.name](kernel.params, *args[: len(args) - extra], kernel.out.dtype)
        move = _MOVEMENT.get(ir.op_name(value))
        if move is not None:
            return move(value, [self._argument(arg, env) for arg in value.args[:1]])
        return self._compiled(var, value, env)

    def _argument(self, expr: relax.Expr, env: dict[relax.Var, Any]) -> Any:
        if isinstance(expr, relax.Tuple):
            return tuple(self._argument(field, env) for field in expr.fields)
        array = ir.const_value(expr)
        return env[expr] if array is None else array

    def _compiled(self, var: relax.Var, value: relax.Expr, env: dict[relax.Var, Any]) -> Any:
        used = list(dict.fromkeys(ir.variables(value)))
        if var not in self._float:
            self._float[var] = compile_function(_single(value, used))
        flat = [field for v in used for field in (env[v] if isinstance(env[v], tuple) else (env[v],))]
        result = self._float[var](flat)
        return tuple(result) if isinstance(value.ty, relax.TupleType) else result[0]


def simulate(module: IRModule, *arrays: Array) -> list[Array]:
    """The oracle's outputs of a QDQ module for one set of inputs."""
    return Simulator(module).run(*arrays)


def _single(value: relax.Expr, used: list[relax.Var]) -> IRModule:
    """A module that computes just one binding."""
    bb = relax.BlockBuilder()
    params = [relax.Var(v.name, v.ty) for v in used]
    with bb.function("main", params):
        with bb.dataflow():
            out = bb.emit_output(ir.substitute(value, dict(zip(used, params, strict=True))))
        bb.emit_func_output(out)
    return bb.get()


def _slice(call: tvm.ir.Call, args: list[Array]) -> Array:
    axes, begin, end = ([int(i) for i in field.fields] for field in call.args[1:4])
    strides = [int(i) for i in call.args[4].fields] if len(call.args) > 4 else [1] * len(axes)
    index = [slice(None)] * args[0].ndim
    for axis, first, last, step in zip(axes, begin, end, strides, strict=True):
        index[axis] = slice(first, last if step > 0 or last >= 0 else None, step)
    return args[0][tuple(index)]


def _take(call: tvm.ir.Call, args: list[Array]) -> Array:
    axis = None if call.attrs.axis is None else int(call.attrs.axis)
    return np.take(args[0], call.args[1].value.numpy(), axis=axis)


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
