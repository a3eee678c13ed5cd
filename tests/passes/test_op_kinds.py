"""What the int8 scheme knows of single operators."""

import numpy as np
import pytest
from tvm import relax

from tvm_qplugin.core.profile import INT8_KINDS
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import (
    FUSIBLE,
    KIND_NAMES,
    MOVEMENT,
    SAME_SCALE,
    bias_of,
    is_activation,
    kind_of,
    obstacle,
)

IMAGE = relax.Var("x", relax.TensorType((1, 8, 8, 4), "float32"))
MATRIX = relax.Var("m", relax.TensorType((2, 4), "float32"))
op = relax.op


def zeros(*shape: int) -> relax.Expr:
    return ir.const(np.zeros(shape), "float32")


def why(call: relax.Expr) -> str:
    bb = relax.BlockBuilder()
    with bb.function("f", [IMAGE, MATRIX]):
        value = bb.normalize(call)
        bb.emit_func_output(bb.emit(value))
    return obstacle(kind_of(value), value)


def conv(x: relax.Expr, weight: relax.Expr, layouts: tuple[str, str] = ("NHWC", "OHWI")) -> relax.Expr:
    return op.nn.conv2d(x, weight, data_layout=layouts[0], kernel_layout=layouts[1])


def test_every_kind_has_a_kernel_in_the_profiles():
    assert KIND_NAMES | MOVEMENT | SAME_SCALE | set(FUSIBLE) <= INT8_KINDS


@pytest.mark.parametrize(
    "call",
    [
        conv(IMAGE, zeros(5, 3, 3, 4)),
        op.matmul(MATRIX, zeros(4, 3)),
        op.matmul(MATRIX, op.permute_dims(MATRIX)),
        op.nn.avg_pool2d(IMAGE, (2, 2), ceil_mode=True, layout="NHWC"),
        op.nn.max_pool2d(IMAGE, (2, 2), dilation=(2, 2), layout="NHWC"),
        op.max(IMAGE, [1, 2], keepdims=True),
        op.max(IMAGE, [3]),
        op.min(IMAGE, [1, 2]),
        op.sum(IMAGE, [3], keepdims=True),
        op.maximum(IMAGE, zeros(4)),
        op.nn.pad(IMAGE, (0, 0, 1, 1, 1, 1, 0, 0), pad_value=1.0),
        op.nn.pad(IMAGE, (0, 0, 1, 1, 1, 1, 0, 0)),
        op.image.resize2d(IMAGE, (4, 4), layout="NHWC", method="linear"),
        op.take(IMAGE, ir.const(np.asarray([1, 2]), "int64"), 1),
        op.add(MATRIX, zeros(4)),
    ],
)
def test_what_has_a_kernel(call: relax.Expr):
    assert why(call) == ""


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (op.matmul(zeros(3, 2), MATRIX), "weight is not a constant"),
        (op.matmul(MATRIX, op.reshape(op.mean(MATRIX, [0]), (4,))), "product with a vector"),
        (
            op.matmul(op.zeros((1, 40_000), "float32"), op.zeros((40_000, 1), "float32")),
            "sums of 40000 products may leave int32",
        ),
        (op.matmul(MATRIX, zeros(2, 4, 3)), "not a matrix"),
        (
            conv(op.permute_dims(IMAGE, (0, 3, 1, 2)), zeros(5, 4, 3, 3), ("NCHW", "OIHW")),
            "layout is NCHW/OIHW",
        ),
        (op.nn.avg_pool2d(IMAGE, (2, 2), dilation=(2, 1), layout="NHWC"), "dilated"),
        (op.nn.avg_pool2d(IMAGE, (2, 2), ceil_mode=True, count_include_pad=True, layout="NHWC"), "ceil_mode"),
        (op.nn.max_pool2d(IMAGE, (2, 2)), "layout is NCHW"),
        (op.image.resize2d(IMAGE, (4, 4), layout="NHWC", method="cubic"), "method is cubic"),
        (op.nn.pad(IMAGE, (0, 0, 1, 1, 1, 1, 0, 0), "reflect"), "mode is reflect"),
        (op.nn.pad(IMAGE, (0, 0, 1, 1, 1, 1, 0, 0), pad_value=-1e9), "pads with -1e+09"),
    ],
)
def test_what_has_none_and_why(call: relax.Expr, reason: str):
    assert reason in why(call)


def test_integers_are_not_quantized():
    x = relax.Var("i", relax.TensorType((2, 4), "int32"))
    assert obstacle("add", op.add(x, x)) == "it is not computed in float32"


def test_a_bias_is_a_vector_over_the_last_axis_or_a_scalar():
    def bias(array: np.ndarray) -> list[float] | None:
        found = bias_of(IMAGE, op.add(IMAGE, ir.const(array, "float32")))
        return None if found is None else found.tolist()

    assert bias(np.arange(4)) == [0, 1, 2, 3]
    assert bias(np.arange(4).reshape(1, 1, 1, 4)) == [0, 1, 2, 3]
    assert bias(np.asarray(2)) == [2, 2, 2, 2]
    assert bias(np.zeros((8, 1))) is None
    assert bias(np.zeros((1, 1, 1, 1, 4))) is None


def test_activations():
    assert is_activation(IMAGE, op.nn.relu(IMAGE)) and is_activation(IMAGE, op.clip(IMAGE, 0, 6))
    assert not is_activation(IMAGE, op.sigmoid(IMAGE))
