"""Elementwise operators evaluated in numpy on the 256 values that an 8-bit tensor can have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import INTEGER_RANGE, Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import ELEMENTWISE

_erf = np.vectorize(math.erf, otypes=["float64"])
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


_UNARY: dict[str, Callable[[Array], Array]] = {
    "nn.relu": lambda x: np.maximum(x, 0.0),
    "nn.gelu": lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))),
    "nn.gelu_tanh": _gelu_tanh,
    "nn.silu": lambda x: x * _sigmoid(x),
    "nn.selu": lambda x: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(x)),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "square": np.square,
    "abs": np.abs,
    "negative": np.negative,
    "erf": _erf,
    "sin": np.sin,
    "cos": np.cos,
}
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": np.power,
}


def _evaluate(call: relax.Expr, operands: list[Array]) -> Array:
    name = ir.op_name(call).removeprefix("relax.")
    if name in _UNARY:
        return _UNARY[name](operands[0])
    if name in _BINARY:
        return _BINARY[name](operands[0], operands[1])
    if name == "clip":
        return np.clip(operands[0], float(call.args[1].value), float(call.args[2].value))
    if name == "nn.leakyrelu":
        return np.where(operands[0] > 0, operands[0], operands[0] * float(call.attrs.alpha))
    beta, threshold = float(call.attrs.beta), float(call.attrs.threshold)
    soft = np.log1p(np.exp(np.minimum(operands[0] * beta, threshold))) / beta
    return np.where(operands[0] * beta > threshold, operands[0], soft)


def unary_slice(var: relax.Var, defined: Mapping[relax.Var, relax.Expr]) -> relax.Var | None:
    """The one dequantized variable that ``var`` is an elementwise function of, or None."""
    leaves: set[relax.Var] = set()
    stack, seen = [var], set()
    while stack:
        at = stack.pop()
        value = defined.get(at)
        if at in seen:
            continue
        seen.add(at)
        if value is not None and ir.op_name(value) == "relax.dequantize":
            leaves.add(at)
        elif value is None or not _elementwise(at, value):
            return None
        else:
            stack.extend(ir.variables(value))
    return leaves.pop() if len(leaves) == 1 else None


def _elementwise(var: relax.Var, value: relax.Expr) -> bool:
    if ir.op_name(value) not in ELEMENTWISE:
        return False
    same = all(ir.spec_of(used).shape == ir.spec_of(var).shape for used in ir.variables(value))
    arrays = [ir.const_value(arg) for arg in value.args]
    return same and all(array is None or array.size == 1 for array in arrays)


def table(
    var: relax.Var,
    leaf: relax.Var,
    defined: Mapping[relax.Var, relax.Expr],
    grids: tuple[QuantParams, QuantParams],
) -> Array:
    """256 results on the output grid, indexed by input code minus the dtype's minimum.

    ``grids`` are the parameters of input and output. Evaluated in float64; codes for which the
    function is undefined (log of a negative number) get the nearest end of the range.
    """
    source, target = grids
    lo, hi = INTEGER_RANGE[source.dtype]
    known: dict[relax.Var, Any] = {leaf: source.dequantize(np.arange(lo, hi + 1)).astype("float64")}
    with np.errstate(all="ignore"):
        result = _value(var, known, defined)
    low, high = (target.dequantize(np.asarray(code)) for code in INTEGER_RANGE[target.dtype])
    return target.quantize(np.nan_to_num(result, nan=float(low), posinf=float(high), neginf=float(low)))


def _value(var: relax.Var, known: dict[relax.Var, Any], defined: Mapping[relax.Var, relax.Expr]) -> Array:
    if var not in known:
        call = defined[var]
        operands = [
            _value(arg, known, defined)
            if isinstance(arg, relax.Var)
            else arg.value.numpy().astype("float64").reshape(())
            for arg in call.args
            if isinstance(arg, relax.Var) or ir.const_value(arg) is not None
        ]
        known[var] = _evaluate(call, operands)
    return known[var]
