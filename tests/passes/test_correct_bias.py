"""CorrectBias: golden modules with and without a bias, and names that are no layer."""

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.correct_bias import CorrectBias

GRID, OUT = QuantParams.of(0.5, 3), QuantParams.of(1.5, -20)
WEIGHT = QuantParams.of([0.25, 0.5], 0, "int8", 1)
BIAS = QuantParams.of([0.125, 0.25], 0, "int32", 0)


def dense(bias: Array | None, name: str = "product", relu: bool = True) -> IRModule:
    """A dense layer [1, 3] x [3, 2] with relu; ``y`` is its output."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            real = builder.emit(ir.dequantize(builder.emit(ir.quantize(x, GRID), "x_q"), GRID), "x_dq")
            weight = builder.emit(ir.dequantize(ir.const(np.int8([[1, 2], [3, 4], [5, 6]])), WEIGHT), "w")
            y = builder.emit(relax.op.matmul(real, weight), name)
            if bias is not None:
                added = builder.emit(ir.dequantize(ir.const(np.asarray(bias, "int32")), BIAS), "b")
                y = builder.emit(relax.op.add(y, added), "sum")
            y = builder.emit(relax.op.nn.relu(y), "y") if relu else y
            q = builder.emit(ir.quantize(y, OUT), "y_q")
            out = builder.emit_output(ir.dequantize(q, OUT), "out")
        builder.emit_func_output(out)
    return builder.get()


def test_a_bias_is_shifted() -> None:
    after = CorrectBias({"y": np.int64([5, -7])})(dense([10, 20]))
    tvm.ir.assert_structural_equal(after, dense([15, 13]))


def test_a_layer_without_bias_gets_one() -> None:
    after = CorrectBias({"y": np.int64([5, -7])})(dense(None))
    tvm.ir.assert_structural_equal(after, dense([5, -7]))


def test_a_layer_without_bias_and_activation_keeps_its_name() -> None:
    after = CorrectBias({"y": np.int64([5, -7])})(dense(None, "y", relu=False))
    sums = {var.name: value for var, value in ir.bindings(after["main"])}
    assert ir.op_name(sums["y"]) == "relax.add"
    tvm.ir.assert_structural_equal(after, dense([5, -7], relu=False))


def test_biases_saturate() -> None:
    after = CorrectBias({"y": np.int64([2**31, -(2**40)])})(dense([10, 20]))
    tvm.ir.assert_structural_equal(after, dense([2**31 - 1, -(2**31)]))


@pytest.mark.parametrize("name", ["x_q", "nobody", "out"])
def test_names_that_are_no_layer(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name}: no quantized convolution or dense layer"):
        CorrectBias({name: np.int64([0, 0])})(dense([1, 2]))
