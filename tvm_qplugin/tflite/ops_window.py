"""Kernels with sliding windows as TFLite operators: convolutions, dense layers, pools, padding, resizing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.oracle import resize_table
from tvm_qplugin.core.qparams import INTEGER_RANGE
from tvm_qplugin.tflite.node import Node
from tvm_qplugin.tflite.writer import Value

PER_CHANNEL_DENSE = 12
"""The version of FULLY_CONNECTED whose weight has a scale for every output."""

_RESIZING = {
    "asymmetric": ("floor", {"alignCorners": False, "halfPixelCenters": False}),
    "align_corners": ("round_prefer_ceil", {"alignCorners": True, "halfPixelCenters": False}),
    "half_pixel": ("round_prefer_ceil", {"alignCorners": False, "halfPixelCenters": True}),
}
"""LiteRT's ways to resize: ONNX's name of the coordinates, the rounding of NEAREST, the options."""


def conv2d(node: Node) -> Value:
    """CONV_2D (grouped: fewer input channels in the weight) or DEPTHWISE_CONV_2D."""
    x, weight, p = node.value(0), node.array(1), node.params
    fields = {
        "strideH": p["strides"][0],
        "strideW": p["strides"][1],
        "dilationHFactor": p["dilation"][0],
        "dilationWFactor": p["dilation"][1],
    }
    node.check_width(x, "convolution")
    depthwise = weight.shape[3] == 1 and p["groups"] == x.spec.shape[3] and p["groups"] > 1
    x, padding = _padded(node, x, weight.shape[1:3], p["dilation"])
    fields["padding"] = node.writer.enum("Padding", padding)
    if depthwise:
        fields["depthMultiplier"] = weight.shape[0] // p["groups"]
        weight = weight.transpose(3, 1, 2, 0)
    inputs = [x, *node.parameters(x, 3 if depthwise else 0, weight)]
    if depthwise:
        return node.activated("DEPTHWISE_CONV_2D", inputs, "DepthwiseConv2DOptions", **fields)
    return node.activated("CONV_2D", inputs, "Conv2DOptions", **fields)


def dense(node: Node) -> Value:
    """FULLY_CONNECTED over the last axis."""
    x = node.value(0)
    node.check_width(x, "dense layer")
    inputs = [x, *node.parameters(x, 0, node.array(1))]
    version = PER_CHANNEL_DENSE if node.per_channel else None
    keep = len(node.out.shape) != 2
    options = "FullyConnectedOptions"
    return node.activated("FULLY_CONNECTED", inputs, options, version=version, keepNumDims=keep)


def average_pool(node: Node) -> Value:
    """AVERAGE_POOL_2D; what counts its padding is padded before."""
    p, x = node.params, node.value(0)
    if p["count_include_pad"] and any(p["padding"]):
        x, padding = _pad_image(node, x, p["padding"]), "VALID"
    else:
        found = _known_padding(node, x, p["pool"], (1, 1))
        if found is None:
            raise node.refuse(
                f"it averages without its padding of {p['padding']} (top, left, bottom, right), which is "
                "neither none nor TFLite's SAME: pad the image before, or set count_include_pad"
            )
        padding = found
    return _pool(node, "AVERAGE_POOL_2D", x, padding)


def max_pool(node: Node) -> Value:
    """MAX_POOL_2D; other padding than SAME repeats the edge, which all windows there hold anyway."""
    if any(step != 1 for step in node.params["dilation"]):
        raise node.refuse(f"TFLite has no max pool with dilation {node.params['dilation']}")
    x, padding = node.value(0), [int(width) for width in node.params["padding"]]
    known = _known_padding(node, x, node.params["pool"], (1, 1))
    if known is not None:
        return _pool(node, "MAX_POOL_2D", x, known)
    if x.grid is not None and int(x.grid.zero_point) == INTEGER_RANGE[x.spec.dtype][0]:
        return _pool(node, "MAX_POOL_2D", _pad_image(node, x, padding), "VALID")
    if any(width >= node.params["pool"][i % 2] for i, width in enumerate(padding)):
        raise node.refuse(f"its padding of {padding} is as wide as its window of {node.params['pool']}")
    for axis in (1, 2):
        x = _repeat_edges(node, x, axis, padding[axis - 1], padding[axis + 1])
    return _pool(node, "MAX_POOL_2D", x, "VALID")


def _repeat_edges(node: Node, x: Value, axis: int, before: int, after: int) -> Value:
    """An image with its first and last row (or column) repeated in front and behind."""
    shape = list(x.spec.shape)
    parts = [_line(node, x, axis, 0)] * before if before else []
    parts += [x, *([_line(node, x, axis, shape[axis] - 1)] * after if after else [])]
    if len(parts) == 1:
        return x
    shape[axis] += before + after
    made = node.writer.tensor(f"{node.name}_edges{axis}", TensorSpec(tuple(shape), x.spec.dtype), x.grid)
    node.writer.operator("CONCATENATION", parts, [made], "ConcatenationOptions", axis=axis)
    return made


def _line(node: Node, x: Value, axis: int, at: int) -> Value:
    """One row or column."""
    begin, size = [0] * 4, list(x.spec.shape)
    begin[axis], size[axis] = at, 1
    made = node.writer.tensor(f"{node.name}_line{axis}_{at}", TensorSpec(tuple(size), x.spec.dtype), x.grid)
    inputs = [x, node.numbers(begin, f"begin{axis}_{at}"), node.numbers(size, f"size{axis}")]
    node.writer.operator("SLICE", inputs, [made], "SliceOptions")
    return made


def _pool(node: Node, code: str, x: Value, padding: str) -> Value:
    """A pool; a clamp is an operator of its own: some devices take no pool with a fused one."""
    p = node.params
    fields = {"filterHeight": p["pool"][0], "filterWidth": p["pool"][1]}
    fields |= {"strideH": p["strides"][0], "strideW": p["strides"][1]}
    return node.unfused(code, [x], "Pool2DOptions", padding=node.writer.enum("Padding", padding), **fields)


def pad(node: Node) -> Value:
    """PAD, which pads with what stands for 0; PADV2 with anything else."""
    x, widths = node.value(0), np.asarray(node.params["pad_width"]).reshape(-1, 2)
    if node.params["value"] == (0 if x.grid is None else int(x.grid.zero_point)):
        return _pad(node, x, widths, node.result())
    fill = node.writer.constant(f"{node.name}_fill", np.array([node.params["value"]], x.spec.dtype), x.grid)
    return node.emit("PADV2", [x, node.numbers(widths, "widths"), fill], "PadV2Options")


def resize(node: Node) -> Value:
    """RESIZE_BILINEAR or RESIZE_NEAREST_NEIGHBOR with the flags that give the same indices and weights."""
    p, x = node.params, node.value(0)
    linear = p["method"] == "linear"
    for coordinate, (rounding, flags) in _RESIZING.items():
        other = {**p, "coordinate": coordinate, "rounding": rounding}
        if all(_same_table(x.spec.shape[i + 1], p["size"][i], p, other) for i in (0, 1)):
            size = node.numbers(p["size"], "size")
            version = 3 if flags["halfPixelCenters"] and not node.wide else None
            if linear:
                code, options = "RESIZE_BILINEAR", "ResizeBilinearOptions"
            else:
                code, options = "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"
            return node.emit(code, [x, size], options, version=version, **flags)
    raise node.refuse(
        f"TFLite does not resize with coordinates {p['coordinate']!r} and rounding {p['rounding']!r} to "
        f"{p['size']}; use half_pixel, align_corners, or asymmetric with floor"
    )


def resize16(node: Node) -> Value:
    """RESIZE_BILINEAR of int16."""
    _, flags = _RESIZING[node.params["coordinate"]]
    size = node.numbers(node.params["size"], "size")
    return node.emit("RESIZE_BILINEAR", [node.value(0), size], "ResizeBilinearOptions", **flags)


def _same_table(size_in: int, size_out: int, p: object, other: object) -> bool:
    pairs = zip(resize_table(size_in, size_out, p), resize_table(size_in, size_out, other), strict=True)  # type: ignore[arg-type]
    return all(np.array_equal(a, b) for a, b in pairs)


def _padded(node: Node, x: Value, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[Value, str]:
    """The input and SAME or VALID; padding that is neither goes into an operator of its own."""
    known = _known_padding(node, x, kernel, dilation)
    if known is not None:
        return x, known
    return _pad_image(node, x, node.params["padding"]), "VALID"


def _known_padding(node: Node, x: Value, kernel: Sequence[int], dilation: Sequence[int]) -> str | None:
    """VALID, SAME by TFLite's formula, or None."""
    padding = [int(width) for width in node.params["padding"]]
    if not any(padding):
        return "VALID"
    before, after = [], []
    for axis in (0, 1):
        extent, stride = x.spec.shape[axis + 1], node.params["strides"][axis]
        span = (kernel[axis] - 1) * dilation[axis] + 1
        missing = max((-(-extent // stride) - 1) * stride + span - extent, 0)
        before.append(missing // 2)
        after.append(missing - missing // 2)
    return "SAME" if padding == before + after else None


def _pad_image(node: Node, x: Value, padding: Sequence[int]) -> Value:
    """An image padded with zeros at top, left, bottom, right."""
    t, left, b, r = padding
    widths = np.array([[0, 0], [t, b], [left, r], [0, 0]])
    shape = tuple(int(n + w) for n, w in zip(x.spec.shape, widths.sum(1), strict=True))
    return _pad(
        node, x, widths, node.writer.tensor(f"{node.name}_padded", TensorSpec(shape, x.spec.dtype), x.grid)
    )


def _pad(node: Node, x: Value, widths: np.ndarray, made: Value) -> Value:
    node.writer.operator("PAD", [x, node.numbers(widths, "widths")], [made], "PadOptions")
    return made
