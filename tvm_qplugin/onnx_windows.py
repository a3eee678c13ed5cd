"""Converters of ONNX operators that slide a window: convolution, pooling, resizing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.onnx_ops import Node, reshape_to
from tvm_qplugin.passes.rebuild import edit_weight, shape_of

Expr = Any
Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A window in two dimensions; 1-D windows get a height of 1. ``pads`` is (top, left, bottom, right)."""

    size: Pair
    strides: Pair
    dilations: Pair
    pads: tuple[int, int, int, int]
    out: Pair

    @classmethod
    def of(cls, node: Node, extent: Sequence[int], kernel: Sequence[int]) -> Window:
        """Read the attributes of a convolution or pool over ``extent`` (one or two dimensions)."""
        rank = len(extent)
        if rank not in (1, 2) or len(kernel) != rank:
            raise ValueError(f"a kernel {tuple(kernel)} over {tuple(extent)}: only 1-D and 2-D are supported")
        strides = _positive(node, "strides", rank)
        dilations = _positive(node, "dilations", rank)
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        before, after = _pads(node, extent, spans, strides)
        ceil = bool(node.attrs.get("ceil_mode", 0))
        out, extra = _extents(extent, spans, strides, before, after, ceil)
        after = [a + e for a, e in zip(after, extra, strict=True)]
        pads = (*_pair(before, 0), *_pair(after, 0))
        return cls(_pair(kernel), _pair(strides), _pair(dilations), pads, _pair(out))


def _pair(values: Sequence[int], first: int = 1) -> Pair:
    """Two values from one or two; ``first`` is that of the height a 1-D window is given."""
    return (values[0], values[1]) if len(values) == 2 else (first, values[0])


def _positive(node: Node, name: str, rank: int) -> list[int]:
    values = [int(v) for v in node.attrs.get(name, (1,) * rank)]
    if len(values) != rank or any(not 1 <= v < 2**16 for v in values):
        raise ValueError(f"{name} {values}: expected {rank} positive numbers")
    return values


def _pads(
    node: Node, extent: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    rank, mode = len(extent), node.text("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [max((-(-x // s) - 1) * s + k - x, 0) for x, k, s in zip(extent, spans, strides, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        return (small, large) if mode == "SAME_UPPER" else (large, small)
    pads = [int(p) for p in node.attrs.get("pads", (0,) * 2 * rank)] if mode == "NOTSET" else [0] * 2 * rank
    if mode not in ("NOTSET", "VALID"):
        raise ValueError(f"auto_pad {mode!r} is unknown")
    if len(pads) != 2 * rank or any(not 0 <= p < 2**16 for p in pads):
        raise ValueError(f"pads {pads}: expected {2 * rank} numbers that are not negative")
    return pads[:rank], pads[rank:]


def _extents(
    extent: Sequence[int],
    spans: Sequence[int],
    strides: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    ceil: bool,
) -> tuple[list[int], list[int]]:
    """Output size, and the padding that makes a rounded-up size an exact one."""
    out, extra = [], []
    for x, k, s, b, a in zip(extent, spans, strides, before, after, strict=True):
        room = x + b + a - k
        if room < 0:
            raise ValueError(f"a window of {k} is larger than the padded input of {x + b + a}")
        count = (-(-room // s) if ceil else room // s) + 1
        if ceil and (count - 1) * s >= x + b:
            count -= 1
        out.append(count)
        extra.append(max((count - 1) * s - room, 0))
    return out, extra


def conv(node: Node) -> Expr:
    """Conv in one or two dimensions; a 1-D convolution becomes 2-D of height 1."""
    x, weight, bias = node.inputs[0], node.inputs[1], node.input(2)
    shape, kernel = shape_of(x), shape_of(weight)
    if len(kernel) != len(shape):
        raise ValueError(f"its weight has shape {kernel}, its input {shape}: the ranks differ")
    if tuple(node.attrs.get("kernel_shape", kernel[2:])) != kernel[2:]:
        raise ValueError(f"kernel_shape {node.attrs['kernel_shape']} contradicts its weight {kernel}")
    window = Window.of(node, shape[2:], kernel[2:])
    groups = int(node.attrs.get("group", 1))
    if groups < 1 or kernel[1] * groups != shape[1] or kernel[0] % groups:
        raise ValueError(f"weight {kernel} does not fit input {shape} in {groups} group(s)")
    weight = _reshaped(node, weight, (*kernel[:2], *window.size), {0: 0, 1: 1})
    out = relax.op.nn.conv2d(
        _as_image(x), weight, window.strides, window.pads, window.dilations, groups, "NCHW", "OIHW", "NCHW"
    )
    if bias is not None:
        if shape_of(bias) != kernel[:1]:
            raise ValueError(f"bias {shape_of(bias)} does not fit weight {kernel}")
        out = relax.op.add(out, _reshaped(node, bias, (1, kernel[0], 1, 1), {0: 1}))
    return _from_image(out, shape, kernel[0], window)


def _as_image(x: Expr) -> Expr:
    shape = shape_of(x)
    return reshape_to(x, (*shape[:2], 1, shape[2])) if len(shape) == 3 else x


def _from_image(out: Expr, shape: Sequence[int], channels: int, window: Window) -> Expr:
    return relax.op.reshape(out, (shape[0], channels, window.out[1])) if len(shape) == 3 else out


def _reshaped(node: Node, weight: Expr, shape: Sequence[int], axes: Mapping[int, int]) -> Expr:
    if shape_of(weight) == tuple(shape):
        return weight

    def reshape(value: Array) -> Array:
        return value.reshape(shape)

    edited = edit_weight(weight, node.lookup, reshape, axes)
    return reshape_to(weight, shape) if edited is None else edited


def max_pool(node: Node) -> Expr:
    """MaxPool; a rounded-up size becomes padding, which never wins."""
    if node.used > 1:
        raise ValueError("its second output (indices) is not supported")
    x, window = _pooled(node)
    out = relax.op.nn.max_pool2d(
        _as_image(x), window.size, window.strides, window.pads, window.dilations, layout="NCHW"
    )
    return _from_image(out, shape_of(x), shape_of(x)[1], window)


def average_pool(node: Node) -> Expr:
    """AveragePool; pads that count become a pad of their own where rounding up adds some that do not."""
    x, window = _pooled(node)
    image, pads, count = _as_image(x), window.pads, bool(node.attrs.get("count_include_pad", 0))
    declared = [int(p) for p in node.attrs.get("pads", (0,) * 4)]
    if count and node.attrs.get("ceil_mode", 0) and any(declared):
        if len(declared) == 2:
            declared = [0, declared[0], 0, declared[1]]
        top, left, bottom, right = declared
        image = relax.op.nn.pad(image, [0, 0, 0, 0, top, bottom, left, right])
        pads, count = (0, 0, pads[2] - bottom, pads[3] - right), False
    elif node.attrs.get("ceil_mode", 0):
        count = False
    out = relax.op.nn.avg_pool2d(
        image, window.size, window.strides, pads, window.dilations, False, count, layout="NCHW"
    )
    return _from_image(out, shape_of(x), shape_of(x)[1], window)


def _pooled(node: Node) -> tuple[Expr, Window]:
    x = node.inputs[0]
    kernel = [int(k) for k in node.attrs.get("kernel_shape", ())]
    if any(not 1 <= k < 2**16 for k in kernel):
        raise ValueError(f"kernel_shape {kernel}: expected positive numbers")
    return x, Window.of(node, shape_of(x)[2:], kernel)


def resize(node: Node) -> Expr:
    """Resize and Upsample of the two last axes of a 4-D tensor."""
    x = node.inputs[0]
    shape = shape_of(x)
    upsample = node.op_type == "Upsample"
    at = 1 if upsample or node.opset < 11 else 2
    mode = _coordinates(node, upsample or node.opset < 11)
    size = _target(node, shape, at, exact=mode == "align_corners")
    if len(shape) != 4 or size[:2] != list(shape[:2]):
        raise ValueError(f"resizing {shape} to {size}: only height and width of a 4-D tensor can be resized")
    kind = node.text("mode", "nearest")
    method = {"nearest": "nearest_neighbor", "bilinear": "linear"}.get(kind, kind)
    if method not in ("nearest_neighbor", "linear", "cubic") or node.attrs.get("antialias", 0):
        raise ValueError(f"mode {kind!r} (antialias {node.attrs.get('antialias', 0)}) is not supported")
    rounding = node.text("nearest_mode", "floor" if at == 1 else "round_prefer_floor")
    return relax.op.image.resize2d(
        x,
        (size[2], size[3]),
        layout="NCHW",
        method=method,
        coordinate_transformation_mode=mode,
        rounding_method=rounding if method == "nearest_neighbor" else "round",
        cubic_alpha=float(node.attrs.get("cubic_coeff_a", -0.75)),
        cubic_exclude=int(node.attrs.get("exclude_outside", 0)),
    )


def _coordinates(node: Node, old: bool) -> str:
    mode = "asymmetric" if old else node.text("coordinate_transformation_mode", "half_pixel")
    known = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
    if mode not in known:
        raise ValueError(f"coordinate_transformation_mode {mode!r}: expected one of {', '.join(known)}")
    return mode


def _target(node: Node, shape: Sequence[int], at: int, exact: bool) -> list[int]:
    """The size of the result; scales must agree with it, because the kernels work with sizes."""
    sizes = node.array(3) if at == 2 else None
    scales = node.array(at, "scales" if node.op_type == "Upsample" and "scales" in node.attrs else None)
    axes = [int(a) % len(shape) for a in node.attrs.get("axes", range(len(shape)))]
    target = list(shape)
    if sizes is not None and sizes.size:
        if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise ValueError("keep_aspect_ratio_policy other than stretch is not supported")
        given = [int(s) for s in sizes.reshape(-1)]
    elif scales is not None and scales.size:
        ratios = [float(s) for s in scales.reshape(-1)]
        given = [int(np.floor(shape[a] * s)) for a, s in zip(axes, ratios, strict=True)]
        pairs = zip(axes, given, ratios, strict=True)
        if not exact and any(abs(n / shape[a] - s) > 1e-4 * s for a, n, s in pairs):
            raise ValueError(f"scales {ratios} of {tuple(shape)} do not give whole sizes; export with sizes")
    else:
        raise ValueError("it has neither sizes nor scales")
    for axis, extent in zip(axes, given, strict=True):
        target[axis] = extent
    if any(not 1 <= t < 2**16 for t in target):
        raise ValueError(f"resizing {tuple(shape)} to {target}")
    return target


WINDOWS: dict[str, Callable[[Node], Expr]] = {
    "Conv": conv,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "Resize": resize,
    "Upsample": resize,
}
