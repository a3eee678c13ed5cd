"""UnitStrides: golden modules, and the same integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.attrs import KERNEL
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.unit_strides import UnitStrides
from tvm_qplugin.simulator import simulate

SHAPE = (1, 7, 8, 6)


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 7, 8, 6), "float32")) -> R.Tensor((1, 3, 4, 6), "float32"):
        with R.dataflow():
            y = R.strided_slice(x, (1, 2), (1, 0), (7, 7), (2, 2))
            R.output(y)
        return y


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((1, 7, 8, 6), "float32")) -> R.Tensor((1, 3, 4, 6), "float32"):
        with R.dataflow():
            s = R.strided_slice(x, (1,), (1,), (7,), (1,))
            y = R.nn.max_pool2d(
                s, pool_size=[1, 1], strides=[2, 2], padding=[0, 0, 0, 0], layout="NHWC", out_layout="NHWC"
            )
            R.output(y)
        return y


def picking(make: Callable[[Any], Any]) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(make(x), "out")
        builder.emit_func_output(out)
    return builder.get()


def cut(axes: list[int], begin: list[int], end: list[int], step: list[int]) -> Callable[[Any], Any]:
    return lambda x: relax.op.strided_slice(x, axes, begin, end, step)


def take(indices: list[int]) -> Callable[[Any], Any]:
    return lambda x: relax.op.take(x, relax.const(np.array(indices)), 3, mode="wrap")


PICKS = {
    "rows": cut([1], [0], [7], [2]),
    "rows and columns": cut([1, 2], [0, 1], [6, 8], [2, 3]),
    "odd channels": cut([3], [1], [6], [2]),
    "all of them": cut([1, 2, 3], [1, 0, 0], [7, 8, 6], [2, 2, 2]),
    "channels of a list": take([4, 0, 0, 5]),
}


def test_rows_and_columns_by_a_pool() -> None:
    assert_structural_equal(UnitStrides()(Before), Expected)


@pytest.mark.parametrize(
    "make",
    [cut([1], [1], [5], [1]), cut([1], [6], [1], [-2]), lambda x: relax.op.take(x, relax.const([0]), 1)],
    ids=["without steps", "backwards", "rows of a list"],
)
def test_others_stay(make: Callable[[Any], Any]) -> None:
    module = picking(make)
    assert_structural_equal(UnitStrides()(module), module)


@pytest.mark.parametrize("name", PICKS)
def test_the_values_are_the_same(name: str) -> None:
    module = picking(PICKS[name])
    rewritten = UnitStrides()(module)
    assert not any(op in rewritten.script() for op in ("(2,)", "R.take"))
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    np.testing.assert_array_equal(compile_function(rewritten)([x])[0], compile_function(module)([x])[0])
    assert_structural_equal(UnitStrides()(rewritten), rewritten)


def quantized(make: Callable[[Any], Any], grid: QuantParams) -> IRModule:
    """``make`` between dequantize and quantize of one grid, its weights with the scale 1 / 127."""
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType(SHAPE, "int8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            value = make(builder.emit(ir.dequantize(q, grid)))
            if ir.op_name(value) == "relax.nn.conv2d":
                weight = ir.const(value.args[1].value.numpy() * 127, "int8")
                scale = QuantParams.of(np.float32(1 / 127))
                args = [value.args[0], builder.emit(ir.dequantize(weight, scale))]
                value = relax.Call(value.op, args, value.attrs)
            out = builder.emit_output(ir.quantize(builder.emit(value), grid))
        builder.emit_func_output(out)
    return builder.get()


@pytest.mark.parametrize("name", ["rows", "odd channels", "channels of a list"])
@pytest.mark.parametrize("scale", [0.5, 0.0123, 1 / 255])
def test_the_codes_are_the_same(name: str, scale: float) -> None:
    grid = QuantParams.of(scale, -11)
    value = ir.definitions(ir.main_function(UnitStrides()(picking(PICKS[name]))))
    (call,) = value.values()
    x = np.random.default_rng(1).integers(-128, 128, SHAPE).astype("int8")
    after = quantized(lambda y: relax.Call(call.op, [y, *call.args[1:]], call.attrs), grid)
    lowered = LowerInteger()(after)
    kernels = {str(lowered[v].attrs[KERNEL]) for v in lowered.get_global_vars() if v.name_hint != "main"}
    assert kernels == {"qmaxpool2d" if name == "rows" else "qconv2d"}
    np.testing.assert_array_equal(simulate(after, x)[0], simulate(quantized(PICKS[name], grid), x)[0])
