"""Models of one operator, as functions that make the file once LiteRT is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

IMAGE = (1, 8, 8, 4)
SAME, VALID = 0, 1


def t(shape: tuple[int, ...] = IMAGE, dtype: str = "int8", scale: Any = 0.5, zero: int = 0) -> Any:
    """A computed tensor, made when LiteRT is there."""
    return lambda lite: lite.Tensor(shape, dtype, scale, zero)


def c(values: Any, dtype: str = "int32", scale: Any = None, axis: int = 0, zero: int = 0) -> Any:
    return lambda lite: lite.constant(values, dtype, scale, axis, zero)


def op(code: str, inputs: list[Any], output: Any, options: str = "", **fields: Any) -> Callable[[Any], bytes]:
    outputs = output if isinstance(output, list) else [output]
    made = fields.pop("version", None)
    return lambda lite: lite.operator(
        code, [x(lite) for x in inputs], [x(lite) for x in outputs], options, made, **fields
    )


def unary(code: str, shape: tuple[int, ...] = IMAGE, options: str = "", **fields: Any) -> Any:
    return op(code, [t(shape)], t(shape), options, **fields)


def binary(code: str, shape: tuple[int, ...] = IMAGE, options: str = "", **fields: Any) -> Any:
    return op(code, [t(shape), t(shape)], t(shape), options, **fields)


def pool(code: str, **fields: Any) -> Any:
    window = {"filterHeight": 2, "filterWidth": 2, "strideH": 2, "strideW": 2}
    return op(code, [t()], t((1, 4, 4, 4)), "Pool2DOptions", **window | fields)


def conv(code: str = "CONV_2D", weight: Any = None, bias: Any = None, **fields: Any) -> Any:
    shape, name = ((4, 3, 3, 4), "Conv2D") if code == "CONV_2D" else ((1, 3, 3, 4), "DepthwiseConv2D")
    weight = weight or c(np.ones(shape), "int8", 0.1)
    bias = bias or c([0] * 4, "int32", 0.05)
    fixed = {"strideH": 1, "strideW": 1} | ({"depthMultiplier": 1} if name == "DepthwiseConv2D" else {})
    return op(code, [t(), weight, bias], t(), f"{name}Options", **fixed | fields)


def dense(output: tuple[int, ...] = (1, 4), weight: Any = None, **fields: Any) -> Any:
    weight = weight or c(np.ones((4, 16)), "int8", 0.1)
    inputs = [t((*output[:-1], 16)), weight, c([0] * 4, "int32", 0.05)]
    return op("FULLY_CONNECTED", inputs, t(output), "FullyConnectedOptions", **fields)


def concat(inputs: list[Any], **fields: Any) -> Any:
    return op(
        "CONCATENATION", inputs, t((1, 8, 8, 4 * len(inputs))), "ConcatenationOptions", axis=3, **fields
    )


def reduce(code: str, axes: list[int], shape: tuple[int, ...] = IMAGE) -> Any:
    kept = {axis % len(shape) for axis in axes}
    output = tuple(1 if i in kept else extent for i, extent in enumerate(shape))
    return op(code, [t(shape), c(axes)], t(output), "ReducerOptions", keepDims=True)


def pad(pads: list[list[int]], shape: tuple[int, ...] = IMAGE) -> Any:
    padded = tuple(n + before + after for n, (before, after) in zip(shape, pads, strict=True))
    return op("PAD", [t(shape), c(pads)], t(padded), "PadOptions")


def slices(strides: tuple[int, ...] = (1, 1, 1, 1), **fields: Any) -> Any:
    ends = [c([0, 0, 0, 0]), c([1, 4, 4, 4]), c(strides)]
    return op("STRIDED_SLICE", [t(), *ends], t((1, 4, 4, 4)), "StridedSliceOptions", **fields)


def resize(code: str, before: tuple[int, ...] = IMAGE, after: tuple[int, ...] = (1, 16, 16, 4)) -> Any:
    options = "ResizeBilinearOptions" if "BILINEAR" in code else "ResizeNearestNeighborOptions"
    return op(code, [t(before), c([16, 16])], t(after), options)


def transpose_conv(weight: Any = None, **changed: Any) -> Any:
    weight = weight or c(np.ones((4, 2, 2, 4)), "int8", 0.1)
    inputs = [c([1, 16, 16, 4]), weight, t(), c([0] * 4, "int32", 0.05)]
    fields = {"strideH": 2, "strideW": 2}
    return op("TRANSPOSE_CONV", inputs, t((1, 16, 16, 4)), "TransposeConvOptions", **fields | changed)


def lstm(code: str = "UNIDIRECTIONAL_SEQUENCE_LSTM") -> Any:
    """Without its weights: enough for a table, not for a compiler."""
    options = {"UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTMOptions"}
    return op(code, [t((1, 5, 4))], t((1, 5, 4)), options.get(code, "BidirectionalSequenceLSTMOptions"))


RELU6 = {"fusedActivationFunction": 3}
PASSING: dict[str, Callable[[Any], bytes]] = {
    "ADD": binary("ADD", options="AddOptions", **RELU6),
    "SUB": binary("SUB", options="SubOptions"),
    "MUL": binary("MUL", options="MulOptions"),
    "MAXIMUM": binary("MAXIMUM"),
    "MINIMUM": binary("MINIMUM"),
    "LOGISTIC": unary("LOGISTIC"),
    "TANH": unary("TANH"),
    "RELU": unary("RELU"),
    "RELU6": unary("RELU6"),
    "RELU_N1_TO_1": unary("RELU_N1_TO_1"),
    "L2_NORMALIZATION": unary("L2_NORMALIZATION", options="L2NormOptions"),
    "SLICE": op("SLICE", [t(), c([0, 0, 0, 0]), c([1, 4, 4, 4])], t((1, 4, 4, 4))),
    "SPACE_TO_DEPTH": op("SPACE_TO_DEPTH", [t()], t((1, 4, 4, 16)), "SpaceToDepthOptions", blockSize=2),
    "AVERAGE_POOL_2D": pool("AVERAGE_POOL_2D"),
    "MAX_POOL_2D": pool("MAX_POOL_2D"),
    "CONCATENATION": concat([t(), t()]),
    "CONV_2D": conv(dilationHFactor=2, dilationWFactor=2),
    "DEPTHWISE_CONV_2D": conv("DEPTHWISE_CONV_2D", dilationHFactor=2, dilationWFactor=2),
    "EXPAND_DIMS": op("EXPAND_DIMS", [t((8, 4)), c([0])], t((1, 8, 4)), "ExpandDimsOptions"),
    "QUANTIZE": op("QUANTIZE", [t(dtype="uint8")], t(), "QuantizeOptions"),
    "FULLY_CONNECTED": dense(),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": lstm(),
    "MEAN": reduce("MEAN", [1, 2], (1, 64, 128, 3)),
    "PACK": op("PACK", [t((8, 4)), t((8, 4))], t((8, 2, 4)), "PackOptions", axis=1, valuesCount=2),
    "PAD": pad([[0, 0], [1, 1], [1, 1], [0, 4]]),
    "PRELU": op("PRELU", [t(), c(np.ones((1, 1, 4)), "int8", 0.1)], t()),
    "REDUCE_MAX": reduce("REDUCE_MAX", [1, 2]),
    "REDUCE_MIN": reduce("REDUCE_MIN", [-1]),
    "RESHAPE": op("RESHAPE", [t(), c([1, 256])], t((1, 256)), "ReshapeOptions"),
    "RESIZE_BILINEAR": resize("RESIZE_BILINEAR"),
    "RESIZE_NEAREST_NEIGHBOR": resize("RESIZE_NEAREST_NEIGHBOR"),
    "SOFTMAX": unary("SOFTMAX", (1, 16_000), "SoftmaxOptions", beta=1.0),
    "SPLIT": op("SPLIT", [c([3]), t()], [t((1, 8, 8, 2))] * 2, "SplitOptions", numSplits=2),
    "SQUEEZE": op("SQUEEZE", [t((1, 1, 8, 4))], t((8, 4)), "SqueezeOptions", squeezeDims=[0, 1]),
    "STRIDED_SLICE": slices(),
    "SUM": reduce("SUM", [1, 2]),
    "RSQRT": unary("RSQRT"),
    "SQUARED_DIFFERENCE": binary("SQUARED_DIFFERENCE"),
    "TRANSPOSE": op("TRANSPOSE", [t((8, 4)), c([1, 0])], t((4, 8))),
    "TRANSPOSE_CONV": transpose_conv(),
}
"""A model for each row of the Edge TPU's table that maps."""

OTHERS: dict[str, Callable[[Any], bytes]] = {
    **{code: unary(code) for code in "ABS CEIL COS ELU FLOOR HARD_SWISH LOG NEG RELU_0_TO_1 SIGN".split()},
    **{code: unary(code) for code in ("SIN", "SQRT", "SQUARE")},
    "EXP": unary("EXP", options="ExpOptions"),
    "GELU": unary("GELU", options="GeluOptions"),
    "LEAKY_RELU": unary("LEAKY_RELU", options="LeakyReluOptions", alpha=0.1),
    "POW": binary("POW"),
    "DIV": binary("DIV", options="DivOptions"),
    "BATCH_MATMUL": op("BATCH_MATMUL", [t((1, 4, 4)), t((1, 4, 4))], t((1, 4, 4)), "BatchMatMulOptions"),
    "REDUCE_PROD": reduce("REDUCE_PROD", [1, 2]),
    "DEQUANTIZE": op("DEQUANTIZE", [t()], t(dtype="float32", scale=None), "DequantizeOptions"),
    "TILE": op("TILE", [t(), c([1, 1, 2, 1])], t((1, 8, 16, 4))),
    "UNPACK": op("UNPACK", [t((8, 2))], [t((8,)), t((8,))], "UnpackOptions", num=2, axis=1),
    "SPLIT_V": op("SPLIT_V", [t(), c([1, 3]), c([3])], [t((1, 8, 8, 1)), t((1, 8, 8, 3))], "SplitVOptions"),
    "PADV2": op("PADV2", [t(), c([[0, 0]] * 4), c([1], "int8", 0.5)], t(), "PadV2Options"),
    "MIRROR_PAD": op("MIRROR_PAD", [t(), c([[0, 0]] * 4)], t(), "MirrorPadOptions", mode=0),
    "DEPTH_TO_SPACE": op("DEPTH_TO_SPACE", [t()], t((1, 16, 16, 1)), "DepthToSpaceOptions", blockSize=2),
    **{
        code: op(code, [t(), c([3])], t((1, 8, 8), "int32", None), options, outputType=2)
        for code, options in {"ARG_MAX": "ArgMaxOptions", "ARG_MIN": "ArgMinOptions"}.items()
    },
}
"""Models of the operators that only other devices have a row for."""
