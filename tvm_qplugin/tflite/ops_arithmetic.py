"""Kernels without windows as TFLite operators: conversions, sums, products, means, softmax, clamps."""

from __future__ import annotations

import numpy as np

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes.match_int16 import UNIT_GRID
from tvm_qplugin.tflite.node import Node
from tvm_qplugin.tflite.writer import Value

SOFTMAX_GRIDS = {"int8": QuantParams.of(1 / 256, -128), "int16": UNIT_GRID}


def quantize(node: Node) -> Value:
    """QUANTIZE of floats, transposed before."""
    x, axes = node.value(0), node.params.get("axes")
    if axes:
        x = transposed(node, x, axes, node.writer.tensor(f"{node.name}_nhwc", _moved(x, axes)))
    return node.emit("QUANTIZE", [x])


def dequantize(node: Node) -> Value:
    """DEQUANTIZE, transposed afterwards."""
    x, axes = node.value(0), node.params.get("axes")
    if not axes:
        return node.emit("DEQUANTIZE", [x])
    inner = node.writer.tensor(f"{node.name}_nhwc", TensorSpec(x.spec.shape, "float32"))
    node.writer.operator("DEQUANTIZE", [x], [inner])
    return transposed(node, inner, axes, node.result())


def requantize(node: Node) -> Value:
    """QUANTIZE between integer grids."""
    return node.emit("QUANTIZE", [node.value(0)])


def requantize16(node: Node) -> Value:
    """QUANTIZE from or to int16."""
    if node.out.dtype == "uint8":
        raise node.refuse("LiteRT does not convert int16 to uint8: use int16 or float outputs")
    return requantize(node)


def add(node: Node) -> Value:
    """ADD or, where the second multiplier is negative, SUB."""
    inputs = [node.value(0), node.value(1)]
    if node.params["b_mul"] < 0:
        return node.activated("SUB", inputs, "SubOptions")
    return node.activated("ADD", inputs, "AddOptions")


def add16(node: Node) -> Value:
    """ADD or SUB with scales that are no powers of two."""
    code = "SUB" if node.params["subtract"] else "ADD"
    inputs = [node.value(0), node.value(1)]
    return node.activated(code, inputs, f"{code.title()}Options", potScaleInt16=False)


def multiply(node: Node) -> Value:
    """MUL."""
    return node.activated("MUL", [node.value(0), node.value(1)], "MulOptions")


def matmul(node: Node) -> Value:
    """BATCH_MATMUL."""
    inputs = [node.value(0), node.value(1)]
    if any((x.spec.dtype == "int16") != node.wide for x in inputs):
        raise node.refuse(
            f"TFLite has no matrix product from {inputs[0].spec.dtype} to {node.out.dtype}: use recipe "
            "int16x8"
        )
    return node.unfused("BATCH_MATMUL", inputs, "BatchMatMulOptions", adjX=False, adjY=False)


def prelu(node: Node) -> Value:
    """PRELU; the slopes of an image lie along its last axis, as Keras writes them."""
    if node.wide:
        raise node.refuse("LiteRT has no PRELU of int16: use int8, or LEAKY_RELU with one slope")
    slopes = node.writer.constant(f"{node.name}_alpha", slopes_of(node), node.grids[f"{node.name}_weight"])
    return node.unfused("PRELU", [node.value(0), slopes])


def slopes_of(node: Node) -> Array:
    """The slopes of a PRELU in as many dimensions as the image has, but the batch."""
    alpha = node.array(1)
    return alpha.reshape((1,) * max(len(node.out.shape) - 2, 0) + alpha.shape)


def mean(node: Node) -> Value:
    """MEAN; a clamp behind it is an operator of its own."""
    return _reduced(node, "MEAN")


def total(node: Node) -> Value:
    """SUM."""
    return _reduced(node, "SUM")


def reduction(node: Node) -> Value:
    """REDUCE_MAX or REDUCE_MIN."""
    return _reduced(node, "REDUCE_MAX" if node.params["largest"] else "REDUCE_MIN")


def _reduced(node: Node, code: str) -> Value:
    inputs = [node.value(0), node.numbers(node.params["axes"], "axes")]
    return node.unfused(code, inputs, "ReducerOptions", keepDims=bool(node.params["keepdims"]))


def extreme(node: Node) -> Value:
    """MAXIMUM or MINIMUM of two tensors."""
    code = "MAXIMUM" if node.params["largest"] else "MINIMUM"
    return node.unfused(code, [node.value(0), node.value(1)], "MaximumMinimumOptions")


def softmax(node: Node) -> Value:
    """SOFTMAX with TFLite's fixed output."""
    fixed = SOFTMAX_GRIDS[node.out.dtype]
    if not node.grid.same(fixed):
        raise node.refuse(
            f"TFLite fixes the output of a softmax to scale 1/{1 / float(fixed.scale):g} and zero point "
            f"{int(fixed.zero_point)}, this one has {float(node.grid.scale)} and "
            f"{int(node.grid.zero_point)}: quantize the float model here"
        )
    return softmax_over(node, int(node.params["axis"]))


def softmax_over(node: Node, axis: int) -> Value:
    """SOFTMAX over the last axis; another one is brought there and back."""
    x, rank, grid = node.value(0), len(node.out.shape), node.grids.get(node.name)
    if axis == rank - 1:
        return node.emit("SOFTMAX", [x], "SoftmaxOptions", beta=1.0)
    order = [i for i in range(rank) if i != axis] + [axis]
    moved = _moved(x, order)
    last = transposed(node, x, order, node.writer.tensor(f"{node.name}_moved", moved, x.grid))
    raw = node.writer.tensor(f"{node.name}_raw", moved, grid)
    node.writer.operator("SOFTMAX", [last], [raw], "SoftmaxOptions", beta=1.0)
    return transposed(node, raw, [int(i) for i in np.argsort(order)], node.result())


def clamp(node: Node) -> Value:
    """A stand-alone activation, or MAXIMUM and MINIMUM where TFLite has none with these bounds."""
    return node.clamp(node.value(0), int(node.params["lo"]), int(node.params["hi"]))


def transposed(node: Node, x: Value, axes: list[int], made: Value) -> Value:
    """TRANSPOSE of ``x`` into ``made``."""
    node.writer.operator("TRANSPOSE", [x, node.numbers(axes, "axes")], [made], "TransposeOptions")
    return made


def _moved(x: Value, axes: list[int]) -> TensorSpec:
    return TensorSpec(tuple(x.spec.shape[axis] for axis in axes), x.spec.dtype)
