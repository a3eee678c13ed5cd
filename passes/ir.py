"""Reading and re-emitting ``main``: the small vocabulary that the passes share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, IRModule

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array, QuantParams


def main_function(mod: IRModule) -> relax.Function:
    """The function every stage works on; ModelError if the module has none."""
    if not isinstance(mod, IRModule):
        raise ModelError(f"a {type(mod).__name__} was given where an IRModule was expected; see load()")
    if "main" not in [v.name_hint for v in mod.get_global_vars()]:
        raise ModelError(
            "the IRModule has no function 'main'; import the model with tvm_qplugin.frontend.load"
        )
    return mod["main"]


def bindings(func: relax.Function) -> Iterator[tuple[relax.Var, relax.Expr]]:
    """All bindings of a function in order."""
    for block in func.body.blocks:
        for binding in block.bindings:
            yield binding.var, binding.value


def op_name(expr: relax.Expr) -> str:
    """``relax.add`` for a call of an operator, else an empty string."""
    if isinstance(expr, Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name)
    return ""


def definitions(func: relax.Function) -> dict[relax.Var, relax.Expr]:
    """What each variable is bound to."""
    return dict(bindings(func))


def output_vars(func: relax.Function) -> list[relax.Var]:
    """The variables that the function returns, seen through aliases and the output tuple."""
    defined = definitions(func)

    def resolve(expr: relax.Expr) -> relax.Expr:
        while isinstance(expr, relax.Var) and isinstance(defined.get(expr), relax.Var | relax.Tuple):
            expr = defined[expr]
        return expr

    body = resolve(func.body.body)
    fields = list(body.fields) if isinstance(body, relax.Tuple) else [body]
    return [resolve(field) for field in fields]


def returns_tuple(func: relax.Function) -> bool:
    """Whether the function returns a tuple (even of one)."""
    return isinstance(func.ret_ty, relax.TupleType)


def spec_of(expr: relax.Expr) -> TensorSpec:
    """Static shape and dtype; ModelError where the shape is not static."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        raise ModelError(f"{expr}: a tensor of static shape was expected, got {ty}")
    try:
        shape = tuple(int(extent) for extent in ty.shape)
    except TypeError:
        raise ModelError(f"{expr}: shape {ty.shape} is not static; fix it when loading the model") from None
    return TensorSpec(shape, str(ty.dtype))


def const_value(expr: relax.Expr) -> Array | None:
    """The numpy value of a constant, or None."""
    return expr.value.numpy() if isinstance(expr, GenericConst) else None


def const(value: Any, dtype: str | None = None) -> GenericConst:
    """A Relax constant."""
    array = np.ascontiguousarray(value, dtype) if np.ndim(value) else np.asarray(value, dtype)
    return relax.const(array, str(array.dtype))


def consumers(func: relax.Function) -> dict[relax.Var, list[relax.Var]]:
    """Which bindings read each variable (a binding that reads it twice stands twice)."""
    users: dict[relax.Var, list[relax.Var]] = {}
    for var, value in bindings(func):
        for used in variables(value):
            users.setdefault(used, []).append(var)
    return users


def variables(expr: relax.Expr) -> list[relax.Var]:
    """The variables that one binding reads."""
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, relax.Tuple):
        return [v for field in expr.fields for v in variables(field)]
    if isinstance(expr, relax.TupleGetItem):
        return variables(expr.tuple_value)
    if isinstance(expr, Call):
        return [v for arg in expr.args for v in variables(arg)]
    return []


def substitute(expr: relax.Expr, env: Mapping[relax.Var, relax.Expr]) -> relax.Expr:
    """One binding's value with its variables replaced."""
    if not variables(expr):
        return expr
    if isinstance(expr, relax.Var):
        return env.get(expr, expr)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substitute(field, env) for field in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(substitute(expr.tuple_value, env), expr.index)
    if isinstance(expr, Call):
        args = [substitute(arg, env) for arg in expr.args]
        return Call(expr.op, args, expr.attrs, expr.ty_args, ret_ty=expr.ty)
    return expr


def retyped(expr: relax.Expr, env: Mapping[relax.Var, relax.Expr]) -> relax.Expr:
    """``substitute``, with the type left to be inferred anew."""
    new = substitute(expr, env)
    return Call(new.op, new.args, new.attrs, new.ty_args) if isinstance(new, Call) else new


def qparams_of(call: Call) -> QuantParams | None:
    """The parameters of a ``relax.quantize`` or ``relax.dequantize`` with constant arguments."""
    scale, zero_point = const_value(call.args[1]), const_value(call.args[2])
    if scale is None or zero_point is None:
        return None
    spec = spec_of(call.args[0])
    axis = int(call.attrs.axis) % max(len(spec.shape), 1) if scale.size > 1 else None
    dtype = spec.dtype if op_name(call) == "relax.dequantize" else str(call.attrs.out_dtype)
    if scale.size == 1:
        scale, zero_point = scale.reshape(()), zero_point.reshape(-1)[:1].reshape(())
    return QuantParams.of(scale, zero_point.astype("int32"), dtype, axis)


def quantize(x: relax.Expr, params: QuantParams) -> Call:
    """``R.quantize`` with the parameters as constants."""
    return relax.op.quantize(x, *_qargs(params), axis=_axis(params), out_dtype=params.dtype)


def dequantize(q: relax.Expr, params: QuantParams) -> Call:
    """``R.dequantize`` with the parameters as constants."""
    return relax.op.dequantize(q, *_qargs(params), axis=_axis(params), out_dtype="float32")


def _qargs(params: QuantParams) -> tuple[GenericConst, GenericConst]:
    return const(params.scale, "float32"), const(params.zero_point, params.dtype)


def _axis(params: QuantParams) -> int:
    return -1 if params.axis is None else params.axis


def with_main_attr(mod: IRModule, key: str, value: str | None) -> IRModule:
    """A copy of the module whose ``main`` has one attribute set, or removed (None)."""
    func = main_function(mod)
    out = IRModule(dict(mod.functions_items()), attrs=mod.attrs)
    out["main"] = func.without_attr(key) if value is None else func.with_attr(key, value)
    return out


class Emitter:
    """Builds a new ``main`` from an old module: ``with Emitter(mod) as out: ...; return out.finish(...)``."""

    def __init__(self, mod: IRModule, params: list[relax.Var] | None = None) -> None:
        self._old = mod
        func = main_function(mod)
        self.params = list(func.params) if params is None else params
        self._attrs = {k: v for k, v in (func.attrs or {}).items() if k != "global_symbol"}
        self.bb = relax.BlockBuilder()
        self._scopes = ExitStack()

    def __enter__(self) -> Emitter:
        """Open the function and its dataflow block."""
        self._scopes.enter_context(self.bb.function("main", self.params))
        self._flow = ExitStack()
        self._flow.enter_context(self.bb.dataflow())
        return self

    def __exit__(self, *exc: Any) -> bool | None:
        """Close the builder, also when a pass raised."""
        return self._scopes.__exit__(*exc)

    def emit(self, expr: relax.Expr, name: str) -> relax.Var:
        """Bind an expression; a variable is returned as it is."""
        return expr if isinstance(expr, relax.Var) else self.bb.emit(expr, name)

    def finish(self, outputs: list[relax.Expr], as_tuple: bool, **attrs: Any) -> IRModule:
        """The module with ``main`` replaced; ``attrs`` are added to the function (None removes)."""
        out = self.bb.emit_output(relax.Tuple(outputs) if as_tuple else outputs[0])
        self._flow.close()
        self.bb.emit_func_output(out)
        self._scopes.close()
        mod = self.bb.get()
        known = [v.name_hint for v in mod.get_global_vars()]
        for var, func in self._old.functions_items():
            if var.name_hint not in known:
                mod[var] = func
        merged = {**self._attrs, **attrs}
        mod["main"] = mod["main"].with_attrs({k: v for k, v in merged.items() if v is not None})
        return mod.with_attrs(dict(self._old.attrs)) if self._old.attrs else mod
