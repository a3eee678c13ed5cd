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
from tvm_qplugin.passes.op_kinds import KINDS, Fusion, bias_of, obstacle


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
    kind = KINDS.get(ir.op_name(value), "")
    return kind in ("conv2d", "dense") and str(value.ty.dtype) == "float32" and not obstacle(kind, value)


def _rewrite(
    func: relax.Function, heads: dict[relax.Var, Call], out: ir.Emitter
) -> dict[relax.Var, relax.Expr]:
    env: dict[relax.Var, relax.Expr] = {}
    fusion = Fusion.of(func)
    groups = [fusion.members(head, KINDS[ir.op_name(value)]) for head, value in heads.items()]
    ends = {members[-1]: members for members in groups}
    inside = {var for members in groups for var in members[:-1]}
    for var, value in ir.bindings(func):
        if var in ends:
            env[var] = _emit([(m, fusion.defined[m]) for m in ends[var]], env, out)
        elif isinstance(value, relax.Var | relax.Tuple):
            env[var] = ir.substitute(value, env)
        elif var not in inside:
            env[var] = out.emit(ir.substitute(value, env), var.name)
    return env


def _emit(
    members: list[tuple[relax.Var, Call]], env: dict[relax.Var, relax.Expr], out: ir.Emitter
) -> relax.Expr:
    first, head = members[0]
    bias: Array | None = None
    params: dict[str, Any] = {"lo": None, "hi": None}
    for _, value in members[1:]:
        if ir.op_name(value) == "relax.add":
            bias = bias_of(first, value)
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
    name = "fconv2d" if "groups" in params else "fdense"
    return _call(members[-1][0], name, params, (source, weight, bias), out)


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
