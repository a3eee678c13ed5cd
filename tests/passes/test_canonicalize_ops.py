"""CanonicalizeOps: golden modules, one rewrite a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal

from tvm_qplugin.passes.canonicalize_ops import CanonicalizeOps

Expr = Any
SHAPE = (1, 3, 4, 4)
C = relax.const(np.arange(3, dtype="float32").reshape(1, 3, 1, 1))


def module_of(make: Callable[[relax.BlockBuilder, Expr], Expr]) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", params=[x]):
        with builder.dataflow():
            out = builder.emit_output(make(builder, x))
        builder.emit_func_output(out)
    return builder.get()


def scalar(value: float) -> Expr:
    return relax.const(np.float32(value))


def one(value: float) -> Expr:
    return relax.const(np.full((1, 1, 1), value, "float32"))


def index(*values: int) -> Expr:
    return relax.const(np.array(values), "int64")


op = relax.op
REWRITES: dict[str, tuple[Callable[..., Expr], Callable[..., Expr]]] = {
    "constant goes right": (lambda b, x: op.add(C, x), lambda b, x: op.add(x, C)),
    "not in subtract": (lambda b, x: op.subtract(C, x), lambda b, x: op.subtract(C, x)),
    "one element is a scalar": (lambda b, x: op.multiply(x, one(2)), lambda b, x: op.multiply(x, scalar(2))),
    "relu": (lambda b, x: op.maximum(x, scalar(0)), lambda b, x: op.nn.relu(x)),
    "relu6": (
        lambda b, x: op.minimum(b.emit(op.maximum(x, scalar(0))), scalar(6)),
        lambda b, x: op.clip(x, 0.0, 6.0),
    ),
    "nn.relu6": (lambda b, x: op.nn.relu6(x), lambda b, x: op.clip(x, 0.0, 6.0)),
    "two clips": (
        lambda b, x: op.clip(b.emit(op.clip(x, -1.0, 5.0)), 0.0, 6.0),
        lambda b, x: op.clip(x, 0.0, 5.0),
    ),
    "disjoint clips stay": (
        lambda b, x: op.clip(b.emit(op.clip(x, 0.0, 1.0)), 2.0, 3.0),
        lambda b, x: op.clip(b.emit(op.clip(x, 0.0, 1.0)), 2.0, 3.0),
    ),
    "two reshapes": (
        lambda b, x: op.reshape(b.emit(op.reshape(x, (3, 16))), (48,)),
        lambda b, x: op.reshape(x, (48,)),
    ),
    "expand_dims": (lambda b, x: op.expand_dims(x, 0), lambda b, x: op.reshape(x, (1, *SHAPE))),
    "squeeze": (lambda b, x: op.squeeze(x, [0]), lambda b, x: op.reshape(x, SHAPE[1:])),
    "mean": (lambda b, x: op.mean(x, [-1, -2], True), lambda b, x: op.mean(x, [2, 3], True)),
    "adaptive pool": (
        lambda b, x: op.nn.adaptive_avg_pool2d(x, (1, 1)),
        lambda b, x: op.mean(x, [2, 3], True),
    ),
    "adaptive pool of equal windows": (
        lambda b, x: op.nn.adaptive_avg_pool2d(x, (2, 1)),
        lambda b, x: op.nn.avg_pool2d(x, (2, 4), (2, 4)),
    ),
    "adaptive pool of other windows stays": (
        lambda b, x: op.nn.adaptive_avg_pool2d(x, (3, 4)),
        lambda b, x: op.nn.adaptive_avg_pool2d(x, (3, 4)),
    ),
    "adaptive pool in one dimension": (
        lambda b, x: op.nn.adaptive_avg_pool1d(b.emit(op.reshape(x, (1, 6, 8))), 1),
        lambda b, x: op.mean(b.emit(op.reshape(x, (1, 6, 8))), [2], True),
    ),
    "take from the end": (
        lambda b, x: op.take(x, relax.const(np.int64([-1])), 1),
        lambda b, x: op.take(x, relax.const(np.int64([2])), 1, mode="wrap"),
    ),
    "take of computed numbers": (
        lambda b, x: op.take(x, b.emit(op.argmax(x, 0)), 1),
        lambda b, x: op.take(x, b.emit(op.argmax(x, 0)), 1, mode="wrap"),
    ),
    "broadcast": (
        lambda b, x: op.broadcast_to(x, (2, 1, 3, 4, 4)),
        lambda b, x: op.take(b.emit(op.reshape(x, (1, *SHAPE))), index(0, 0), 0, mode="wrap"),
    ),
    "tile": (
        lambda b, x: op.tile(x, (1, 2, 1, 1)),
        lambda b, x: op.take(x, index(0, 1, 2, 0, 1, 2), 1, mode="wrap"),
    ),
    "repeat": (
        lambda b, x: op.repeat(x, 2, -3),
        lambda b, x: op.take(x, index(0, 0, 1, 1, 2, 2), 1, mode="wrap"),
    ),
    "stack": (
        lambda b, x: op.stack([x, b.emit(op.nn.relu(x))], -1),
        lambda b, x: op.concat(
            [b.emit(op.reshape(part, (*SHAPE, 1))) for part in (x, b.emit(op.nn.relu(x)))],
            4,
        ),
    ),
    "dropout": (lambda b, x: op.nn.relu(b.emit(op.nn.dropout(x))[0]), lambda b, x: op.nn.relu(x)),
    "identity transpose": (
        lambda b, x: op.nn.relu(b.emit(op.permute_dims(x, [0, 1, 2, 3]))),
        lambda b, x: op.nn.relu(x),
    ),
}


@pytest.mark.parametrize("case", REWRITES)
def test_rewrite(case: str) -> None:
    before, expected = REWRITES[case]
    assert_structural_equal(CanonicalizeOps()(module_of(before)), module_of(expected))
