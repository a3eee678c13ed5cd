"""Relax operators that only move data as TFLite operators, on integers and floats alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm.ir import Call

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir
from tvm_qplugin.tflite.node import Node
from tvm_qplugin.tflite.writer import Value

Movement = Callable[[Node, Any], Value]


def reshape(node: Node, _call: Call) -> Value:
    """RESHAPE, also for squeeze, flatten and expand_dims."""
    shape = list(node.out.shape)
    return node.emit(
        "RESHAPE", [node.value(0), node.numbers(shape, "shape")], "ReshapeOptions", newShape=shape
    )


def transpose(node: Node, call: Call) -> Value:
    """TRANSPOSE."""
    axes = node.numbers(permutation(call), "axes")
    return node.emit("TRANSPOSE", [node.value(0), axes], "TransposeOptions")


def concat(node: Node, call: Call) -> Value:
    """CONCATENATION."""
    parts = [node.value(i) for i in range(len(node.args))]
    axis = int(call.attrs.axis) % len(node.out.shape)
    return node.emit("CONCATENATION", parts, "ConcatenationOptions", axis=axis)


def strided_slice(node: Node, call: Call) -> Value:
    """STRIDED_SLICE over all axes; negative and open ends are resolved."""
    shape = node.value(0).spec.shape
    axes, begin, end = ([int(i) for i in field.fields] for field in call.args[1:4])
    strides = [int(i) for i in call.args[4].fields] if len(call.args) > 4 else [1] * len(axes)
    chosen = [slice(0, extent, 1) for extent in shape]
    for axis, *bounds in zip(axes, begin, end, strides, strict=True):
        chosen[axis] = slice(*bounds)
    return _sliced(node, chosen)


def take(node: Node, call: Call) -> Value:
    """GATHER with constant indices, or STRIDED_SLICE where they are evenly spaced."""
    indices = node.array(1).astype("int64")
    axis = int(call.attrs.axis or 0) % len(node.value(0).spec.shape)
    indices = np.where(indices < 0, indices + node.value(0).spec.shape[axis], indices)
    step = _spacing(indices)
    if step is not None:
        chosen = [slice(0, extent, 1) for extent in node.value(0).spec.shape]
        chosen[axis] = slice(int(indices[0]), int(indices[-1]) + 1, step)
        return _sliced(node, chosen)
    inputs = [node.value(0), node.numbers(indices, "indices")]
    return node.emit("GATHER", inputs, "GatherOptions", axis=axis, batchDims=0)


def permutation(call: Call) -> list[int]:
    """The axes of a ``permute_dims``."""
    rank = len(ir.spec_of(call.args[0]).shape)
    if call.attrs.axes is None:
        return list(reversed(range(rank)))
    return [int(axis) % rank for axis in call.attrs.axes]


def _spacing(indices: Array) -> int | None:
    if indices.ndim != 1 or not indices.size:
        return None
    steps = set(np.diff(indices).tolist()) or {1}
    step = steps.pop()
    return int(step) if not steps and step > 0 else None


def _sliced(node: Node, chosen: Sequence[slice]) -> Value:
    x = node.value(0)
    bounds = [part.indices(extent) for part, extent in zip(chosen, x.spec.shape, strict=True)]
    begin, end, strides = (list(column) for column in zip(*bounds, strict=True))
    open_ends = sum(1 << axis for axis, last in enumerate(end) if last < 0)
    inputs = [x, node.numbers(begin, "begin"), node.numbers(end, "end"), node.numbers(strides, "strides")]
    return node.emit("STRIDED_SLICE", inputs, "StridedSliceOptions", endMask=open_ends)


MOVEMENTS: dict[str, Movement] = {
    "relax.reshape": reshape,
    "relax.flatten": reshape,
    "relax.squeeze": reshape,
    "relax.expand_dims": reshape,
    "relax.permute_dims": transpose,
    "relax.concat": concat,
    "relax.strided_slice": strided_slice,
    "relax.take": take,
}
