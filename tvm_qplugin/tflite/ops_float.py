"""Relax operators on floats as TFLite operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tvm.ir import Call

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.float_layers import bounds_of
from tvm_qplugin.passes.match_window import pool_geometry, resize_geometry
from tvm_qplugin.passes.op_kinds import KINDS, kind_of, obstacle
from tvm_qplugin.tflite import ops_window
from tvm_qplugin.tflite.float_node import FloatNode
from tvm_qplugin.tflite.ops_arithmetic import slopes_of, softmax_over
from tvm_qplugin.tflite.ops_movement import MOVEMENTS
from tvm_qplugin.tflite.writer import Value

Emitter = Callable[[FloatNode, Any], Value]

_BINARY = {
    "relax.add": ("ADD", "AddOptions"),
    "relax.subtract": ("SUB", "SubOptions"),
    "relax.multiply": ("MUL", "MulOptions"),
    "relax.divide": ("DIV", "DivOptions"),
}
_SELECTING = {
    "relax.maximum": ("MAXIMUM", "MaximumMinimumOptions"),
    "relax.minimum": ("MINIMUM", "MaximumMinimumOptions"),
    "relax.power": ("POW", "PowOptions"),
}
_UNARY = {
    "relax.sigmoid": ("LOGISTIC", ""),
    "relax.tanh": ("TANH", ""),
    "relax.exp": ("EXP", "ExpOptions"),
    "relax.log": ("LOG", ""),
    "relax.sqrt": ("SQRT", ""),
    "relax.rsqrt": ("RSQRT", ""),
    "relax.square": ("SQUARE", "SquareOptions"),
    "relax.abs": ("ABS", "AbsOptions"),
    "relax.negative": ("NEG", "NegOptions"),
    "relax.sin": ("SIN", ""),
    "relax.cos": ("COS", "CosOptions"),
}
_REDUCING = {
    "relax.mean": "MEAN",
    "relax.sum": "SUM",
    "relax.max": "REDUCE_MAX",
    "relax.min": "REDUCE_MIN",
}


def binary(node: FloatNode, call: Call) -> Value:
    """An operation on two tensors, with its activation; a constant of one element becomes a scalar."""
    code, options = _BINARY[ir.op_name(call)]
    return node.activated(code, [_operand(node, i) for i in (0, 1)], options)


def selecting(node: FloatNode, call: Call) -> Value:
    """An operation on two tensors that has no activation."""
    code, options = _SELECTING[ir.op_name(call)]
    return node.emit(code, [_operand(node, i) for i in (0, 1)], options)


def _operand(node: FloatNode, index: int) -> Value:
    array, other = node.args[index], node.args[1 - index]
    if isinstance(array, Value) or array.size > 1 or not isinstance(other, Value):
        return node.value(index)
    scalar = array.reshape(()) if other.spec.shape == node.out.shape else array
    return node.writer.constant(f"{node.name}_{index}", scalar)


def unary(node: FloatNode, call: Call) -> Value:
    """A function of one tensor."""
    code, options = _UNARY[ir.op_name(call)]
    return node.emit(code, [node.value(0)], options)


def leaky_relu(node: FloatNode, call: Call) -> Value:
    """LEAKY_RELU."""
    return node.emit("LEAKY_RELU", [node.value(0)], "LeakyReluOptions", alpha=float(call.attrs.alpha))


def gelu(node: FloatNode, call: Call) -> Value:
    """GELU, exact or by tanh."""
    approximate = ir.op_name(call) == "relax.nn.gelu_tanh"
    return node.emit("GELU", [node.value(0)], "GeluOptions", approximate=approximate)


def silu(node: FloatNode, _call: Call) -> Value:
    """LOGISTIC, then MUL."""
    gate = node.writer.tensor(f"{node.name}_gate", node.out)
    node.writer.operator("LOGISTIC", [node.value(0)], [gate])
    return node.emit("MUL", [node.value(0), gate], "MulOptions")


def rms_norm(node: FloatNode, call: Call) -> Value:
    """SQUARE, MEAN of rows, ADD, RSQRT, and MUL by that and by the scales."""
    rank, row = len(node.out.shape), TensorSpec((*node.out.shape[:-1], 1), "float32")
    if [int(axis) % rank for axis in call.attrs.axes] != [rank - 1]:
        raise node.refuse("it is not over the last axis")

    def step(code: str, inputs: list[Value], spec: TensorSpec, options: str = "", **fields: Any) -> Value:
        made = node.writer.tensor(f"{node.name}_{code.lower()}", spec)
        node.writer.operator(code, inputs, [made], options, **fields)
        return made

    square = step("SQUARE", [node.value(0)], node.out, "SquareOptions")
    mean = step("MEAN", [square, node.numbers([rank - 1], "axes")], row, "ReducerOptions", keepDims=True)
    epsilon = node.writer.constant(f"{node.name}_epsilon", np.array(call.attrs.epsilon, "float32"))
    root = step("RSQRT", [step("ADD", [mean, epsilon], row, "AddOptions")], row)
    return node.emit(
        "MUL", [step("MUL", [node.value(0), root], node.out, "MulOptions"), node.value(1)], "MulOptions"
    )


def hard_swish(node: FloatNode, _call: Call) -> Value:
    """HARD_SWISH."""
    return node.emit("HARD_SWISH", [node.value(0)])


def clamp(node: FloatNode, call: Call) -> Value:
    """A stand-alone activation."""
    return node.clamped(node.value(0), *bounds_of(call))


def prelu(node: FloatNode, _call: Call) -> Value:
    """PRELU."""
    return node.unfused("PRELU", [node.value(0), node.stored(f"{node.name}_alpha", 1, slopes_of(node))])


def reduce(node: FloatNode, call: Call) -> Value:
    """MEAN, SUM, REDUCE_MAX, REDUCE_MIN; a clamp behind a mean is an operator of its own."""
    rank = len(ir.spec_of(call.args[0]).shape)
    axes = range(rank) if call.attrs.axis is None else (int(axis) % rank for axis in call.attrs.axis)
    inputs = [node.value(0), node.numbers(list(axes), "axes")]
    code, keep = _REDUCING[ir.op_name(call)], bool(call.attrs.keepdims)
    return node.unfused(code, inputs, "ReducerOptions", keepDims=keep)


def softmax(node: FloatNode, call: Call) -> Value:
    """SOFTMAX over any axis."""
    return softmax_over(node, int(call.attrs.axis) % len(node.out.shape))


def pool(node: FloatNode, call: Call) -> Value:
    """AVERAGE_POOL_2D and MAX_POOL_2D."""
    made = _with(node, pool_geometry(call))
    if ir.op_name(call) == "relax.nn.max_pool2d":
        return ops_window.max_pool(made)
    counted = {**made.params, "count_include_pad": bool(call.attrs.count_include_pad)}
    return ops_window.average_pool(_with(node, counted))


def pad(node: FloatNode, call: Call) -> Value:
    """PAD and PADV2."""
    if call.attrs.pad_mode != "constant":
        raise node.refuse(f"it pads by mode {call.attrs.pad_mode!r}: only constant padding can be written")
    widths = [int(width) for width in call.attrs.pad_width]
    return ops_window.pad(_with(node, {"pad_width": widths, "value": float(call.attrs.pad_value)}))


def resize(node: FloatNode, call: Call) -> Value:
    """RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR."""
    return ops_window.resize(_with(node, resize_geometry(call)))


def conv2d(node: FloatNode, _call: Call) -> Value:
    """CONV_2D and DEPTHWISE_CONV_2D."""
    return ops_window.conv2d(_with(node, node.params))


def dense(node: FloatNode, _call: Call) -> Value:
    """FULLY_CONNECTED."""
    return ops_window.dense(node)


def product(node: FloatNode, call: Call) -> Value:
    """FULLY_CONNECTED of a constant weight, BATCH_MATMUL of two computed tensors."""
    if kind_of(call) != "matmul":
        return _checked(dense)(node, call)
    inputs = [node.value(0), node.value(1)]
    return node.emit("BATCH_MATMUL", inputs, "BatchMatMulOptions", adjX=False, adjY=False)


def _with(node: FloatNode, params: Params) -> FloatNode:
    """The node with other parameters, and 0 as what padding is made of."""
    return replace(node, params={**params, "in_zp": 0})


def _checked(emit: Emitter) -> Emitter:
    def checked(node: FloatNode, call: Call) -> Value:
        reason = obstacle(KINDS[ir.op_name(call)], call)
        if reason:
            raise node.refuse(reason)
        return emit(node, call)

    return checked


def split(node: FloatNode, call: Call, names: dict[int, str]) -> list[Value]:
    """SPLIT_V; ``names`` are those of the parts that are read."""
    axis = int(call.attrs.axis) % len(node.value(0).spec.shape)
    specs = [TensorSpec(tuple(map(int, part.shape)), str(part.dtype)) for part in call.ty.fields]
    sizes = node.numbers([spec.shape[axis] for spec in specs], "sizes")
    parts = [node.writer.tensor(names.get(i, f"{node.name}_{i}"), spec) for i, spec in enumerate(specs)]
    inputs = [node.value(0), sizes, node.numbers(axis, "axis")]
    node.writer.operator("SPLIT_V", inputs, parts, "SplitVOptions", numSplits=len(parts))
    return parts


EMITTERS: dict[str, Emitter] = {
    **dict.fromkeys(_BINARY, binary),
    **dict.fromkeys(_SELECTING, selecting),
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(_REDUCING, reduce),
    **{name: _checked(emit) for name, emit in MOVEMENTS.items()},
    "relax.nn.relu": clamp,
    "relax.clip": clamp,
    "relax.nn.leakyrelu": leaky_relu,
    "relax.nn.prelu": _checked(prelu),
    "relax.nn.gelu": gelu,
    "relax.nn.gelu_tanh": gelu,
    "relax.nn.silu": silu,
    "relax.nn.softmax": softmax,
    "relax.nn.rms_norm": rms_norm,
    "relax.nn.avg_pool2d": _checked(pool),
    "relax.nn.max_pool2d": _checked(pool),
    "relax.nn.pad": pad,
    "relax.image.resize2d": _checked(resize),
    "relax.nn.conv2d": _checked(conv2d),
    "relax.matmul": product,
}
"""What writes each operator; ``relax.split``, which has several results, is written by ``split``."""
