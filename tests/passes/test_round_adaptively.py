"""RoundAdaptively: golden modules of a convolution and of a dense layer."""

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.round_adaptively import RoundAdaptively

GRID = QuantParams.of(0.5, 3)
RNG = np.random.default_rng(0)
OLD = RNG.integers(-127, 128, (4, 3, 3, 2)).astype("int8")
NEW = RNG.integers(-127, 128, (4, 3, 3, 2)).astype("int8")


def network(kernel: Array, matrix: Array, axis: int | None = 0) -> IRModule:
    """A convolution [4, 3, 3, 2] called ``c``, a dense layer [2, 4] (as given) called ``d``."""
    conv = QuantParams.of([0.1, 0.2, 0.3, 0.4], 0, "int8", 0) if axis == 0 else QuantParams.of(0.1)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 3, 2), "float32"))

    def pair(value: relax.Expr, name: str) -> relax.Expr:
        return builder.emit(ir.dequantize(builder.emit(ir.quantize(value, GRID), f"{name}_q"), GRID), name)

    with builder.function("main", [x]):
        with builder.dataflow():
            image = pair(x, "x_dq")
            weight = builder.emit(ir.dequantize(ir.const(kernel), conv), "c_weight")
            made = relax.op.nn.conv2d(
                image, weight, data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC"
            )
            image = pair(builder.emit(relax.op.nn.relu(builder.emit(made, "conv")), "c"), "c_dq")
            row = builder.emit(relax.op.reshape(image, (1, 4)), "row")
            other = builder.emit(ir.dequantize(ir.const(matrix), QuantParams.of(0.1)), "d_weight")
            product = builder.emit(relax.op.matmul(row, other), "d")
            q = builder.emit(ir.quantize(product, GRID), "d_q")
            out = builder.emit_output(ir.dequantize(q, GRID), "out")
        builder.emit_func_output(out)
    return builder.get()


@pytest.mark.parametrize("axis", [0, None])
def test_golden(axis: int | None) -> None:
    old, new = OLD[:2, 0, :2].reshape(2, 4), NEW[:2, 0, :2].reshape(2, 4)
    after = RoundAdaptively({"c": NEW, "d": new})(network(OLD, np.ascontiguousarray(old.T), axis))
    tvm.ir.assert_structural_equal(after, network(NEW, np.ascontiguousarray(new.T), axis))


def test_others_stay() -> None:
    module = network(OLD, OLD[0, 0].repeat(2)[:8].reshape(4, 2))
    tvm.ir.assert_structural_equal(RoundAdaptively({})(module), module)


def test_a_layer_that_is_not_quantized() -> None:
    with pytest.raises(ModelError, match="row: no quantized convolution or dense layer"):
        RoundAdaptively({"row": NEW})(network(OLD, OLD[0, 0].repeat(2)[:8].reshape(4, 2)))
