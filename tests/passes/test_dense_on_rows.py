"""DenseOnRows: golden modules, and the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal

from tvm_qplugin.builder import compile_function
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.dense_on_rows import DenseOnRows

Expr = Any
W = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
B = np.random.default_rng(1).normal(size=(1, 1, 1, 3)).astype("float32")
op = relax.op


def module_of(
    make: Callable[[Callable[[Expr], Expr], Expr], Expr], shape: tuple[int, ...] = (1, 1, 1, 4)
) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(make(builder.emit, x))
        builder.emit_func_output(out)
    return builder.get()


def layer(emit: Callable[[Expr], Expr], x: Expr) -> Expr:
    biased = emit(op.add(emit(op.matmul(x, ir.const(W))), ir.const(B)))
    return emit(op.clip(biased, 0.0, 6.0))


def layer_of_rows(emit: Callable[[Expr], Expr], x: Expr) -> Expr:
    row = emit(op.reshape(x, (1, 4)))
    biased = emit(op.add(emit(op.matmul(row, ir.const(W))), ir.const(B.reshape(-1))))
    return emit(op.reshape(emit(op.clip(biased, 0.0, 6.0)), (1, 1, 1, 3)))


def test_a_layer_with_bias_and_activation() -> None:
    expected = module_of(lambda emit, x: op.exp(layer_of_rows(emit, x)))
    assert_structural_equal(DenseOnRows()(module_of(lambda emit, x: op.exp(layer(emit, x)))), expected)


def test_a_sum_that_is_read_twice() -> None:
    def before(emit: Callable[[Expr], Expr], x: Expr) -> Expr:
        product = emit(op.matmul(x, ir.const(W)))
        return op.add(emit(op.nn.relu(product)), product)

    def after(emit: Callable[[Expr], Expr], x: Expr) -> Expr:
        product = emit(op.matmul(emit(op.reshape(x, (1, 4))), ir.const(W)))
        shaped = emit(op.reshape(product, (1, 1, 1, 3)))
        return op.add(emit(op.nn.relu(shaped)), shaped)

    assert_structural_equal(DenseOnRows()(module_of(before)), module_of(after))


@pytest.mark.parametrize("shape", [(1, 4), (1, 2, 1, 4), (7, 4)])
def test_others_stay(shape: tuple[int, ...]) -> None:
    module = module_of(lambda emit, x: op.matmul(x, ir.const(W)), shape)
    assert_structural_equal(DenseOnRows()(module), module)


def test_the_values_are_the_same() -> None:
    module = module_of(layer)
    x = np.random.default_rng(2).normal(size=(1, 1, 1, 4)).astype("float32")
    (got,), (wanted,) = compile_function(DenseOnRows()(module))([x]), compile_function(module)([x])
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
