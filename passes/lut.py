"""Elementwise operators evaluated in numpy on the 256 values that an 8-bit tensor can have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.core import lite
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import ELEMENTWISE

_erf = np.vectorize(math.erf, otypes=["float64"])
_erfc = np.vectorize(math.erfc, otypes=["float64"])
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def _gelu(x: Array) -> Array:
    """In float32 steps, as LiteRT."""
    single = x.astype("float32")
    tail = _erfc((single * np.float32(-math.sqrt(0.5))).astype("float64")).astype("float32")
    return np.asarray((np.float32(0.5) * single * tail).astype("float64"))


def _gelu_tanh(x: Array) -> Array:
    """In float32 steps, as LiteRT."""
    single = x.astype("float32")
    inner = np.float32(math.sqrt(2 / math.pi)) * (single + np.float32(0.044715) * single * single * single)
    gate = np.float32(1) + np.tanh(inner.astype("float64")).astype("float32")
    return np.asarray((np.float32(0.5) * single * gate).astype("float64"))


UNARY: dict[str, Callable[[Array], Array]] = {
    "nn.relu": lambda x: np.maximum(x, 0.0),
    "nn.gelu": _gelu,
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
    "tan": np.tan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
}
"""Unary operators in float64, by Relax's name: what ``table`` rounds to codes."""
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": np.power,
}

_FIXED_POINT = {"relax.nn.leakyrelu": "LEAKY_RELU", "relax.nn.relu": "RELU", "relax.clip": "CLIP"}


def _evaluate(call: relax.Expr, operands: list[Array]) -> Array:
    name = ir.op_name(call).removeprefix("relax.")
    if name in UNARY:
        return UNARY[name](operands[0])
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
        elif value is None or not is_elementwise(at, value):
            return None
        else:
            stack.extend(ir.variables(value))
    return leaves.pop() if len(leaves) == 1 else None


def is_elementwise(var: relax.Var, value: relax.Expr) -> bool:
    """Whether a binding works element by element on tensors of its own shape and on scalars."""
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

    ``grids`` are the parameters of input and output. As LiteRT computes the operator that ``recognize``
    names; anything else in float64, codes for which it is undefined (log of a negative number) get the
    nearest end of the range.
    """
    call, kind = defined[var], recognize(var, leaf, defined)
    exact = lite.hard_swish(*grids) if kind == "HARD_SWISH" else None
    if exact is not None:
        return exact
    if kind == "LEAKY_RELU":
        return lite.leaky_relu(float(call.attrs.alpha), *grids)
    if kind in ("RELU", "CLIP"):
        low, high = (0.0, None) if kind == "RELU" else (float(bound.value) for bound in call.args[1:3])
        return lite.clipped(low, high, *grids)
    return lite.float_table(lambda x: _value(var, {leaf: x}, defined), *grids)


def recognize(var: relax.Var, leaf: relax.Var, defined: Mapping[relax.Var, relax.Expr]) -> str:
    """The TFLite operator with fixed-point arithmetic that ``var`` is of ``leaf``, or nothing.

    LEAKY_RELU, RELU, CLIP (to any bounds) or HARD_SWISH, the latter however it is written.
    """
    name = ir.op_name(defined[var])
    if defined[var].args[0].same_as(leaf) and name in _FIXED_POINT:
        return _FIXED_POINT[name]
    x = np.linspace(-6.0, 6.0, 97)
    with np.errstate(all="ignore"):
        y = np.asarray(_value(var, {leaf: x}, defined))
    swish = x * np.clip(x + 3.0, 0.0, 6.0) / 6.0
    return "HARD_SWISH" if y.shape == x.shape and np.allclose(y, swish, rtol=1e-6, atol=1e-6) else ""


def describe(var: relax.Var, leaf: relax.Var, defined: Mapping[relax.Var, relax.Expr]) -> dict[str, Any]:
    """The operators between ``leaf`` and ``var``, the first one first; ``alpha`` of a leaky relu."""
    found: dict[relax.Var, None] = {}

    def visit(at: relax.Var) -> None:
        if at not in found and not at.same_as(leaf):
            for used in ir.variables(defined[at]):
                visit(used)
            found[at] = None

    visit(var)
    names = [ir.op_name(defined[at]).removeprefix("relax.") for at in found]
    alpha = {"alpha": float(defined[var].attrs.alpha)} if names == ["nn.leakyrelu"] else {}
    return {"operators": names, **alpha}


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
