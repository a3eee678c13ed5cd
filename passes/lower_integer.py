"""QDQ islands become integer kernels: tagged PrimFuncs that compute exactly what the oracle does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import DYNAMIC, DYNAMIC_LAYERS, REPORT, TensorSpec, encode_params
from tvm_qplugin.core.once import Once
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.kernels import build_kernel, extra_constants
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.match_integer import match
from tvm_qplugin.passes.match_tagged import tagged_plan
from tvm_qplugin.passes.op_kinds import KIND_NAMES, kind_of, macs_of, no_kernel, obstacle
from tvm_qplugin.passes.plan import (
    FUNCTIONS,
    GRIDS,
    REASONS,
    Plan,
    Source,
    activation_params,
    full_range,
    requantize_plan,
    shift_array,
    stored,
)
from tvm_qplugin.passes.spread_qdq import spread_qdq


@tvm.transform.module_pass(opt_level=0, name="LowerInteger")
@dataclass(frozen=True)
class LowerInteger:
    """Turn every recognized quantized operator into a ``call_tir`` of an integer kernel.

    In: a QDQ module (NHWC), possibly with tagged kernels. Out: kernels tagged with ``qplugin.kernel``,
    integers stored as ``storage`` (uint8 = value + 128 suits VNNI) between them; what is not recognized
    stays float between ``dequantize`` and ``quantize`` kernels. ``qplugin.report`` lists every operator,
    ``qplugin.grids`` has the scale and zero point of every integer tensor, ``qplugin.functions`` what
    tables stand for.
    """

    storage: str = "int8"

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Plan backwards from the outputs, then emit forwards."""
        mod = spread_qdq(mod)
        func = ir.main_function(mod)
        with ir.Emitter(mod) as out:
            lowering = _Lowering(mod, self.storage, out)
            outputs = lowering.run()
            attributes = {**lowering.attributes(), **dict.fromkeys((REASONS, DYNAMIC, DYNAMIC_LAYERS))}
            return out.finish(outputs, ir.returns_tuple(func), **attributes)


class _Lowering:
    """One run: the plans of live variables and what they were emitted as."""

    def __init__(self, mod: IRModule, storage: str, out: ir.Emitter) -> None:
        self.mod, self.func, self.storage, self.out = mod, ir.main_function(mod), storage, out
        self.defined = ir.definitions(self.func)
        self.users = ir.consumers(self.func)
        self.plans: dict[relax.Var, Plan | None] = {}
        self.env: dict[relax.Var, relax.Expr] = {}
        self.kernels: dict[str, relax.GlobalVar] = {}
        self.dynamic = set(json.loads((self.func.attrs or {}).get(DYNAMIC, "[]")))
        self.reasons = json.loads((self.func.attrs or {}).get(REASONS, "{}"))
        self.report: list[dict[str, Any]] = []
        self.grids: dict[str, QuantParams] = {}
        self.functions: dict[str, dict[str, Any]] = {}
        self.once = Once()

    def attributes(self) -> dict[str, str]:
        """What the lowered function tells about itself, as JSON by attribute."""
        grids = {name: grid.to_json() for name, grid in self.grids.items()}
        found = {REPORT: self.report, GRIDS: grids, FUNCTIONS: self.functions}
        return {key: json.dumps(value) for key, value in found.items()}

    def run(self) -> list[relax.Expr]:
        results = ir.output_vars(self.func)
        self._plan(results)
        for var in self.defined:
            if var in self.plans:
                self.env[var] = self._emit(var, self.plans[var])
        return [self._output(var) for var in results]

    def _plan(self, results: Sequence[relax.Var]) -> None:
        """Which variables are needed, and how each is computed (None: as it stands, in float)."""
        live = set(results)
        for var, value in reversed(self.defined.items()):
            if var not in live:
                continue
            plan = self._plan_of(var, value)
            self.plans[var] = plan
            if plan is None:
                live.update(ir.variables(value))
            else:
                live.update(s.expr for s in plan.sources if isinstance(s.expr, relax.Var))
                live.update(plan.floats)

    def _plan_of(self, var: relax.Var, value: relax.Expr) -> Plan | None:
        name = ir.op_name(value)
        if name == "relax.quantize":
            kept = isinstance(value.args[0], relax.Var) and value.args[0].name in self.reasons
            made = None if kept else match(value, self.defined, self.storage)
            return made or self._quantize(value)
        if name == "relax.dequantize":
            return self._dequantize(var, value, None)
        if name == "relax.call_tir":
            return tagged_plan(self.mod, value)
        if var.name in self.dynamic:
            macs = macs_of(var, value)
            return Plan("matmul", ir.spec_of(var), "dmatmul", floats=tuple(value.args), macs=macs)
        if name == "relax.permute_dims":
            inner = self.defined.get(value.args[0])
            if inner is not None and ir.op_name(inner) == "relax.dequantize":
                return self._dequantize(var, inner, _axes(value))
        return None

    def _quantize(self, call: Call) -> Plan | None:
        """A float tensor enters an island; a transposition before it is done on the way."""
        params = activation_params(call)
        if params is None:
            return None
        grid, source, axes = stored(params, self.storage), call.args[0], None
        if not isinstance(source, relax.Var):
            return None
        inner = self.defined.get(source)
        if inner is not None and ir.op_name(inner) == "relax.permute_dims" and len(self.users[source]) == 1:
            source, axes = inner.args[0], _axes(inner)
        fields = {**full_range(grid), "scale": float(grid.scale), **({"axes": axes} if axes else {})}
        out = TensorSpec(ir.spec_of(call.args[0]).shape, grid.dtype)
        return Plan("quantize", out, "quantize", fields, floats=(source,))

    def _dequantize(self, var: relax.Var, call: Call, axes: list[int] | None) -> Plan | None:
        """An integer tensor leaves an island; constants are simply folded."""
        params = activation_params(call)
        if params is None:
            return None
        if ir.const_value(call.args[0]) is not None:
            return None
        grid = stored(params, self.storage)
        fields = {
            "in_zp": int(grid.zero_point),
            "scale": float(grid.scale),
            **({"axes": axes} if axes else {}),
        }
        source = Source(call.args[0], params, grid)
        return Plan("dequantize", ir.spec_of(var), "dequantize", fields, (source,))

    def _emit(self, var: relax.Var, plan: Plan | None) -> relax.Expr:
        value = self.defined[var]
        if plan is None:
            return self._emit_float(var, value)
        name = self._tensor_name(var, value)
        operands = [self._operand(source, name) for source in plan.sources]
        if plan.rebuild is not None:
            made = self.out.emit(plan.rebuild(operands), name)
        else:
            floats = [self.env.get(v, v) for v in plan.floats]
            made = self._call(name, plan, [*operands, *floats, *(ir.const(c) for c in plan.constants)])
        if plan.kind != "identity":
            self._note(name, made.name, plan)
        self._describe(made.name, value, plan)
        return made

    def _describe(self, name: str, value: relax.Expr, plan: Plan) -> None:
        """Write down the grids of what was just emitted."""
        params = ir.qparams_of(value) if ir.op_name(value) == "relax.quantize" else None
        if params is not None:
            self.grids[name] = stored(params, self.storage)
        if plan.result is not None:
            self.grids[name] = plan.result
        if plan.weight is not None:
            self.grids[f"{name}_weight"] = plan.weight
        for i, source in enumerate(plan.sources):
            if ir.const_value(source.expr) is not None:
                self.grids[f"{name}_{i}"] = source.want
        if plan.function:
            self.functions[name] = dict(plan.function)

    def _emit_float(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        folded = self._folded(value)
        if folded is not None:
            return folded
        if isinstance(value, relax.Var | relax.Tuple):
            return ir.substitute(value, self.env)
        name = ir.op_name(value)
        if _computes(value):
            kind = kind_of(value, self.defined) or name.removeprefix("relax.")
            reason = self.reasons.get(var.name) or self._reason(kind, value)
            made = self.out.emit(ir.retyped(value, self.env), var.name)
            entry = _entry(var.name, kind, "", _shape(var), reason)
            self.report.append({**entry, "variable": made.name, "macs": macs_of(var, value)})
            return made
        return self.out.emit(ir.retyped(value, self.env), var.name)

    def _reason(self, kind: str, value: Any) -> str:
        """Why no kernel was found for an operator of a model that came quantized."""
        if kind in ("conv2d", "dense"):
            weight = self.defined.get(value.args[1])
            if weight is not None and ir.const_value(weight.args[0]) is not None:
                return (
                    "its quantized weight does not fit int8 with zero point 0 and a scale per output channel"
                )
        return obstacle(kind, value) or _default_reason(kind)

    def _folded(self, value: relax.Expr) -> relax.Expr | None:
        """A dequantized constant, as the float constant that it is."""
        if ir.op_name(value) != "relax.dequantize":
            return None
        array, params = ir.const_value(value.args[0]), ir.qparams_of(value)
        return ir.const(params.dequantize(array), "float32") if array is not None and params else None

    def _operand(self, source: Source, name: str) -> relax.Expr:
        """A quantized operand in the storage and on the grid that the kernel wants."""
        have = source.have
        array = ir.const_value(source.expr)
        if array is not None:
            have, expr = stored(have, self.storage), ir.const(shift_array(array, self.storage))
        else:
            expr = self.env.get(source.expr, source.expr)
            if str(expr.ty.dtype) != have.dtype:
                have = stored(have, self.storage)
            self.grids.setdefault(expr.name, have)
        return expr if have.same(source.want) else self._convert(expr, have, source.want, name)

    def _convert(self, expr: relax.Expr, have: QuantParams, want: QuantParams, name: str) -> relax.Var:
        plan = requantize_plan(Source(expr, have, want), ir.spec_of(expr).shape)
        args = [expr, *(ir.const(array) for array in plan.constants)]
        made = self._call(f"{name}_requantized", plan, args)
        self.grids[made.name] = want
        return made

    def _call(self, name: str, plan: Plan, args: list[relax.Expr]) -> relax.Var:
        specs = [ir.spec_of(arg) for arg in args]
        args = [*args, *(ir.const(array) for array in extra_constants(plan.kernel, plan.params, specs))]
        key = encode_params(
            {"kernel": plan.kernel, "params": dict(plan.params), "types": repr((specs, plan.out))}
        )
        if key not in self.kernels:
            func = build_kernel(plan.kernel, plan.params, specs, plan.out)
            self.kernels[key] = self.out.bb.add_func(func.without_attr("global_symbol"), plan.kernel)
        ty = relax.TensorType(plan.out.shape, plan.out.dtype)
        return self.out.emit(relax.call_tir(self.kernels[key], args, ty), name)

    def _output(self, var: relax.Var) -> relax.Expr:
        """An integer result leaves with the dtype that the model declares."""
        new = self.env.get(var, var)
        wanted = str(var.ty.dtype)
        if str(new.ty.dtype) == wanted:
            return new
        unit = QuantParams.of(1.0, 0, wanted)
        made = self._convert(new, stored(unit, self.storage), unit, f"{var.name}_out")
        if new.name in self.grids:
            self.grids[made.name] = stored(self.grids[new.name], wanted)
        return made

    def _tensor_name(self, var: relax.Var, value: relax.Expr) -> str:
        quantized = ir.op_name(value) == "relax.quantize" and isinstance(value.args[0], relax.Var)
        return str(value.args[0].name if quantized else var.name)

    def _note(self, name: str, variable: str, plan: Plan) -> None:
        kernel = plan.kernel or "movement"
        entry = _entry(name, plan.kind, kernel, plan.out.shape, "")
        weight_bytes = sum(map(self.once.bytes, plan.weights))
        known = {"variable": variable, "weight_bytes": weight_bytes, "macs": plan.macs}
        self.report.append({**entry, **known})


def _axes(call: Call) -> list[int]:
    rank = len(call.args[0].ty.shape)
    if call.attrs.axes is None:
        return list(reversed(range(rank)))
    return [int(axis) % rank for axis in call.attrs.axes]


def _computes(value: relax.Expr) -> bool:
    return isinstance(value, Call) and ir.op_name(value) not in ("relax.dequantize", "relax.permute_dims")


def _shape(var: relax.Var) -> tuple[int, ...]:
    """The shape of a tensor; of a tuple (split) that of its first field."""
    first = var.ty.fields[0] if isinstance(var.ty, relax.TupleType) else var.ty
    return ir.spec_of(relax.Var(var.name, first)).shape


def _default_reason(kind: str) -> str:
    known = kind in KIND_NAMES
    return "it is not between dequantize and quantize" if known else no_kernel(kind)


def _entry(name: str, op: str, kernel: str, shape: tuple[int, ...], reason: str) -> dict[str, Any]:
    return {
        "name": name,
        "variable": name,
        "op": op,
        "kernel": kernel,
        "integer": bool(kernel),
        "reason": reason,
        "shape": list(shape),
        "weight_bytes": 0,
        "macs": 0,
    }
