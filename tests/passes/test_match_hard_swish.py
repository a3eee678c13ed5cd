"""Hard swish in float functions, however it is written."""

from collections.abc import Callable
from typing import Any

import pytest
from tvm import relax
from tvm.script import relax as R

from tvm_qplugin.passes.match_hard_swish import hard_swishes

op = relax.op


def number(value: float) -> relax.Expr:
    return relax.const(value, "float32")


def found(make: Callable[[Any, Any], list[Any]]) -> dict[str, tuple[str, set[str]]]:
    builder = relax.BlockBuilder()
    x = relax.Var("x", R.Tensor((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.Tuple(make(builder, x)))
        builder.emit_func_output(out)
    matches = hard_swishes(builder.get()["main"])
    return {var.name: (leaf.name, {m.name for m in members}) for var, (leaf, members) in matches.items()}


def gate(builder: Any, x: Any, bound: float = 6.0) -> Any:
    return builder.emit(op.clip(builder.emit(op.add(x, number(3)), "shifted"), 0, bound), "gate")


def test_gate_first():
    def make(builder: Any, x: Any) -> list[Any]:
        sixth = builder.emit(op.divide(gate(builder, x), number(6)), "sixth")
        return [builder.emit(op.multiply(x, sixth), "y")]

    assert found(make) == {"y": ("x", {"shifted", "gate", "sixth", "y"})}


def test_product_first():
    def make(builder: Any, x: Any) -> list[Any]:
        product = builder.emit(op.multiply(x, gate(builder, x)), "product")
        return [builder.emit(op.multiply(product, number(1 / 6)), "y")]

    assert found(make) == {"y": ("x", {"shifted", "gate", "product", "y"})}


@pytest.mark.parametrize("bound", [5.0, 7.0])
def test_another_bound(bound: float):
    def make(builder: Any, x: Any) -> list[Any]:
        product = builder.emit(op.multiply(x, gate(builder, x, bound)), "product")
        return [builder.emit(op.multiply(product, number(1 / 6)), "y")]

    assert not found(make)


def test_what_is_read_from_outside():
    def make(builder: Any, x: Any) -> list[Any]:
        opened = gate(builder, x)
        product = builder.emit(op.multiply(x, opened), "product")
        return [builder.emit(op.multiply(product, number(1 / 6)), "y"), opened]

    assert not found(make)


def test_another_factor():
    def make(builder: Any, x: Any) -> list[Any]:
        other = builder.emit(op.exp(x), "other")
        product = builder.emit(op.multiply(other, gate(builder, x)), "product")
        return [builder.emit(op.multiply(product, number(1 / 6)), "y")]

    assert not found(make)
