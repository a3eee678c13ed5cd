"""The schemes ``weight_int8`` and ``weight_int4``: weights of dense layers in few bits, all else in float."""

from __future__ import annotations

from dataclasses import dataclass, field

import tvm
from tvm import IRModule, relax
from tvm.ir import Call
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.grouped import Grouped, quantize_grouped
from tvm_qplugin.core.recipe import WEIGHT_ONLY, Recipe
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import check_rules, group
from tvm_qplugin.passes.op_kinds import KINDS, obstacle
from tvm_qplugin.passes.stored import labelled


@tvm.transform.module_pass(opt_level=0, name="QuantizeWeightOnly")
@dataclass(frozen=True)
class QuantizeWeightOnly:
    """Store the weights of dense layers as integers with scales of groups along the reduction.

    In: a canonical float module. Out: the same with constant weights [K, N] as calls of the kernel
    ``wexpand`` of codes [N, K] and scales (see ``core/grouped.py``), attribute ``qplugin.scheme``. Weights of
    fewer than ``smallest`` elements stay float; the reason stands in ``qplugin.reasons``. Of a QDQ
    module, which gets no ``qplugin.scheme``, only layers in float are looked at.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe("weight_int4", "weight_int4"))
    smallest: int = 1024

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        check_rules(self.recipe)
        func = ir.main_function(mod)
        env: dict[relax.Var, relax.Expr] = {}
        with ir.Emitter(mod) as out:
            work = _Layers(self, func, out)
            for var, value in ir.bindings(func):
                new = ir.substitute(value, env)
                alias = isinstance(value, relax.Var | relax.Tuple)
                env[var] = new if alias else out.emit(work.stored(new, var.name), var.name)
            outputs = [env.get(var, var) for var in ir.output_vars(func)]
            return labelled(out.finish(outputs, ir.returns_tuple(func)), self.recipe, work.reasons)


class _Layers:
    """The dense layers of a function; those that share a weight, as unrolled cells do, share it stored."""

    def __init__(self, how: QuantizeWeightOnly, func: relax.Function, out: ir.Emitter) -> None:
        self.how, self.out = how, out
        self.kinds = {member: (op.kind, op.output) for op in group(func) for member in op.members}
        self.reasons: dict[str, str] = {}
        self.known: dict[tuple[relax.Expr, int, int], relax.Var] = {}

    def stored(self, call: relax.Expr, name: str) -> relax.Expr:
        """A product with a stored weight; any other value, and one with a reason against it, as it was."""
        if KINDS.get(ir.op_name(call)) != "dense":
            return call
        choice = self.how.recipe.choose(*self.kinds[name])
        if choice.scheme not in WEIGHT_ONLY:
            return call
        if reason := self._reason(call):
            self.reasons[name] = reason
            return call
        bits, default = WEIGHT_ONLY[choice.scheme]
        key = call.args[1], bits, default if choice.group is None else choice.group
        if key not in self.known:
            weight = quantize_grouped(call.args[1].value.numpy().T, *key[1:])
            self.known[key] = self.out.emit(expand(weight, self.out), f"{name}_weight")
        return Call(call.op, [call.args[0], self.known[key]], call.attrs, call.ty_args)

    def _reason(self, call: Call) -> str:
        """Why a weight stays float; empty if it does not."""
        reason, size = obstacle("dense", call), ir.spec_of(call.args[1]).size
        if not reason and size < self.how.smallest:
            return f"its weight has {size} elements, fewer than {self.how.smallest}"
        return reason


def expand(stored: Grouped, out: ir.Emitter) -> Call:
    """The call of ``wexpand`` that gives the weight [K, N] back."""
    args = [ir.const(stored.codes), ir.const(stored.scale)]
    spec = TensorSpec((stored.depth, len(stored.codes)), "float32")
    func = build_kernel("wexpand", stored.params, [ir.spec_of(arg) for arg in args], spec)
    known = out.bb.add_func(func.without_attr("global_symbol"), "wexpand")
    return relax.call_tir(known, args, relax.TensorType(spec.shape, spec.dtype))
