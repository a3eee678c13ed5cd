"""Convolutions, dense layers, pools and reductions of ``.tflite`` files as Relax operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.tflite.file import TfliteOperator
from tvm_qplugin.tflite.reader_graph import Graph


def conv2d(graph: Graph, op: TfliteOperator) -> None:
    """Weights are OHWI already; fewer input channels than the image has are groups."""
    x, weight = op.inputs[:2]
    groups = graph.shape(x)[-1] // max(graph.shape(weight)[-1], 1)
    _layer(graph, op, lambda w: w, 0, lambda a, b: _convolution(graph, op, a, b, groups))


def depthwise(graph: Graph, op: TfliteOperator) -> None:
    """Weights [1, H, W, O] become [O, H, W, 1]."""
    groups = graph.shape(op.inputs[0])[-1]
    _layer(
        graph, op, lambda w: w.transpose(3, 1, 2, 0), 0, lambda a, b: _convolution(graph, op, a, b, groups)
    )


def _convolution(
    graph: Graph, op: TfliteOperator, x: relax.Expr, weight: relax.Expr, groups: int
) -> relax.Call:
    options = op.options
    kernel = ir.spec_of(weight).shape[1:3]
    strides = (options["stride_h"], options["stride_w"])
    dilation = (options["dilation_h_factor"], options["dilation_w_factor"])
    padding = _padding(graph, op, kernel, strides, dilation)
    return relax.op.nn.conv2d(x, weight, strides, padding, dilation, groups, "NHWC", "OHWI", "NHWC")


def _padding(
    graph: Graph,
    op: TfliteOperator,
    kernel: tuple[int, ...],
    strides: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> list[int]:
    """Top, left, bottom, right; the odd one of SAME goes to the end."""
    image = graph.shape(op.inputs[0])[1:3]
    if min(strides) < 1 or min(dilation) < 1:
        raise graph.error(
            op, f"strides {strides} and dilation {dilation} must be 1 or more; the file is damaged"
        )
    if op.options["padding"] == "VALID":
        return [0] * 4
    missing = [
        max((-(-extent // stride) - 1) * stride + (taps - 1) * step + 1 - extent, 0)
        for extent, taps, stride, step in zip(image, kernel, strides, dilation, strict=True)
    ]
    before = [count // 2 for count in missing]
    return [*before, *(count - first for count, first in zip(missing, before, strict=True))]


def dense(graph: Graph, op: TfliteOperator) -> None:
    """Weights [N, K] become [K, N]; inputs of other shapes are flattened to rows of K first."""
    if graph.option(op, "weights_format", "DEFAULT") != "DEFAULT":
        raise graph.error(op, "its weights are shuffled; convert the model with the default weight format")
    _layer(graph, op, lambda w: w.T, 1, lambda a, b: _product(graph, op, a, b))


def matmul(graph: Graph, op: TfliteOperator) -> None:
    """A product of matrices, each transposed where its option says so."""
    sides = [
        _adjoint(graph, index, bool(graph.option(op, option, False)))
        for index, option in zip(op.inputs, ("adj_x", "adj_y"), strict=True)
    ]
    graph.define(op.outputs[0], relax.op.matmul(*sides))


def _adjoint(graph: Graph, index: int, turned: bool) -> relax.Expr:
    x = graph.real(index)
    if not turned:
        return x
    rank = len(graph.shape(index))
    axes = [*range(rank - 2), rank - 1, rank - 2]
    return graph.step(relax.op.permute_dims(x, axes), f"{graph.names[index]}_turned", graph.grid(index))


def _product(graph: Graph, op: TfliteOperator, x: relax.Expr, weight: relax.Expr) -> relax.Call:
    source, out = op.inputs[0], op.outputs[0]
    rows = (*graph.shape(out)[:-1], ir.spec_of(weight).shape[0])
    if graph.shape(source) != rows:
        x = graph.step(relax.op.reshape(x, rows), f"{graph.names[out]}_rows", graph.grid(source))
    return relax.op.matmul(x, weight)


def _layer(
    graph: Graph,
    op: TfliteOperator,
    edit: Callable[[Array], Array],
    axis: int,
    apply: Callable[[relax.Expr, relax.Expr], relax.Call],
) -> None:
    """A layer with constant weights, its bias and its activation; ``axis``: outputs after ``edit``."""
    name, out = graph.names[op.outputs[0]], op.outputs[0]
    x, grid = graph.real(op.inputs[0]), graph.grid(op.inputs[0])
    weight, params = _weight(graph, op, edit, axis)
    biased = len(op.inputs) > 2 and op.inputs[2] >= 0
    if grid is not None and grid.dtype == "int16" and op.name == "FULLY_CONNECTED" and not biased:
        raise graph.error(
            op, "it has no bias, and LiteRT rounds such int16 layers otherwise; add one of zeros"
        )
    expr: relax.Expr = apply(x, weight)
    if biased:
        bias = _bias(graph, op, grid, params)
        if bias is not None:
            expr = relax.op.add(graph.emit(expr, f"{name}_product"), bias)
    graph.define(out, graph.activate(expr, op.options["fused_activation_function"], f"{name}_sum"))


def _weight(
    graph: Graph, op: TfliteOperator, edit: Callable[[Array], Array], axis: int
) -> tuple[relax.Expr, QuantParams | None]:
    index, out = op.inputs[1], graph.names[op.outputs[0]]
    values, grid = graph.constant(index), graph.grid(index)
    if values is None:
        raise graph.error(op, "its weight is not a constant; only layers with stored weights can be read")
    floats = graph.floats(index, f"{out}_weight_f32", edit)
    if floats is not None:
        if graph.grid(op.inputs[0]) is not None:
            raise graph.error(op, "its input is int8, its weight float32; expected both quantized")
        return floats, None
    if grid is None:
        raise graph.error(op, f"its weight is {values.dtype} without a scale; the file is damaged")
    if graph.grid(op.inputs[0]) is None:
        _hybrid(graph, op, grid)
    params = QuantParams.of(grid.scale, grid.zero_point, grid.dtype, None if grid.axis is None else axis)
    weight = ir.const(np.ascontiguousarray(edit(values)))
    return graph.emit(ir.dequantize(weight, params), f"{out}_weight_dq"), params


def _hybrid(graph: Graph, op: TfliteOperator, grid: QuantParams) -> None:
    """A float input and an integer weight: the input is quantized at run time."""
    if grid.dtype != "int8" or grid.zero_point.any():
        raise graph.error(
            op,
            f"its input is float32, its weight {grid.dtype} with zero point {int(grid.zero_point.max())}; "
            "expected int8 with zero point 0 (dynamic range quantization): convert the model again",
        )
    graph.schemes.add("dynamic")


def _bias(
    graph: Graph, op: TfliteOperator, grid: QuantParams | None, weight: QuantParams | None
) -> relax.Expr | None:
    """The bias, on the grid that LiteRT computes with whatever the file says: input times weight.

    None for a float one of zeros, which stands where a layer has none.
    """
    index, name = op.inputs[2], graph.names[op.outputs[0]]
    values = graph.constant(index)
    if values is None:
        raise graph.error(op, "its bias is not a constant; only layers with stored biases can be read")
    if grid is None or weight is None:
        if not values.any():
            return None
        return graph.floats(index, f"{name}_bias_f32", lambda array: array)
    expected = "int64" if grid.dtype == "int16" else "int32"
    if values.dtype != expected:
        raise graph.error(op, f"its bias is {values.dtype}, expected {expected}; convert the model again")
    if np.abs(values.astype("float64")).max(initial=0) >= 2**31:
        raise graph.error(op, "its bias does not fit int32; rescale the layer in the model")
    scale = np.broadcast_to(np.float32(grid.scale) * weight.scale, values.shape)
    params = QuantParams.of(scale, 0, "int32", 0)
    return graph.emit(ir.dequantize(ir.const(values.astype("int32")), params), f"{name}_bias_dq")


def pool(graph: Graph, op: TfliteOperator) -> None:
    """Average and maximum; pads never count."""
    options, name = op.options, graph.names[op.outputs[0]]
    graph.one_grid(op, op.inputs)
    window = (options["filter_height"], options["filter_width"])
    strides = (options["stride_h"], options["stride_w"])
    padding = _padding(graph, op, window, strides)
    make = relax.op.nn.max_pool2d if op.name == "MAX_POOL_2D" else relax.op.nn.avg_pool2d
    out = make(graph.real(op.inputs[0]), window, strides, padding, (1, 1), False, False, "NHWC", "NHWC")
    activation = options["fused_activation_function"]
    graph.define(op.outputs[0], graph.activate(out, activation, f"{name}_pooled"))


def reduction(graph: Graph, op: TfliteOperator) -> None:
    """SUM, REDUCE_MAX and REDUCE_MIN over constant axes."""
    if op.name != "SUM":
        graph.one_grid(op, op.inputs[:1])
    rank = len(graph.shape(op.inputs[0]))
    axes = sorted({axis % rank for axis in graph.numbers(op, 1)})
    make = {"SUM": relax.op.sum, "REDUCE_MAX": relax.op.max, "REDUCE_MIN": relax.op.min}[op.name]
    graph.define(op.outputs[0], make(graph.real(op.inputs[0]), axes, keepdims=bool(op.options["keep_dims"])))


def mean(graph: Graph, op: TfliteOperator) -> None:
    """Mean over constant axes."""
    rank = len(graph.shape(op.inputs[0]))
    axes = sorted({axis % rank for axis in graph.numbers(op, 1)})
    keep = bool(op.options["keep_dims"])
    graph.define(op.outputs[0], relax.op.mean(graph.real(op.inputs[0]), axes, keepdims=keep))


def softmax(graph: Graph, op: TfliteOperator) -> None:
    """Over the last axis."""
    if (beta := op.options["beta"]) != 1.0:
        raise graph.error(op, f"its beta is {beta}, expected 1; scale its input in the model instead")
    graph.define(op.outputs[0], relax.op.nn.softmax(graph.real(op.inputs[0]), -1))


def resize(graph: Graph, op: TfliteOperator) -> None:
    """Bilinear and nearest, to the size of the output."""
    graph.one_grid(op, op.inputs[:1])
    corners, half = op.options["align_corners"], op.options["half_pixel_centers"]
    mode = "align_corners" if corners else "half_pixel" if half else "asymmetric"
    linear = op.name == "RESIZE_BILINEAR"
    out = relax.op.image.resize2d(
        graph.real(op.inputs[0]),
        graph.shape(op.outputs[0])[1:3],
        layout="NHWC",
        method="linear" if linear else "nearest_neighbor",
        coordinate_transformation_mode=mode,
        rounding_method="floor" if mode == "asymmetric" and not linear else "round_prefer_ceil",
    )
    graph.define(op.outputs[0], out)
