"""Write quantization into the IR: R.quantize/R.dequantize pairs around everything annotated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import ANNOTATION
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.qparams import Array, QuantParams, union_range
from tvm_qplugin.core.spec import (
    SCHEMES,
    Annotation,
    FixedSpec,
    OpAnnotation,
    QuantSpec,
    SharedSpec,
    second,
    tensor_of,
)
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import bias_of, divides_by_constant
from tvm_qplugin.passes.plan import REASONS
from tvm_qplugin.passes.quantize_dynamic import is_depthwise
from tvm_qplugin.passes.weights import quantize_bias, quantize_weight

Ranges = Mapping[str, tuple[float, float]]


@tvm.transform.module_pass(opt_level=0, name="InsertQDQ")
@dataclass(frozen=True)
class InsertQDQ:
    """Surround every annotated tensor with R.quantize and R.dequantize.

    In: an annotated module (after ``UnifyScales``); ``ranges`` are the calibrated (low, high) of every
    observed tensor. Out: the same function with QDQ pairs, int8 weights (per output channel) and
    int32 biases as dequantized constants, annotation removed; why an operator stays float stands in the
    attribute ``qplugin.reasons``. Raises CalibrationError for a tensor
    without a range.
    """

    ranges: Ranges

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        func = ir.main_function(mod)
        annotation = Annotation.loads(func.attrs[ANNOTATION])
        params = tensor_params(annotation, self.ranges)
        with ir.Emitter(mod) as out:
            work = _Insertion(func, annotation, params, out)
            outputs = work.run()
            attrs = {ANNOTATION: None, REASONS: json.dumps(work.reasons) if work.reasons else None}
            return out.finish(outputs, ir.returns_tuple(func), **attrs)


def tensor_params(annotation: Annotation, ranges: Ranges) -> dict[str, QuantParams]:
    """Parameters by key of every annotated tensor; members of a group get the union of their ranges."""
    groups: dict[str, list[str]] = {}
    for name, spec in annotation.tensors.items():
        groups.setdefault(spec.tensor if isinstance(spec, SharedSpec) else name, []).append(name)
    params = {}
    for root, members in groups.items():
        spec = annotation.tensors[root]
        if isinstance(spec, FixedSpec):
            shared = spec.params()
        else:
            assert isinstance(spec, QuantSpec)
            shared = spec.params(*union_range([_range(ranges, tensor_of(name)) for name in members]))
        params.update({name: shared for name in members})
    return params


def _range(ranges: Ranges, name: str) -> tuple[float, float]:
    if name not in ranges:
        raise CalibrationError(
            f"no calibrated range for tensor {name!r}: the table was made for another model or recipe; "
            "calibrate again"
        )
    return ranges[name]


class _Insertion:
    """State of one run: what every variable of the old function has become."""

    def __init__(
        self,
        func: relax.Function,
        annotation: Annotation,
        params: Mapping[str, QuantParams],
        out: ir.Emitter,
    ) -> None:
        self.func, self.annotation, self.params, self.out = func, annotation, params, out
        self.owner: dict[str, OpAnnotation] = {}
        for op in annotation.operators.values():
            self.owner.update({member: op for member in op.members if member not in self.owner})
        self.owner.update({op.output: op for op in annotation.operators.values()})
        self.raw: dict[relax.Var, relax.Expr] = {}
        self.dequantized: dict[tuple[relax.Var, str], relax.Expr] = {}
        self.weights: dict[str, QuantParams] = {}
        self.reasons: dict[str, str] = {}
        self.by_name: dict[str, relax.Expr] = {}

    def run(self) -> list[relax.Expr]:
        for param in self.func.params:
            self._wrap(param, param)
        for var, value in ir.bindings(self.func):
            if not isinstance(value, relax.Var | relax.Tuple):
                new = self.out.emit(self._value(var, value), var.name)
                self.raw[var] = self.by_name[var.name] = new
                if self.owner[var.name].reason:
                    self.reasons[new.name] = self.owner[var.name].reason
                self._wrap(var, new)
        return [self._read(var, None) for var in ir.output_vars(self.func)]

    def _wrap(self, var: relax.Var, new: relax.Var) -> None:
        """The tensor on each of its grids; from integers it gets to the others by requantizing."""
        for key in (var.name, *(second(var.name, scheme) for scheme in SCHEMES)):
            params = self.params.get(key)
            if params is not None:
                source = self.dequantized.get((var, var.name), new) if self._by_integer(var) else new
                label = f"{var.name}_q" if key == var.name else f"{var.name}_{params.dtype}_q"
                q = self.out.emit(ir.quantize(source, params), label)
                made = self.out.emit(ir.dequantize(q, params), label.removesuffix("q") + "dq")
                self.dequantized[var, key] = made

    def _by_integer(self, var: relax.Var) -> bool:
        producer = self.owner.get(var.name)
        return producer is not None and producer.integer

    def _read(self, var: relax.Var, reader: OpAnnotation | None) -> relax.Expr:
        """What a reader sees: inside its own group the raw value, else what integer code delivers."""
        raw = self.raw.get(var, var)
        inside = reader is not None and var.name in reader.members
        if inside or (var, var.name) not in self.dequantized:
            return raw
        if reader is not None and reader.integer:
            return self.dequantized[var, self.annotation.key(reader, var.name)]
        return self.dequantized[var, var.name] if self._by_integer(var) else raw

    def _value(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        op = self.owner[var.name]
        env = {used: self._read(used, op) for used in ir.variables(value)}
        new = ir.retyped(value, env)
        if not op.integer or not isinstance(new, Call):
            return new
        if op.weight is not None:
            return self._weighted(var, new, op)
        if op.kind in ("add", "subtract", "multiply") and var.name == op.members[0]:
            dtype = self.params[op.output].dtype
            if divides_by_constant(new):
                new = relax.op.multiply(new.args[0], ir.const(1 / new.args[1].value.numpy()))
            return _with_args(new, [self._constant_operand(var, arg, dtype) for arg in new.args])
        if op.kind in ("maximum", "minimum"):
            grid = self.params[op.output]
            return _with_args(new, [self._on_grid(var, arg, grid) for arg in new.args])
        return new

    def _weighted(self, var: relax.Var, new: Call, op: OpAnnotation) -> Call:
        """Replace the weight of a conv or dense, or the bias in the addition behind it."""
        assert op.weight is not None
        spec = replace(op.weight, reduced=op.weight.reduced and not is_depthwise(new))
        scale = self.params[self.annotation.key(op, op.inputs[0])].scale
        if var.name == op.members[0]:
            weight, params = quantize_weight(new.args[1].value.numpy(), spec, self._bias(op), scale)
            self.weights[op.output] = params
            return _with_args(new, [new.args[0], self._constant(f"{op.output}_weight", weight, params)])
        product = self.by_name[op.members[0]]
        bias = bias_of(product, new) if ir.op_name(new) == "relax.add" else None
        if bias is None:
            return new
        q, params = quantize_bias(bias, scale, self.weights[op.output])
        return _with_args(new, [product, self._constant(f"{op.output}_bias", q, params)])

    def _bias(self, op: OpAnnotation) -> Array | None:
        values = {v.name: (v, value) for v, value in ir.bindings(self.func) if v.name in op.members[:2]}
        if len(op.members) < 2 or ir.op_name(values[op.members[1]][1]) != "relax.add":
            return None
        return bias_of(values[op.members[0]][0], values[op.members[1]][1])

    def _constant_operand(self, var: relax.Var, arg: relax.Expr, dtype: str) -> relax.Expr:
        array = ir.const_value(arg)
        if array is None:
            return arg
        params = QuantSpec(dtype, symmetric=dtype == "int16").params(array.min(), array.max())
        return self._constant(f"{var.name}_operand", params.quantize(array), params)

    def _on_grid(self, var: relax.Var, arg: relax.Expr, grid: QuantParams) -> relax.Expr:
        """An operand; a constant on a grid that is given."""
        array = ir.const_value(arg)
        return arg if array is None else self._constant(f"{var.name}_operand", grid.quantize(array), grid)

    def _constant(self, name: str, value: relax.Expr, params: QuantParams) -> relax.Expr:
        return self.out.emit(ir.dequantize(ir.const(value), params), f"{name}_dq")


def _with_args(call: Call, args: list[relax.Expr]) -> Call:
    return Call(call.op, args, call.attrs, call.ty_args)
