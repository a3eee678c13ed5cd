"""Straight-line Relax functions: read binding by binding, write the successor. Shared by the passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array

Expr = Any
Var = Any


def shape_of(expr: Expr) -> tuple[int, ...]:
    """The static shape; ModelError where it is unknown."""
    shape = getattr(expr.ty, "shape", None)
    if shape is None:
        raise ModelError(f"{expr}: the rank of this tensor is unknown; fix the shapes of the inputs")
    dims = [getattr(dim, "value", dim) for dim in shape]
    if not all(isinstance(dim, int) for dim in dims):
        raise ModelError(f"{expr}: shape {dims} is not static; fix the shapes of the inputs")
    return tuple(dims)


def dtype_of(expr: Expr) -> str:
    """Element type of a tensor."""
    return str(expr.ty.dtype)


def constant(array: Array) -> Expr:
    """A Relax constant; scalars become tensors of shape ()."""
    return relax.const(tvm.runtime.tensor(array), dtype=str(array.dtype))


def value_of(expr: Expr) -> Array | None:
    """The numpy value of a constant, None for anything else."""
    return expr.value.numpy() if isinstance(expr, GenericConst) else None


def op_name(expr: Expr) -> str:
    """``nn.conv2d`` for a call of ``relax.nn.conv2d``; empty for everything that calls no operator."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name).removeprefix("relax.")
    return ""


def with_args(call: Expr, args: Sequence[Expr]) -> Expr:
    """The same call of other arguments."""
    return relax.Call(call.op, list(args), call.attrs, call.ty_args)


def substitute(expr: Expr, replacement: Callable[[Var], Expr]) -> Expr:
    """A flat expression with its variables replaced."""
    if isinstance(expr, relax.Var):
        return replacement(expr)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substitute(field, replacement) for field in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(substitute(expr.tuple_value, replacement), expr.index)
    if isinstance(expr, relax.Call):
        return with_args(expr, [substitute(arg, replacement) for arg in expr.args])
    return expr


def straight_bindings(func: relax.Function) -> Iterator[tuple[Var, Expr]]:
    """All (variable, value) pairs of a function without control flow."""
    for block in func.body.blocks:
        for binding in block.bindings:
            if not isinstance(binding, relax.VarBinding) or isinstance(binding.value, relax.If):
                raise ModelError(f"{binding.var}: control flow cannot be quantized; export the model without")
            yield binding.var, binding.value


class Rebuilder:
    """Builds a new straight-line function beside the old one.

    ``known`` maps variables of the old function to expressions of the new one; ``defined`` gives the
    value bound to a new variable; ``uses`` counts the uses of the old variables.
    """

    def __init__(self, func: relax.Function) -> None:
        """Start with the parameters of ``func`` and no bindings."""
        self.func = func
        self.known: dict[Var, Expr] = {param: param for param in func.params}
        self.defined: dict[Var, Expr] = {}
        self.uses = _count_uses(func)
        self._builder = relax.BlockBuilder()
        self._names = {str(param.name) for param in func.params}
        self._reserved = {str(var.name) for var, _ in straight_bindings(func)}

    def rewrite(self, call: Expr, name: str) -> Expr:
        """What a binding becomes; ``call`` already has arguments of the new function."""
        return call

    def run(self) -> relax.Function:
        """Rewrite every binding in order."""
        for var, value in straight_bindings(self.func):
            self.visit(var, value)
        return self.finish([self.known.get(out, out) for out in outputs_of(self.func)])

    def visit(self, var: Var, value: Expr) -> None:
        """One binding: fills ``known[var]``."""
        result = self.rewrite(self.mapped(value), var.name)
        self.known[var] = self.emit(result, var.name)

    def replacement(self, var: Var) -> Expr:
        """What a variable of the old function has become."""
        return self.known.get(var, var)

    def mapped(self, expr: Expr) -> Expr:
        """``expr`` with the variables of the old function replaced by what they have become."""
        return substitute(expr, self.replacement)

    def emit(self, expr: Expr, name: str) -> Expr:
        """Bind ``expr``, and what is nested in it, to variables called after ``name``."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.emit(field, name) for field in expr.fields])
        if not isinstance(expr, relax.Call | relax.TupleGetItem):
            return expr
        flat = self._builder.normalize(self._flatten(expr, name))
        fresh = name not in self._names
        var = relax.DataflowVar(name if fresh else self.fresh(name), flat.ty)
        self._names.add(var.name)
        self.defined[var] = flat
        return var

    def normalized(self, call: Expr) -> Expr:
        """A flat call with its type."""
        return self._builder.normalize(call)

    def _flatten(self, expr: Expr, name: str) -> Expr:
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self._inner(expr.tuple_value, name), expr.index)
        return with_args(expr, [self._inner(arg, name) for arg in expr.args])

    def _inner(self, arg: Expr, name: str) -> Expr:
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([self._inner(field, name) for field in arg.fields])
        suffix = op_name(arg).split(".")[-1] or "item"
        return self.emit(arg, self.fresh(f"{name}_{suffix}")) if isinstance(arg, relax.Call) else arg

    def fresh(self, name: str) -> str:
        """``name``, or it with a number if the old or the new function has it."""
        taken = self._names | self._reserved
        if name not in taken:
            return name
        count = next(i for i in range(1, len(taken) + 2) if f"{name}_{i}" not in taken)
        return f"{name}_{count}"

    def finish(self, outputs: Sequence[Expr]) -> relax.Function:
        """The new function: live bindings only, attributes of the old one."""
        for out in outputs:
            if not isinstance(out, relax.Var):
                raise ModelError("an output of the model does not depend on any input: it is a constant")
        is_tuple = isinstance(self.func.body.body, relax.Tuple) or len(outputs) > 1
        return _assemble(self, list(outputs), is_tuple)


def outputs_of(func: relax.Function) -> list[Expr]:
    """The returned variables: one, or the fields of the returned tuple."""
    body = func.body.body
    bound = dict(straight_bindings(func))
    if isinstance(body, relax.Var) and isinstance(bound.get(body), relax.Tuple):
        body = bound[body]
    return list(body.fields) if isinstance(body, relax.Tuple) else [body]


def _assemble(build: Rebuilder, outputs: list[Expr], is_tuple: bool) -> relax.Function:
    live = _live(build.defined, outputs)
    fresh = {out: relax.Var(out.name, out.ty) for out in outputs if out in build.defined}
    builder = relax.BlockBuilder()
    bindings = [
        relax.VarBinding(fresh.get(var, var), builder.normalize(substitute(value, lambda v: fresh.get(v, v))))
        for var, value in build.defined.items()
        if var in live
    ]
    results = [fresh.get(out, out) for out in outputs]
    body = relax.Tuple(results) if is_tuple else results[0]
    body = builder.normalize(relax.SeqExpr([relax.DataflowBlock(bindings)], body))
    return relax.Function(build.func.params, body, attrs=build.func.attrs)


def _live(defined: dict[Var, Expr], outputs: Sequence[Expr]) -> set[Var]:
    live = set(outputs)
    for var in reversed(defined):
        if var in live:
            live.update(variables_in(defined[var]))
    return live


def variables_in(expr: Expr) -> Iterator[Var]:
    """Every use of a variable in a flat expression."""
    if isinstance(expr, relax.Var):
        yield expr
    elif isinstance(expr, relax.Tuple):
        for field in expr.fields:
            yield from variables_in(field)
    elif isinstance(expr, relax.TupleGetItem):
        yield from variables_in(expr.tuple_value)
    elif isinstance(expr, relax.Call):
        for arg in expr.args:
            yield from variables_in(arg)


def _count_uses(func: relax.Function) -> Counter[Var]:
    uses = Counter(outputs_of(func))
    for _, value in straight_bindings(func):
        uses.update(variables_in(value))
    return uses


def edit_weight(
    expr: Expr,
    lookup: Callable[[Expr], Expr | None],
    edit: Callable[[Array], Array],
    axes: Mapping[int, int],
) -> Expr | None:
    """A constant, or the dequantization of one, with its array edited; None for anything else.

    ``axes`` tells where the edit moves each axis, for per-axis scales. ``lookup`` gives the value
    bound to a variable.
    """
    value = value_of(expr)
    if value is not None:
        return constant(np.ascontiguousarray(edit(value)))
    bound = lookup(expr) if isinstance(expr, relax.Var) else expr
    if bound is None or op_name(bound) != "dequantize" or value_of(bound.args[0]) is None:
        return None
    data, scale, zero = bound.args
    axis = bound.attrs.axis
    if shape_of(scale):
        axis = axes[axis % len(shape_of(data))]
    edited = constant(np.ascontiguousarray(edit(data.value.numpy())))
    return relax.op.dequantize(edited, scale, zero, axis=axis, out_dtype=bound.attrs.out_dtype)


def rebuild_main(mod: IRModule, rebuilder: Callable[[relax.Function], Rebuilder]) -> IRModule:
    """A copy of the module with ``main`` rewritten; helper functions nobody calls any more remain."""
    result = mod.clone()
    result["main"] = rebuilder(mod["main"]).run()
    return result
