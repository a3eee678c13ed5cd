"""LiteRT's GPU and Hexagon delegates as tables, from the checks that TensorFlow publishes."""

from __future__ import annotations

import numpy as np

from tvm_qplugin.core.device_limits import (
    activations_in,
    constant,
    fused_activation_in,
    option_in,
    options_between,
    rank_at_most,
    static_sizes,
    weights_in,
    where,
)
from tvm_qplugin.core.device_rules import DeviceRules, Limit, Op, OpRule, Words

EIGHT_BIT = ("int8", "uint8")
GPU_TYPES = ("float32", "float16", *EIGHT_BIT)


def _rows(names: str, *limits: Limit) -> tuple[OpRule, ...]:
    return tuple(OpRule(name, limits) for name in names.split())


def _outer_product(op: Op) -> str | None:
    a, b = op.shape(0), op.shape(1)
    if len(a) != len(b):
        return None
    pairs = list(zip(a, b, strict=True))
    mixed = any(x < y for x, y in pairs) and any(x > y for x, y in pairs)
    return f"multiplies {list(a)} by {list(b)}" if mixed else None


def _multiplier(op: Op) -> str | None:
    factor, depth = op.options.get("depth_multiplier", 1), op.shape(0)[-1] if op.shape(0) else 1
    return f"has depth_multiplier {factor} on {depth} channels" if factor != 1 and depth != 1 else None


def _dilated(op: Op) -> bool:
    return any(op.options.get(f"dilation_{side}_factor", 1) != 1 for side in "hw")


def _strided(op: Op) -> bool:
    return any(op.options.get(f"stride_{side}", 1) != 1 for side in "hw")


def _pad_rows(op: Op) -> str | None:
    shape = op.shape(1)
    return None if shape in ((3, 2), (4, 2)) else f"paddings have shape {list(shape)}"


def _three_or_four(op: Op) -> str | None:
    return None if len(op.shape(0)) in (3, 4) else f"input has {len(op.shape(0))} dimensions"


def _small_resize(op: Op) -> str | None:
    size = op.constant(1)
    return f"resizes to {size.tolist()}" if size is not None and np.any(size > 65) else None


ANY_ACTIVATION = fused_activation_in("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH")
RELU_OR_NONE = fused_activation_in("NONE", "RELU", "RELU_N1_TO_1", "RELU6")
NO_ACTIVATION = fused_activation_in("NONE")
DEFAULT_WEIGHTS = option_in("weights_format", ("DEFAULT",), "convert the weights to the default format")
ONE_MULTIPLIER = where(
    "depth_multiplier is 1, or the input has 1 channel", _multiplier, "repeat the channels with CONV_2D"
)
NO_OUTER = where("one factor is nowhere smaller than the other", _outer_product, "use CONV_2D instead")
NO_ELLIPSIS = option_in("ellipsis_mask", (0,), "write begin and end of every dimension")
NO_NEW_AXIS = option_in("new_axis_mask", (0,), "add the axis with RESHAPE")
NO_SHRINK = option_in("shrink_axis_mask", (0,), "remove the axis with RESHAPE")
IMAGES = where("3 or 4 dimensions", _three_or_four, "reshape before and after")
BLOCKS = options_between(2, 2**31, "block_size", hint="leave out a block of 1")
UNIT_BETA = option_in("beta", (1.0,), "fold beta into the layer before")
NO_CORNERS = where(
    "not align_corners together with half_pixel_centers",
    lambda op: (
        "has both" if op.options.get("align_corners") and op.options.get("half_pixel_centers") else None
    ),
    "set one of them, as TFLite does",
)

GPU = DeviceRules(
    name="litert-gpu",
    title="LiteRT GPU delegate",
    source="TensorFlow, lite/delegates/gpu/README.md and lite/tools/versioning/gpu_compatibility.cc",
    prediction="This is a prediction from published limits: the delegate decides on the device, by its "
    "driver. It computes in float: integers differ from the CPU's.",
    words=Words(
        mapped="runs on the GPU",
        unsupported="Operation is not supported",
        dtype="OP is supported, but tensor type/shape isn't compatible",
        limited="OP is supported, but tensor type/shape isn't compatible",
    ),
    everywhere=(activations_in(GPU_TYPES, quantized=False), static_sizes(), rank_at_most(4)),
    rows=(
        *_rows("ABS CEIL COS ELU EXP FLOOR GELU LOG LOGISTIC NEG RSQRT SIGN SIN SQRT SQUARE TANH"),
        *_rows(
            "HARD_SWISH RELU RELU6 RELU_N1_TO_1 LEAKY_RELU PRELU RESHAPE TRANSPOSE TILE PACK SPLIT SPLIT_V"
        ),
        *_rows("MAXIMUM MINIMUM SQUARED_DIFFERENCE POW QUANTIZE DEQUANTIZE CONCATENATION"),
        *_rows("ADD SUB DIV", ANY_ACTIVATION),
        *_rows("MUL", NO_OUTER, ANY_ACTIVATION),
        *_rows("AVERAGE_POOL_2D MAX_POOL_2D CONV_2D", ANY_ACTIVATION),
        *_rows("DEPTHWISE_CONV_2D", ANY_ACTIVATION, ONE_MULTIPLIER),
        *_rows("TRANSPOSE_CONV"),
        *_rows("FULLY_CONNECTED", DEFAULT_WEIGHTS),
        *_rows("MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD", constant(1)),
        *_rows("PAD PADV2", where("paddings are 3x2 or 4x2", _pad_rows, "pad a 3-D or 4-D tensor")),
        *_rows(
            "MIRROR_PAD",
            option_in("mode", (0,), "pad by reflection", "mode is REFLECT"),
            where("paddings are 3x2 or 4x2", _pad_rows, "pad a 3-D or 4-D tensor"),
        ),
        *_rows("SLICE", IMAGES),
        *_rows("STRIDED_SLICE", NO_ELLIPSIS, NO_NEW_AXIS, NO_SHRINK, IMAGES),
        *_rows("SPACE_TO_DEPTH DEPTH_TO_SPACE", BLOCKS),
        *_rows("SOFTMAX", UNIT_BETA),
        *_rows("RESIZE_BILINEAR", NO_CORNERS),
        *_rows("RESIZE_NEAREST_NEIGHBOR"),
    ),
)

TYPES_8 = weights_in(EIGHT_BIT)
HEXAGON = DeviceRules(
    name="litert-hexagon",
    title="LiteRT Hexagon delegate",
    source="TensorFlow, lite/delegates/hexagon/README.md and utils.cc (IsNodeSupportedByHexagon)",
    prediction="This is a prediction from published limits: the delegate decides on the device.",
    words=Words(
        mapped="runs on the DSP",
        unsupported="CPU: not supported by the delegate",
        dtype="CPU: the delegate takes 8-bit tensors only",
        limited="CPU: a constraint of the delegate is not met",
    ),
    everywhere=(
        activations_in(EIGHT_BIT, exempt=("ARG_MAX", "ARG_MIN")),
        static_sizes(),
        rank_at_most(4),
    ),
    rows=(
        *_rows("ARG_MAX ARG_MIN"),
        *_rows(
            "CONCATENATION DEPTH_TO_SPACE HARD_SWISH LOGISTIC MAXIMUM MINIMUM NEG PACK QUANTIZE RELU RELU6"
        ),
        *_rows("RESHAPE SOFTMAX SPACE_TO_DEPTH TANH TRANSPOSE"),
        *_rows("ADD SUB MUL", RELU_OR_NONE),
        *_rows("AVERAGE_POOL_2D MAX_POOL_2D L2_NORMALIZATION", NO_ACTIVATION),
        *_rows("MEAN MIRROR_PAD PAD RESIZE_NEAREST_NEIGHBOR", constant(1)),
        *_rows("SLICE", constant(1, 2)),
        *_rows("SPLIT", constant(0)),
        *_rows("STRIDED_SLICE", constant(1, 2, 3), NO_ELLIPSIS, NO_NEW_AXIS),
        *_rows(
            "CONV_2D",
            TYPES_8,
            RELU_OR_NONE,
            options_between(1, 3, "stride_h", "stride_w", hint="split the stride"),
            options_between(
                1, 1, "dilation_h_factor", "dilation_w_factor", hint="insert zeros into the kernel"
            ),
        ),
        *_rows(
            "DEPTHWISE_CONV_2D",
            TYPES_8,
            RELU_OR_NONE,
            options_between(1, 3, "stride_h", "stride_w", hint="split the stride"),
            where(
                "dilation only with stride 1",
                lambda op: "is dilated and strided" if _dilated(op) and _strided(op) else None,
                "insert zeros into the kernel",
            ),
            ONE_MULTIPLIER,
        ),
        *_rows("TRANSPOSE_CONV", options_between(1, 3, "stride_h", "stride_w", hint="split the stride")),
        *_rows(
            "FULLY_CONNECTED",
            TYPES_8,
            RELU_OR_NONE,
            constant(2),
            DEFAULT_WEIGHTS,
            option_in("keep_num_dims", (False,), "reshape after the layer"),
        ),
        *_rows(
            "RESIZE_BILINEAR",
            constant(1),
            where("resizes to at most 65", _small_resize, "resize in two steps, or on the CPU"),
        ),
    ),
)
