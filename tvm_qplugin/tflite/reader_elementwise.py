"""Operators of ``.tflite`` files that work element by element."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

from tvm_qplugin.passes import ir
from tvm_qplugin.tflite.file import TfliteOperator
from tvm_qplugin.tflite.reader_graph import Graph

_BINARY: dict[str, Callable[[relax.Expr, relax.Expr], relax.Call]] = {
    "ADD": relax.op.add,
    "SUB": relax.op.subtract,
    "MUL": relax.op.multiply,
}
_SELECTING = {"MAXIMUM": relax.op.maximum, "MINIMUM": relax.op.minimum}
_UNARY: dict[str, Callable[[relax.Expr], relax.Call]] = {
    "LOGISTIC": relax.op.sigmoid,
    "TANH": relax.op.tanh,
    "EXP": relax.op.exp,
}
_FLOAT_BINARY: dict[str, Callable[[relax.Expr, relax.Expr], relax.Call]] = {
    "DIV": relax.op.divide,
    "POW": relax.op.power,
}
_FLOAT_UNARY: dict[str, Callable[[relax.Expr], relax.Call]] = {
    "LOG": relax.op.log,
    "SQRT": relax.op.sqrt,
    "RSQRT": relax.op.rsqrt,
    "SQUARE": relax.op.square,
    "ABS": relax.op.abs,
    "NEG": relax.op.negative,
    "SIN": relax.op.sin,
    "COS": relax.op.cos,
}


def arithmetic(graph: Graph, op: TfliteOperator) -> None:
    """ADD, SUB and MUL with their activation."""
    out = op.outputs[0]
    expr = _BINARY[op.name](*(graph.real(index) for index in op.inputs))
    activation = op.options["fused_activation_function"]
    graph.define(out, graph.activate(expr, activation, f"{graph.names[out]}_result"))


def selecting(graph: Graph, op: TfliteOperator) -> None:
    """MAXIMUM and MINIMUM; a bound of one element becomes a clamp."""
    graph.one_grid(op, op.inputs)
    left, right = sorted(op.inputs, key=lambda index: graph.constant(index) is not None)
    bound = graph.scalar(right)
    expr = _SELECTING[op.name](graph.real(left), graph.real(right) if bound is None else bound)
    graph.define(op.outputs[0], expr)


def unary(graph: Graph, op: TfliteOperator) -> None:
    """A function of one tensor."""
    graph.define(op.outputs[0], _UNARY[op.name](graph.real(op.inputs[0])))


def float_binary(graph: Graph, op: TfliteOperator) -> None:
    """DIV, with its activation, and POW."""
    graph.float_only(op)
    name = f"{graph.names[op.outputs[0]]}_result"
    expr = _FLOAT_BINARY[op.name](*(graph.real(index) for index in op.inputs))
    graph.define(
        op.outputs[0], graph.activate(expr, graph.option(op, "fused_activation_function", "NONE"), name)
    )


def float_unary(graph: Graph, op: TfliteOperator) -> None:
    """A function of one float tensor."""
    graph.float_only(op)
    graph.define(op.outputs[0], _FLOAT_UNARY[op.name](graph.real(op.inputs[0])))


def activation(graph: Graph, op: TfliteOperator) -> None:
    """A stand-alone clamp."""
    graph.define(op.outputs[0], graph.activate(graph.real(op.inputs[0]), op.name, ""))


def leaky_relu(graph: Graph, op: TfliteOperator) -> None:
    """Another slope below 0."""
    graph.define(op.outputs[0], relax.op.nn.leakyrelu(graph.real(op.inputs[0]), float(op.options["alpha"])))


def prelu(graph: Graph, op: TfliteOperator) -> None:
    """Another slope below 0 for each channel, or the same for all."""
    source, slopes = op.inputs
    alpha, grid, shape = graph.constant(slopes), graph.grid(slopes), graph.shape(source)
    if alpha is None or alpha.size not in (1, shape[-1]) or alpha.size != max(alpha.shape[-1:], default=1):
        raise graph.error(
            op,
            f"alpha has shape {list(graph.shape(slopes))}; expected a constant with a slope for each channel",
        )
    name = f"{graph.names[op.outputs[0]]}_alpha"
    flat = graph.floats(slopes, name, lambda values: np.broadcast_to(values.reshape(-1), shape[-1:]))
    if flat is None and grid is not None:
        values = np.broadcast_to(alpha.reshape(-1), shape[-1:])
        flat = graph.emit(ir.dequantize(ir.const(values), grid), name)
    if flat is None:
        raise graph.error(op, f"alpha is {alpha.dtype} without a scale; the file is damaged: export it again")
    graph.define(op.outputs[0], relax.op.nn.prelu(graph.real(source), flat, axis=len(shape) - 1))


def gelu(graph: Graph, op: TfliteOperator) -> None:
    """Exact, or by tanh."""
    make = relax.op.nn.gelu_tanh if graph.option(op, "approximate", False) else relax.op.nn.gelu
    graph.define(op.outputs[0], make(graph.real(op.inputs[0])))


def hard_swish(graph: Graph, op: TfliteOperator) -> None:
    """``x * clip(x + 3, 0, 6) / 6``."""
    x, name = graph.real(op.inputs[0]), graph.names[op.outputs[0]]
    shifted = graph.emit(relax.op.add(x, _number(3.0)), f"{name}_shifted")
    gate = graph.emit(relax.op.clip(shifted, 0.0, 6.0), f"{name}_gate")
    product = graph.emit(relax.op.multiply(x, gate), f"{name}_product")
    graph.define(op.outputs[0], relax.op.multiply(product, _number(1 / 6)))


def quantize(graph: Graph, op: TfliteOperator) -> None:
    """Floats become integers, or integers move to another grid."""
    if graph.grid(op.outputs[0]) is None:
        raise graph.error(op, "its output has no scale; the file is damaged: export it again")
    graph.define(op.outputs[0], graph.real(op.inputs[0]))


def dequantize(graph: Graph, op: TfliteOperator) -> None:
    """Integers become floats; a constant is computed at once, but float16 weights stay what they are."""
    source, out = op.inputs[0], op.outputs[0]
    values, grid = graph.constant(source), graph.grid(source)
    if values is None:
        graph.define(out, graph.real(source))
    elif graph.tensor(source).dtype == "float16":
        graph.halve(out, values)
    else:
        graph.fold(out, values if grid is None else grid.dequantize(values))


def _number(value: float) -> relax.Expr:
    return relax.const(np.float32(value), "float32")
