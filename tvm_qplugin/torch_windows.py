"""Converters of operators of torch that slide a window: convolution, pooling, resizing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin import onnx_windows
from tvm_qplugin.onnx_ops import Node
from tvm_qplugin.passes.rebuild import constant, shape_of
from tvm_qplugin.torch_ops import Call

Expr = Any


def _window(values: Sequence[int], rank: int) -> list[int]:
    """Numbers for ``rank`` axes; torch allows one for all."""
    return [int(v) for v in (values if len(values) == rank else list(values) * rank)]


def conv(call: Call) -> Expr:
    """Convolution in one or two dimensions."""
    x, weight = call["input"], call["weight"]
    rank = len(shape_of(weight)) - 2
    if call.args.get("transposed"):
        raise ValueError("transposed convolutions are not supported; use upsampling and a convolution")
    if len(shape_of(x)) != rank + 2:
        raise ValueError(f"its input {shape_of(x)} has no batch dimension; export it with one")
    pads = _window(call["padding"], rank)
    node = call.as_onnx(
        "Conv",
        [x, weight, call["bias"]],
        pads=[*pads, *pads],
        strides=_window(call["stride"], rank),
        dilations=_window(call["dilation"], rank),
        group=int(call["groups"]),
    )
    return onnx_windows.conv(node)


def _pool(kind: str, call: Call, rank: int, **attrs: Any) -> Node:
    x = call["self"]
    if len(shape_of(x)) != rank + 2:
        raise ValueError(f"its input {shape_of(x)} has no batch dimension; export it with one")
    kernel, pads = _window(call["kernel_size"], rank), _window(call["padding"], rank)
    strides = _window(call["stride"], rank) if call["stride"] else kernel
    return call.as_onnx(
        kind,
        [x],
        kernel_shape=kernel,
        strides=strides,
        pads=[*pads, *pads],
        ceil_mode=int(call["ceil_mode"]),
        **attrs,
    )


def max_pool(rank: int) -> Callable[[Call], Expr]:
    """Max pooling over ``rank`` axes."""

    def convert(call: Call) -> Expr:
        dilations = _window(call["dilation"], rank)
        return onnx_windows.max_pool(_pool("MaxPool", call, rank, dilations=dilations))

    return convert


def average_pool(rank: int) -> Callable[[Call], Expr]:
    """Average pooling over ``rank`` axes."""

    def convert(call: Call) -> Expr:
        if call.args.get("divisor_override") is not None:
            raise ValueError("divisor_override is not supported; multiply by a number instead")
        counted = int(call["count_include_pad"])
        return onnx_windows.average_pool(_pool("AveragePool", call, rank, count_include_pad=counted))

    return convert


def max_pool_with_indices(call: Call) -> Expr:
    """Max pooling whose second result nobody may read."""
    return relax.Tuple([max_pool(2)(call)])


def upsample(mode: str) -> Callable[[Call], Expr]:
    """Resize height and width: "nearest" as torch picks its neighbours, "linear" by pixel centres."""

    def convert(call: Call) -> Expr:
        coordinates = "asymmetric" if mode == "nearest" else "half_pixel"
        if call.args.get("align_corners"):
            coordinates = "align_corners"
        attrs = {"coordinate_transformation_mode": coordinates, "mode": mode, "nearest_mode": "floor"}
        size, scales = call["output_size"], call["scale_factors"]
        shape = shape_of(call["input"])
        if size is not None:
            sizes = constant(np.array([*shape[:2], *size], "int64"))
            return onnx_windows.resize(call.as_onnx("Resize", [call["input"], None, None, sizes], **attrs))
        given = constant(np.array([1, 1, *scales], "float32"))
        return onnx_windows.resize(call.as_onnx("Resize", [call["input"], None, given], **attrs))

    return convert


def adaptive_max_pool(call: Call) -> Expr:
    """Max pooling to a size that divides that of the input."""
    x, size = call["self"], _window(call["output_size"], 2)
    extent = shape_of(x)[-2:]
    if any(have % want for have, want in zip(extent, size, strict=True)):
        raise ValueError(f"pooling {extent} to {size} has windows of several sizes, which is not supported")
    window = [have // want for have, want in zip(extent, size, strict=True)]
    return relax.Tuple([relax.op.nn.max_pool2d(x, window, window)])


WINDOWS: dict[str, Callable[[Call], Expr]] = {
    **{name: conv for name in ("conv1d.default", "conv2d.default", "convolution.default")},
    "max_pool1d.default": max_pool(1),
    "max_pool2d.default": max_pool(2),
    "max_pool2d_with_indices.default": max_pool_with_indices,
    "avg_pool1d.default": average_pool(1),
    "avg_pool2d.default": average_pool(2),
    "upsample_nearest2d.vec": upsample("nearest"),
    "upsample_bilinear2d.vec": upsample("linear"),
    "adaptive_max_pool2d.default": adaptive_max_pool,
}
