"""Float convolutions and dense layers as tagged kernels, so that targets can schedule them too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import bias_of, obstacle

_KINDS = {"relax.nn.conv2d": "conv2d", "relax.matmul": "dense"}


@tvm.transform.module_pass(opt_level=0, name="LowerFloat")
@dataclass(frozen=True)
class LowerFloat:
    """Turn float conv2d and dense with constant weights into ``fconv2d`` and ``fdense`` kernels.

    In: any module whose ``main`` is NHWC. Out: bias and clamp inside the kernel where nothing else
    reads what is between; everything else as it was.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``; a module without such layers comes back unchanged."""
        func = ir.main_function(mod)
        heads = {var: value for var, value in ir.bindings(func) if _lowerable(value)}
        if not heads:
            return mod
        with ir.Emitter(mod) as out:
            env = _rewrite(func, heads, out)
            outputs = [env.get(var, var) for var in ir.output_vars(func)]
            return out.finish(outputs, ir.returns_tuple(func))


def _lowerable(value: relax.Expr) -> bool:
    kind = _KINDS.get(ir.op_name(value))
    return kind is not None and str(value.ty.dtype) == "float32" and not obstacle(kind, value)


def _rewrite(
    func: relax.Function, heads: dict[relax.Var, Call], out: ir.Emitter
) -> dict[relax.Var, relax.Expr]:
    env: dict[relax.Var, relax.Expr] = {}
    ends = {members[-1]: members for members in (_members(func, head) for head in heads)}
    inside = {var for members in ends.values() for var in members[:-1]}
    for var, value in ir.bindings(func):
        if var in ends:
            env[var] = _emit(func, ends[var], env, out)
        elif isinstance(value, relax.Var | relax.Tuple):
            env[var] = ir.substitute(value, env)
        elif var not in inside:
            env[var] = out.emit(ir.substitute(value, env), var.name)
    return env


def _members(func: relax.Function, head: relax.Var) -> list[relax.Var]:
    """The layer, its bias and its clamp, as far as they have a single reader."""
    users, defined = ir.consumers(func), ir.definitions(func)
    results = ir.output_vars(func)
    members = [head]
    for stage in (_is_bias, _is_clamp):
        following = users.get(members[-1], [])
        if len(following) == 1 and members[-1] not in results and stage(head, defined[following[0]]):
            members.append(following[0])
    return members


def _is_bias(head: relax.Var, value: relax.Expr) -> bool:
    return ir.op_name(value) == "relax.add" and bias_of(head, value) is not None


def _is_clamp(_head: relax.Var, value: relax.Expr) -> bool:
    return ir.op_name(value) in ("relax.nn.relu", "relax.clip")


def _emit(
    func: relax.Function, members: list[relax.Var], env: dict[relax.Var, relax.Expr], out: ir.Emitter
) -> relax.Expr:
    defined = ir.definitions(func)
    head = defined[members[0]]
    bias: Array | None = None
    params: dict[str, Any] = {"lo": None, "hi": None}
    for member in members[1:]:
        value = defined[member]
        if ir.op_name(value) == "relax.add":
            bias = bias_of(members[0], value)
        else:
            params.update(_bounds(value))
    weight = head.args[1].value.numpy()
    if ir.op_name(head) == "relax.nn.conv2d":
        params |= _geometry(head)
    else:
        weight = np.ascontiguousarray(weight.T)
    if bias is None:
        bias = np.zeros(weight.shape[0], "float32")
    source = env.get(head.args[0], head.args[0])
    return _call(
        members[-1], "fconv2d" if "groups" in params else "fdense", params, (source, weight, bias), out
    )


def _call(
    end: relax.Var, name: str, params: dict[str, Any], args: tuple[relax.Expr, Array, Array], out: ir.Emitter
) -> relax.Expr:
    operands = [args[0], ir.const(args[1]), ir.const(args[2])]
    spec: TensorSpec = ir.spec_of(end)
    func = build_kernel(name, params, [ir.spec_of(operand) for operand in operands], spec)
    ty = relax.TensorType(spec.shape, spec.dtype)
    return out.emit(
        relax.call_tir(out.bb.add_func(func.without_attr("global_symbol"), name), operands, ty), end.name
    )


def _bounds(value: Call) -> dict[str, float | None]:
    if ir.op_name(value) == "relax.nn.relu":
        return {"lo": 0.0, "hi": None}
    lo, hi = float(value.args[1].value), float(value.args[2].value)
    return {"lo": lo if np.isfinite(lo) else None, "hi": hi if np.isfinite(hi) else None}


def _geometry(call: Call) -> dict[str, Any]:
    attrs = call.attrs
    padding = [int(p) for p in attrs.padding]
    return {
        "strides": [int(s) for s in attrs.strides],
        "padding": padding * (4 // len(padding)),
        "dilation": [int(d) for d in attrs.dilation],
        "groups": int(attrs.groups),
    }
