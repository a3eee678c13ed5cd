"""A residual addition becomes part of the convolution that makes one of its summands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import MEMBERS, REPORT, KernelCall, Params
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.select_kernels import kernel_of

Fuses = Callable[[KernelCall, tvm.target.Target], bool]
SIDES = ("a", "b")


@dataclass(frozen=True)
class _Fusion:
    """A convolution, its variable, and the kernel that also adds ``other``."""

    conv: relax.Var
    other: relax.Var
    kernel: KernelCall


@tvm.transform.module_pass(opt_level=0, name="FuseResidual")
@dataclass(frozen=True)
class FuseResidual:
    """Make ``qconv2d_add`` of a ``qadd`` and a ``qconv2d`` that nothing else reads.

    In: kernels as ``LowerInteger`` leaves them. Out: one kernel in place of two wherever one of ``fuses``
    says that the target has it; ``qplugin.members`` has both variables by that of the sum, which
    ``qplugin.report`` shows to come from that kernel.
    """

    fuses: tuple[Fuses, ...]
    target: tvm.target.Target

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``; a module without such pairs comes back unchanged."""
        func = ir.main_function(mod)
        fusions = self._fusions(mod, func) if self.fuses else {}
        if not fusions:
            return mod
        with ir.Emitter(mod) as out:
            env = _rewrite(func, fusions, out)
            outputs = [env.get(var, var) for var in ir.output_vars(func)]
            return out.finish(outputs, ir.returns_tuple(func), **_attributes(func, fusions))

    def _fusions(self, mod: IRModule, func: relax.Function) -> dict[relax.Var, _Fusion]:
        """By the variable of the sum. The summand that was computed last is preferred."""
        defined, users = ir.definitions(func), ir.consumers(func)
        order = {var: position for position, var in enumerate(defined)}
        kept, found = set(ir.output_vars(func)), dict[relax.Var, _Fusion]()
        for var, value in defined.items():
            add = kernel_of(mod, value)
            if add is None or add.name != "qadd" or add.constants:
                continue
            operands = list(value.args[1].fields)
            for conv in sorted(operands, key=lambda v: order.get(v, -1), reverse=True):
                if len(users[conv]) > 1 or conv in kept or conv not in defined:
                    continue
                kernel = _joined(kernel_of(mod, defined[conv]), add, operands.index(conv))
                if kernel is not None and any(fuses(kernel, self.target) for fuses in self.fuses):
                    found[var] = _Fusion(conv, operands[1 - operands.index(conv)], kernel)
                    break
        return found


def _joined(conv: KernelCall | None, add: KernelCall, side: int) -> KernelCall | None:
    """The convolution and the addition of which it is operand ``side``; None where they cannot be one."""
    if conv is None or conv.name != "qconv2d" or {*add.args, add.out} != {conv.out}:
        return None
    params = {**conv.params, "add": _as_first(add.params, side)}
    return KernelCall("qconv2d_add", params, (*conv.args, add.args[1 - side]), add.out, conv.constants)


def _as_first(p: Params, side: int) -> dict[str, Any]:
    """Parameters of the same sum with operand ``side`` as the first."""
    first, second = SIDES[side], SIDES[1 - side]
    swapped = {
        f"{name}_{key}": p[f"{old}_{key}"]
        for name, old in zip(SIDES, (first, second), strict=True)
        for key in ("zp", "mul")
    }
    return {**p, **swapped}


def _rewrite(
    func: relax.Function, fusions: Mapping[relax.Var, _Fusion], out: ir.Emitter
) -> dict[relax.Var, relax.Expr]:
    env: dict[relax.Var, relax.Expr] = {}
    inside = {fusion.conv for fusion in fusions.values()}
    defined = ir.definitions(func)
    for var, value in ir.bindings(func):
        if var in fusions:
            env[var] = out.emit(_call(fusions[var], defined, env, out), var.name)
        elif isinstance(value, relax.Var | relax.Tuple):
            env[var] = ir.substitute(value, env)
        elif var not in inside:
            env[var] = out.emit(ir.substitute(value, env), var.name)
    return env


def _call(
    fusion: _Fusion,
    defined: Mapping[relax.Var, relax.Expr],
    env: Mapping[relax.Var, relax.Expr],
    out: ir.Emitter,
) -> Call:
    kernel = fusion.kernel
    func = build_kernel(kernel.name, kernel.params, kernel.args, kernel.out).without_attr("global_symbol")
    operands = [*defined[fusion.conv].args[1].fields, fusion.other]
    ty = relax.TensorType(kernel.out.shape, kernel.out.dtype)
    args = [ir.substitute(operand, env) for operand in operands]
    return relax.call_tir(out.bb.add_func(func, kernel.name), args, ty)


def _attributes(func: relax.Function, fusions: Mapping[relax.Var, _Fusion]) -> dict[str, str]:
    """The attributes of ``main`` that tell what a kernel computes."""
    attrs = func.attrs or {}
    members = json.loads(str(attrs.get(MEMBERS, "{}")))
    report = json.loads(str(attrs.get(REPORT, "[]")))
    kernels: dict[str, str] = {}
    for var, fusion in fusions.items():
        members[var.name] = [fusion.conv.name, var.name]
        kernels |= dict.fromkeys(members[var.name], fusion.kernel.name)
    for entry in report:
        entry["kernel"] = kernels.get(entry["variable"], entry["kernel"])
    return {MEMBERS: json.dumps(members), REPORT: json.dumps(report)}
