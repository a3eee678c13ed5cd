"""Compute at compile time what depends on constants only, except dequantization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import SCHEME
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes.rebuild import (
    Rebuilder,
    constant,
    dtype_of,
    edit_weight,
    op_name,
    rebuild_main,
    shape_of,
    value_of,
)

Expr = Any
UNARY: dict[str, Callable[[Array], Array]] = {
    "negative": np.negative,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "abs": np.abs,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


@tvm.transform.module_pass(opt_level=0, name="FoldConstants")
@dataclass(frozen=True)
class FoldConstants:
    """Fold constants without compiling anything.

    In: ``main``, straight-line. Out: operators of constants are constants; a dequantized constant
    stays integer, transposing or reshaping moves into it; a quantized constant becomes integer. What the
    schemes ``fp16`` and ``dynamic`` store stays as it is.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Fold)


class _Fold(Rebuilder):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """A constant where all arguments are constants."""
        kind = op_name(call)
        if SCHEME in (self.func.attrs or {}) and kind in ("astype", "dequantize"):
            return call
        if kind == "permute_dims":
            return _permuted(self, call)
        if not kind or any(
            value_of(arg) is None for arg in call.args if isinstance(arg.ty, relax.TensorType)
        ):
            return call
        result = _compute(kind, call, self)
        return call if result is None else constant(np.ascontiguousarray(result))


def _permuted(build: Rebuilder, call: Expr) -> Expr:
    rank = len(shape_of(call.args[0]))
    axes = call.attrs.axes
    axes = list(range(rank))[::-1] if axes is None else [int(a) for a in axes]

    def transpose(value: Array) -> Array:
        return value.transpose(axes)

    edited = edit_weight(call.args[0], build.defined.get, transpose, {a: axes.index(a) for a in axes})
    return call if edited is None else edited


def _compute(kind: str, call: Expr, build: Rebuilder) -> Array | None:
    """The value, None where the operator is not known here."""
    values: list[Any] = [value_of(arg) for arg in call.args if isinstance(arg.ty, relax.TensorType)]
    if kind in ("reshape", "expand_dims", "squeeze", "flatten"):
        return np.reshape(values[0], shape_of(build.normalized(call)))
    if kind == "broadcast_to":
        return np.broadcast_to(values[0], shape_of(build.normalized(call)))
    if kind == "astype":
        return np.asarray(values[0]).astype(str(call.attrs.dtype))
    if kind == "quantize":
        return _quantized(call, values)
    known = UNARY.get(kind) or BINARY.get(kind)
    return None if known is None else np.asarray(known(*values), dtype_of(build.normalized(call)))


def _quantized(call: Expr, values: list[Any]) -> Array:
    x, scale, zero = values
    axis = int(call.attrs.axis) % x.ndim if scale.ndim else None
    return QuantParams.of(scale, zero, str(call.attrs.out_dtype), axis).quantize(x)
