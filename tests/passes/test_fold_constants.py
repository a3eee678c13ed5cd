"""FoldConstants: what is folded, and what must stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal

from tvm_qplugin.passes.fold_constants import FoldConstants

Expr = Any
op = relax.op
A = np.arange(6, dtype="float32").reshape(2, 3)
B = np.float32([1, 2, 4])


def module_of(make: Callable[[relax.BlockBuilder, Expr], Expr]) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 2), "float32"))
    with builder.function("main", params=[x]):
        with builder.dataflow():
            out = builder.emit_output(make(builder, x))
        builder.emit_func_output(out)
    return builder.get()


FOLDED: dict[str, tuple[Callable[[], Expr], Any]] = {
    "permute_dims": (lambda: op.permute_dims(relax.const(np.ascontiguousarray(A.T)), [1, 0]), A),
    "reshape": (lambda: op.reshape(relax.const(A.reshape(-1)), (2, 3)), A),
    "add": (lambda: op.add(relax.const(A), relax.const(B)), A + B),
    "divide": (lambda: op.divide(relax.const(A), relax.const(B)), A / B),
    "sqrt": (lambda: op.sqrt(relax.const(A)), np.sqrt(A)),
    "astype": (lambda: op.astype(relax.const(A.astype("int64")), "float32"), A),
    "broadcast_to": (lambda: op.broadcast_to(relax.const(B), (2, 3)), np.broadcast_to(B, (2, 3)).copy()),
}


@pytest.mark.parametrize("case", FOLDED)
def test_constant_expression(case: str) -> None:
    make, value = FOLDED[case]
    before = module_of(lambda b, x: op.matmul(x, b.emit(make())))
    expected = module_of(lambda b, x: op.matmul(x, relax.const(np.asarray(value))))
    assert_structural_equal(FoldConstants()(before), expected)


def test_dequantized_constant_stays_integer() -> None:
    q = relax.const(np.int8([[1, 2, 3], [4, 5, 6]]))
    scale, zero = relax.const(np.float32([0.5, 0.25])), relax.const(np.int8([0, 0]))
    before = module_of(lambda b, x: op.matmul(x, b.emit(op.dequantize(q, scale, zero, axis=0))))
    assert_structural_equal(FoldConstants()(before), before)


def test_transposition_moves_into_the_dequantized_constant() -> None:
    q = np.int8([[1, 2], [4, 5], [7, 8]])
    scale, zero = relax.const(np.float32([0.5, 0.25, 1])), relax.const(np.int8([0, 0, 0]))

    def weight(b: relax.BlockBuilder, value: Any, axis: int) -> Expr:
        return b.emit(op.dequantize(relax.const(np.ascontiguousarray(value)), scale, zero, axis=axis))

    before = module_of(lambda b, x: op.matmul(x, b.emit(op.permute_dims(weight(b, q, 0)))))
    assert_structural_equal(FoldConstants()(before), module_of(lambda b, x: op.matmul(x, weight(b, q.T, 1))))


def test_quantized_constant_becomes_integer() -> None:
    scale, zero = relax.const(np.float32(0.5)), relax.const(np.int8(1))

    def weight(b: relax.BlockBuilder, value: Expr) -> Expr:
        return b.emit(op.dequantize(value, scale, zero, axis=-1))

    def before(b: relax.BlockBuilder, x: Expr) -> Expr:
        return op.matmul(x, weight(b, b.emit(op.quantize(relax.const(A), scale, zero, axis=-1))))

    q = np.rint(A / 0.5 + 1).astype("int8")
    assert_structural_equal(
        FoldConstants()(module_of(before)), module_of(lambda b, x: op.matmul(x, weight(b, relax.const(q))))
    )
