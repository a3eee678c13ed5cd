"""ToNHWC: golden modules. The numbers are tested with the frontend, operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal

from tvm_qplugin.builder import compile_function
from tvm_qplugin.passes.rebuild import op_name, straight_bindings
from tvm_qplugin.passes.to_nhwc import ToNHWC

Expr = Any
op = relax.op
SHAPE = (1, 3, 4, 6)
RNG = np.random.default_rng(2)
WEIGHT = RNG.normal(size=(8, 3, 1, 1)).astype("float32")
OHWI = np.ascontiguousarray(WEIGHT.transpose(0, 2, 3, 1))


def module_of(make: Callable[[relax.BlockBuilder, Expr], Expr], shape: tuple[int, ...] = SHAPE) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", params=[x]):
        with builder.dataflow():
            out = builder.emit_output(make(builder, x))
        builder.emit_func_output(out)
    return builder.get()


def conv(x: Expr) -> Expr:
    return op.nn.conv2d(x, relax.const(WEIGHT))


def conv_nhwc(x: Expr) -> Expr:
    return op.nn.conv2d(x, relax.const(OHWI), data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC")


def to_nhwc(builder: relax.BlockBuilder, x: Expr) -> Expr:
    return builder.emit(op.permute_dims(x, [0, 2, 3, 1]))


def check(before: Callable[..., Expr], expected: Callable[..., Expr]) -> None:
    assert_structural_equal(ToNHWC()(module_of(before)), module_of(expected))


def operators(module: IRModule) -> list[str]:
    return [op_name(value) for _, value in straight_bindings(module["main"])]


def test_convolution_with_bias() -> None:
    bias = np.arange(8, dtype="float32")
    check(
        lambda b, x: op.add(b.emit(conv(x)), relax.const(bias.reshape(1, 8, 1, 1))),
        lambda b, x: op.permute_dims(
            b.emit(op.add(b.emit(conv_nhwc(to_nhwc(b, x))), relax.const(bias))), [0, 3, 1, 2]
        ),
    )


def test_depthwise_weights() -> None:
    weight = RNG.normal(size=(3, 1, 3, 2)).astype("float32")
    moved = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
    check(
        lambda b, x: op.nn.conv2d(x, relax.const(weight), groups=3),
        lambda b, x: op.permute_dims(
            b.emit(
                op.nn.conv2d(
                    to_nhwc(b, x), relax.const(moved), groups=3, data_layout="NHWC", kernel_layout="OHWI"
                )
            ),
            [0, 3, 1, 2],
        ),
    )


def test_dense_after_flatten_gets_its_rows_permuted() -> None:
    weight = RNG.normal(size=(8 * 4 * 6, 5)).astype("float32")
    rows = weight.reshape(8, 4, 6, 5).transpose(1, 2, 0, 3).reshape(weight.shape)
    check(
        lambda b, x: op.matmul(
            b.emit(op.nn.relu(b.emit(op.reshape(b.emit(conv(x)), (1, 192))))), relax.const(weight)
        ),
        lambda b, x: op.matmul(
            b.emit(op.nn.relu(b.emit(op.reshape(b.emit(conv_nhwc(to_nhwc(b, x))), (1, 192))))),
            relax.const(rows),
        ),
    )


def test_quantized_dense_after_flatten() -> None:
    weight = RNG.integers(-127, 128, (192, 5)).astype("int8")
    rows = np.ascontiguousarray(weight.reshape(8, 4, 6, 5).transpose(1, 2, 0, 3).reshape(weight.shape))
    scale, zero = relax.const(np.full(5, 0.1, "float32")), relax.const(np.zeros(5, "int8"))

    def dense(b: relax.BlockBuilder, x: Expr, w: np.ndarray[Any, Any]) -> Expr:
        flat = b.emit(op.reshape(x, (1, 192)))
        return op.matmul(flat, b.emit(op.dequantize(relax.const(w), scale, zero, axis=1)))

    module = ToNHWC()(module_of(lambda b, x: dense(b, b.emit(conv(x)), weight)))
    assert_structural_equal(module, module_of(lambda b, x: dense(b, b.emit(conv_nhwc(to_nhwc(b, x))), rows)))


def test_quantized_weights_stay_integer() -> None:
    weight = RNG.integers(-127, 128, WEIGHT.shape).astype("int8")
    moved = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
    scale, zero = relax.const(np.full(8, 0.1, "float32")), relax.const(np.zeros(8, "int8"))

    def before(b: relax.BlockBuilder, x: Expr) -> Expr:
        return op.nn.conv2d(x, b.emit(op.dequantize(relax.const(weight), scale, zero, axis=0)))

    def expected(b: relax.BlockBuilder, x: Expr) -> Expr:
        x = to_nhwc(b, x)
        w = b.emit(op.dequantize(relax.const(moved), scale, zero, axis=0))
        out = op.nn.conv2d(x, w, data_layout="NHWC", kernel_layout="OHWI")
        return op.permute_dims(b.emit(out), [0, 3, 1, 2])

    check(before, expected)


def test_per_axis_quantization_follows_its_axis() -> None:
    scale, zero = relax.const(np.full(8, 0.1, "float32")), relax.const(np.zeros(8, "int8"))
    module = ToNHWC()(module_of(lambda b, x: op.quantize(b.emit(conv(x)), scale, zero, axis=1)))
    calls = [value for _, value in straight_bindings(module["main"]) if op_name(value) == "quantize"]
    assert [int(call.attrs.axis) for call in calls] == [3]


def test_flatten_of_one_pixel_needs_no_transposition() -> None:
    module = ToNHWC()(
        module_of(lambda b, x: op.reshape(b.emit(op.mean(b.emit(conv(x)), [2, 3], True)), (1, 8)))
    )
    assert operators(module) == ["permute_dims", "nn.conv2d", "mean", "reshape"]


def test_transpositions_around_softmax_cancel() -> None:
    def before(b: relax.BlockBuilder, x: Expr) -> Expr:
        turned = b.emit(op.permute_dims(b.emit(conv(x)), [0, 3, 2, 1]))
        return conv_more(b, b.emit(op.permute_dims(b.emit(op.nn.softmax(turned, 3)), [0, 3, 2, 1])))

    def conv_more(b: relax.BlockBuilder, x: Expr) -> Expr:
        return op.nn.max_pool2d(x, (2, 2))

    module = ToNHWC()(module_of(before))
    expected = ["permute_dims", "nn.conv2d", "nn.softmax", "nn.max_pool2d", "permute_dims"]
    assert operators(module) == expected


def test_operator_without_nhwc_form_gets_transpositions() -> None:
    weight = relax.const(np.ones((8, 2, 2, 2), "float32"))
    module = ToNHWC()(module_of(lambda b, x: op.nn.conv2d_transpose(b.emit(conv(x)), weight)))
    assert operators(module) == ["permute_dims", "nn.conv2d", "permute_dims", "nn.conv2d_transpose"]


def test_shuffled_channels_become_one_transposition() -> None:
    def before(b: relax.BlockBuilder, x: Expr) -> Expr:
        groups = b.emit(op.reshape(b.emit(conv(x)), (1, 2, 4, 4, 6)))
        turned = b.emit(op.permute_dims(groups, [0, 2, 1, 3, 4]))
        return op.nn.relu(b.emit(op.reshape(turned, (1, 8, 4, 6))))

    def expected(b: relax.BlockBuilder, x: Expr) -> Expr:
        groups = b.emit(op.reshape(b.emit(conv_nhwc(to_nhwc(b, x))), (1, 24, 2, 4)))
        shuffled = b.emit(op.reshape(b.emit(op.permute_dims(groups, [0, 1, 3, 2])), (1, 4, 6, 8)))
        return op.permute_dims(b.emit(op.nn.relu(shuffled)), [0, 3, 1, 2])

    check(before, expected)


def test_channels_picked_irregularly_become_take() -> None:
    def before(b: relax.BlockBuilder, x: Expr) -> Expr:
        flat = b.emit(op.reshape(b.emit(conv(x)), (8, 24)))
        picked = b.emit(op.take(flat, relax.const(np.int64([5, 0, 6])), 0, mode="wrap"))
        return op.nn.relu(b.emit(op.reshape(picked, (1, 3, 4, 6))))

    module = ToNHWC()(module_of(before))
    assert operators(module) == ["permute_dims", "nn.conv2d", "take", "nn.relu", "permute_dims"]


def test_nhwc_inputs() -> None:
    module = ToNHWC(nhwc_inputs=True)(module_of(lambda b, x: conv(x)))
    assert operators(module) == ["nn.conv2d", "permute_dims"]
    assert [int(d) for d in module["main"].params[0].ty.shape] == [1, 4, 6, 3]


def test_no_image_no_change() -> None:
    def plain(b: relax.BlockBuilder, x: Expr) -> Expr:
        return op.nn.softmax(b.emit(op.add(x, relax.const(np.float32(1)))), 1)

    check(plain, plain)


@pytest.mark.parametrize("groups", [1, 2])
def test_blocks_of_channels_become_pixels_in_one_transposition(groups: int) -> None:
    def pixels(b: relax.BlockBuilder, x: Expr) -> Expr:
        grid = b.emit(op.reshape(b.emit(conv(x)), (1, groups, 2, 2, 2 // groups, 4, 6)))
        turned = b.emit(op.permute_dims(grid, [0, 1, 4, 5, 2, 6, 3]))
        return op.nn.relu(b.emit(op.reshape(turned, (1, 2, 8, 12))))

    moved = ToNHWC()(module_of(pixels))
    shuffle = ["reshape", "permute_dims", "reshape"]
    assert operators(moved) == ["permute_dims", "nn.conv2d", *shuffle, "nn.relu", "permute_dims"]
    x = RNG.normal(size=(1, 3, 4, 6)).astype("float32")
    (found,), (wanted,) = compile_function(moved)([x]), compile_function(module_of(pixels))([x])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
