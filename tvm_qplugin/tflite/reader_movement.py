"""Operators of ``.tflite`` files that only move data. Inputs and outputs lie on one grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from tvm_qplugin.passes import ir
from tvm_qplugin.tflite.file import TfliteOperator
from tvm_qplugin.tflite.reader_graph import Graph


def reshape(graph: Graph, op: TfliteOperator) -> None:
    """RESHAPE, SQUEEZE, EXPAND_DIMS: to the shape of the output."""
    graph.one_grid(op, op.inputs[:1])
    graph.define(op.outputs[0], relax.op.reshape(graph.real(op.inputs[0]), graph.shape(op.outputs[0])))


def transpose(graph: Graph, op: TfliteOperator) -> None:
    """By constant axes."""
    graph.one_grid(op, op.inputs[:1])
    graph.define(op.outputs[0], relax.op.permute_dims(graph.real(op.inputs[0]), graph.numbers(op, 1)))


def concatenation(graph: Graph, op: TfliteOperator) -> None:
    """Parts side by side."""
    graph.one_grid(op, op.inputs)
    axis = _axis(graph, op, op.options["axis"], len(graph.shape(op.outputs[0])))
    name = graph.names[op.outputs[0]]
    out = relax.op.concat([graph.real(index) for index in op.inputs], axis)
    activation = op.options["fused_activation_function"]
    graph.define(op.outputs[0], graph.activate(out, activation, f"{name}_parts"))


def pad(graph: Graph, op: TfliteOperator) -> None:
    """PAD with 0, PADV2 with a constant."""
    graph.one_grid(op, op.inputs[:1])
    value = 0.0
    if op.name == "PADV2":
        bound = graph.scalar(op.inputs[2])
        if bound is None:
            raise graph.error(op, "its value is not a constant; only constant padding can be read")
        value = float(bound.value.numpy())
    widths = graph.numbers(op, 1)
    graph.define(op.outputs[0], relax.op.nn.pad(graph.real(op.inputs[0]), widths, "constant", value))


def slice_(graph: Graph, op: TfliteOperator) -> None:
    """SLICE: begin and size; a size of -1 is the rest."""
    graph.one_grid(op, op.inputs[:1])
    begin, size, shape = graph.numbers(op, 1), graph.numbers(op, 2), graph.shape(op.inputs[0])
    ends = [n if count == -1 else first + count for first, count, n in zip(begin, size, shape, strict=True)]
    graph.define(op.outputs[0], _sliced(graph.real(op.inputs[0]), begin, ends, [1] * len(shape)))


def strided_slice(graph: Graph, op: TfliteOperator) -> None:
    """Any strides; masks of beginnings, ends and dropped axes."""
    graph.one_grid(op, op.inputs[:1])
    options, source, out = op.options, op.inputs[0], op.outputs[0]
    if options["ellipsis_mask"] or options["new_axis_mask"]:
        raise graph.error(op, "it has an ellipsis or a new axis; write the slice with all axes in the model")
    begin, end, steps = (graph.numbers(op, slot) for slot in (1, 2, 3))
    ranges = [
        _range(options, axis, (first, last, step), graph.shape(source)[axis])
        for axis, (first, last, step) in enumerate(zip(begin, end, steps, strict=True))
    ]
    sliced = _sliced(graph.real(source), *(list(part) for part in zip(*ranges, strict=True)))
    if options["shrink_axis_mask"]:
        picked = graph.step(sliced, f"{graph.names[out]}_slice", graph.grid(source))
        sliced = relax.op.reshape(picked, graph.shape(out))
    graph.define(out, sliced)


def _range(options: object, axis: int, bounds: tuple[int, int, int], extent: int) -> tuple[int, int, int]:
    """Begin, end and step of one axis; an end before the first element as Relax counts it."""
    first, last, step = bounds
    masks = dict(options)  # type: ignore[call-overload]
    if masks["shrink_axis_mask"] >> axis & 1:
        at = first % extent
        return at, at + 1, 1
    begin = None if masks["begin_mask"] >> axis & 1 else first
    end = None if masks["end_mask"] >> axis & 1 else first + last if masks.get("offset") else last
    low, high, step = slice(begin, end, step).indices(extent)
    return low, -(extent + 1) if high < 0 else high, step


def _sliced(x: relax.Expr, begin: Sequence[int], end: Sequence[int], steps: Sequence[int]) -> relax.Call:
    """A slice of the axes that are cut at all."""
    shape = ir.spec_of(x).shape
    cut = [i for i, part in enumerate(zip(begin, end, steps, strict=True)) if part != (0, shape[i], 1)] or [0]
    return relax.op.strided_slice(
        x, cut, [begin[i] for i in cut], [end[i] for i in cut], [steps[i] for i in cut]
    )


def split(graph: Graph, op: TfliteOperator) -> None:
    """SPLIT and SPLIT_V, into the extents that the outputs have."""
    source, slot = (op.inputs[1], 0) if op.name == "SPLIT" else (op.inputs[0], 2)
    graph.one_grid(op, [source])
    axis = _axis(graph, op, graph.numbers(op, slot)[0], len(graph.shape(source)))
    extents = [graph.shape(index)[axis] for index in op.outputs]
    at = [int(i) for i in np.cumsum(extents)[:-1]]
    parts = graph.emit(relax.op.split(graph.real(source), at, axis), f"{graph.names[op.outputs[0]]}_split")
    for i, index in enumerate(op.outputs):
        graph.define(index, relax.TupleGetItem(parts, i))


def pack(graph: Graph, op: TfliteOperator) -> None:
    """Tensors along a new axis."""
    graph.one_grid(op, op.inputs)
    out = op.outputs[0]
    axis = _axis(graph, op, op.options["axis"], len(graph.shape(out)))
    shape = tuple(1 if i == axis else extent for i, extent in enumerate(graph.shape(out)))
    name, grid = graph.names[out], graph.grid(out)
    parts = [
        graph.step(relax.op.reshape(graph.real(index), shape), f"{name}_part{i}", grid)
        for i, index in enumerate(op.inputs)
    ]
    graph.define(out, relax.op.concat(parts, axis))


def unpack(graph: Graph, op: TfliteOperator) -> None:
    """The slices along an axis, without it."""
    source = op.inputs[0]
    graph.one_grid(op, [source])
    shape = graph.shape(source)
    axis = _axis(graph, op, op.options["axis"], len(shape))
    for i, index in enumerate(op.outputs):
        part = relax.op.strided_slice(graph.real(source), [axis], [i], [i + 1])
        picked = graph.step(part, f"{graph.names[index]}_slice", graph.grid(source))
        graph.define(index, relax.op.reshape(picked, graph.shape(index)))


def gather(graph: Graph, op: TfliteOperator) -> None:
    """A constant selection along one axis."""
    graph.one_grid(op, op.inputs[:1])
    source = op.inputs[0]
    axis = _axis(graph, op, op.options["axis"], len(graph.shape(source)))
    indices = graph.numbers(op, 1)
    if graph.option(op, "batch_dims", 0) or len(graph.shape(op.inputs[1])) > 1:
        raise graph.error(op, "it gathers by a matrix of indices; only a list of them can be read")
    if any(not 0 <= i < graph.shape(source)[axis] for i in indices):
        raise graph.error(
            op, f"an index is outside of 0..{graph.shape(source)[axis] - 1}; the file is damaged"
        )
    picked = relax.op.take(graph.real(source), ir.const(np.asarray(indices, "int64")), axis, mode="wrap")
    if not graph.shape(op.inputs[1]):
        inner = graph.step(picked, f"{graph.names[op.outputs[0]]}_slice", graph.grid(source))
        picked = relax.op.reshape(inner, graph.shape(op.outputs[0]))
    graph.define(op.outputs[0], picked)


def _axis(graph: Graph, op: TfliteOperator, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise graph.error(
            op, f"its axis is {axis}, but the tensor has {rank} dimensions; the file is damaged"
        )
    return axis % rank
