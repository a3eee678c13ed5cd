"""exp, erf and what is made of them as polynomials, which compilers vectorize: no calls of libm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, topi

Legalize = Callable[[relax.BlockBuilder, Any], Any]
Definition = Callable[..., te.Tensor]
NEAR_ZERO = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)


def legalize_ops() -> tvm.transform.Pass:
    """``LegalizeOps`` with these functions for float32.

    They differ from libm's by less than 4e-7, relative but for erf, where it is absolute; tanh, whose errors
    states of cells sum up, by less than 2e-7. exp is 0 where its result would be below the normal numbers.
    """
    return relax.transform.LegalizeOps(
        {
            "relax.exp": _unary("exp", topi.fast_exp, topi.exp),
            "relax.erf": _unary("erf", topi.fast_erf, topi.erf),
            "relax.tanh": _unary("tanh", _tanh, topi.tanh),
            "relax.sigmoid": _unary("sigmoid", _sigmoid, topi.sigmoid),
            "relax.nn.silu": _unary("silu", lambda x: topi.multiply(x, _sigmoid(x)), _silu),
            "relax.nn.gelu": _unary("gelu", lambda x: _gelu(x, topi.fast_erf), lambda x: _gelu(x, topi.erf)),
            "relax.nn.softmax": _softmax,
        }
    )


def _unary(name: str, fast: Definition, exact: Definition) -> Legalize:
    def legalize(bb: relax.BlockBuilder, call: Any) -> Any:
        definition = fast if _is_single(call) else exact
        return bb.call_te(definition, call.args[0], primfunc_name_hint=name)

    return legalize


def _gelu(x: te.Tensor, erf: Definition) -> te.Tensor:
    """``x / 2 * (1 + erf(x / sqrt(2)))``."""
    inner = erf(topi.multiply(x, tvm.tirx.const(float(np.sqrt(0.5)), x.dtype)))
    half = topi.multiply(x, tvm.tirx.const(0.5, x.dtype))
    return topi.multiply(half, topi.add(inner, tvm.tirx.const(1.0, x.dtype)))


def _sigmoid(x: te.Tensor) -> te.Tensor:
    """``1 / (1 + exp(-x))``."""
    one = tvm.tirx.const(1.0, x.dtype)
    return topi.divide(one, topi.add(topi.fast_exp(topi.negative(x)), one))


def _tanh(x: te.Tensor) -> te.Tensor:
    """``1 - 2 / (exp(2 |x|) + 1)`` with the sign of ``x``; near 0 a polynomial (Moshier, Cephes, tanhf)."""

    def number(value: float) -> Any:
        return tvm.tirx.const(value, x.dtype)

    doubled = topi.fast_exp(topi.multiply(topi.abs(x), number(2.0)))

    def pick(*i: Any) -> Any:
        square, value = x(*i) * x(*i), number(NEAR_ZERO[0])
        for factor in NEAR_ZERO[1:]:
            value = value * square + number(factor)
        far = number(1.0) - number(2.0) / (doubled(*i) + number(1.0))
        signed = tvm.tirx.Select(x(*i) < number(0.0), -far, far)
        near = tvm.tirx.Select(x(*i) < number(0.0), -x(*i), x(*i)) < number(0.625)
        return tvm.tirx.Select(near, x(*i) + x(*i) * square * value, signed)

    return te.compute(x.shape, pick, name="tanh", tag=topi.tag.ELEMWISE)


def _silu(x: te.Tensor) -> te.Tensor:
    return topi.multiply(x, topi.sigmoid(x))


def _softmax(bb: relax.BlockBuilder, call: Any) -> Any:
    definition = topi.nn.fast_softmax if _is_single(call) else topi.nn.softmax
    return bb.call_te(definition, call.args[0], int(call.attrs.axis), primfunc_name_hint="softmax")


def _is_single(call: Any) -> bool:
    return str(call.ty.dtype) == "float32"
