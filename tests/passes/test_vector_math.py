"""Functions as polynomials: near the exact ones, no calls of libm, and special values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax

from tvm_qplugin.builder import compile_function
from tvm_qplugin.passes.vector_math import legalize_ops

Array = np.ndarray[Any, Any]
op = relax.op
X = np.concatenate([np.linspace(-30, 30, 5000), np.geomspace(1e-30, 1, 50), -np.geomspace(1e-30, 1, 50)])


def module(function: Callable[..., Any], shape: tuple[int, ...]) -> IRModule:
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            out = bb.emit_output(bb.emit(function(x), "y"))
        bb.emit_func_output(out)
    return bb.get()


def erf(x: Array) -> Array:
    return np.vectorize(math.erf)(x)


@pytest.mark.parametrize(
    ("function", "exact", "rtol", "atol"),
    [
        (op.exp, np.exp, 4e-7, 0.0),
        (op.erf, erf, 0.0, 4e-7),
        (op.tanh, np.tanh, 2e-7, 0.0),
        (op.sigmoid, lambda x: 1 / (1 + np.exp(-x)), 4e-7, 0.0),
        (op.nn.silu, lambda x: x / (1 + np.exp(-x)), 4e-7, 0.0),
        (op.nn.gelu, lambda x: x / 2 * (1 + erf(x / math.sqrt(2))), 0.0, 4e-6),
    ],
)
def test_near_the_exact_functions(function: Any, exact: Any, rtol: float, atol: float) -> None:
    x = X.astype("float32")
    (found,) = compile_function(module(function, x.shape))([x])
    np.testing.assert_allclose(found, exact(x.astype("float64")), rtol=rtol, atol=atol)


def test_special_values() -> None:
    x = np.array([-np.inf, -1e4, 0, 100, np.inf, np.nan], "float32")
    (found,) = compile_function(module(op.exp, x.shape))([x])
    np.testing.assert_array_equal(found, [0, 0, 1, np.inf, np.inf, np.nan])


@pytest.mark.parametrize(
    ("function", "wanted"), [(op.sigmoid, [0, 0, 0.5, 1, 1, np.nan]), (op.tanh, [-1, -1, 0, 1, 1, np.nan])]
)
def test_special_values_of_gates(function: Any, wanted: list[float]) -> None:
    x = np.array([-np.inf, -1e4, 0, 1e4, np.inf, np.nan], "float32")
    (found,) = compile_function(module(function, x.shape))([x])
    np.testing.assert_array_equal(found, wanted)


def test_softmax_of_masked_scores() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 33)).astype("float32") * 5
    x[..., 20:] -= 1e4
    (found,) = compile_function(module(lambda v: op.nn.softmax(v, 2), x.shape))([x])
    e = np.exp(x.astype("float64") - x.max(2, keepdims=True))
    np.testing.assert_allclose(found, e / e.sum(2, keepdims=True), rtol=2e-6)
    assert not found[..., 20:].any()


@pytest.mark.parametrize(
    "function", [op.exp, op.erf, op.nn.gelu, op.nn.softmax, op.sigmoid, op.nn.silu, op.tanh]
)
def test_nothing_calls_libm(function: Any) -> None:
    text = legalize_ops()(module(function, (4, 8))).script()
    assert not any(f"T.{name}(" in text for name in ("exp", "erf", "tanh"))
