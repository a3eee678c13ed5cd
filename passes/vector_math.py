"""exp, erf and what is made of them as polynomials, which compilers vectorize: no calls of libm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, topi

Legalize = Callable[[relax.BlockBuilder, Any], Any]
Definition = Callable[..., te.Tensor]


def legalize_ops() -> tvm.transform.Pass:
    """``LegalizeOps`` with these functions for float32.

    They differ from libm's by less than 4e-7, relative for exp, softmax and sigmoid, absolute for erf; exp is
    0 where its result would be below the normal numbers. tanh stays libm's: states of cells sum up its
    errors.
    """
    return relax.transform.LegalizeOps(
        {
            "relax.exp": _unary("exp", topi.fast_exp, topi.exp),
            "relax.erf": _unary("erf", topi.fast_erf, topi.erf),
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


def _silu(x: te.Tensor) -> te.Tensor:
    return topi.multiply(x, topi.sigmoid(x))


def _softmax(bb: relax.BlockBuilder, call: Any) -> Any:
    definition = topi.nn.fast_softmax if _is_single(call) else topi.nn.softmax
    return bb.call_te(definition, call.args[0], int(call.attrs.axis), primfunc_name_hint="softmax")


def _is_single(call: Any) -> bool:
    return str(call.ty.dtype) == "float32"
