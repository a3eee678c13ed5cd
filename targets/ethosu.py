"""Arm Ethos-U55 and U65 as a table, from what Vela 5.2 publishes with ``--supported-ops-report``.

"Vela 4" is the legacy core, which Vela 5 still holds and which is stricter.
"""

from __future__ import annotations

import math

from tvm_qplugin.core.device_limits import (
    activations_in,
    axes_of,
    batch_one,
    called,
    constant,
    kernel_at_most,
    options_between,
    per_tensor_activations,
    rank_at_most,
    static_sizes,
    weight_sum_at_most,
    weights_in,
    where,
)
from tvm_qplugin.core.device_rules import DeviceRules, Limit, Op, OpRule, Words

NARROW = ("int8", "uint8", "int16")
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")


def _pool_window(op: Op) -> str | None:
    h, w = op.options.get("filter_height", 1), op.options.get("filter_width", 1)
    high, wide = (8, 8) if op.options.get("padding") == "SAME" else (256, 65_536 // max(h, 1))
    return f"has a window of {h}x{w}" if h > high or w > wide else None


def _max_window(op: Op) -> str | None:
    h, w = op.options.get("filter_height", 1), op.options.get("filter_width", 1)
    return f"has a window of {h}x{w}" if h > 256 or h * w > 65_536 else None


def _stride(op: Op) -> str | None:
    strides = [op.options.get(f"stride_{side}", 1) for side in "hw"]
    dilated = any(op.options.get(f"dilation_{side}_factor", 1) != 1 for side in "hw")
    return f"strides are {strides[0]}x{strides[1]}" if max(strides) > 3 and dilated else None


def _same_grids(op: Op) -> str | None:
    out = op.outputs[0].quant
    for tensor in op.inputs:
        if tensor is not None and tensor.quant and out and not tensor.quant.same(out):
            return f"{called(tensor)} has another scale or zero point than the output"
    return None


def _depth(op: Op) -> str | None:
    depth = op.shape(0)[-1] if op.shape(0) else 1
    return f"depth is {depth}" if depth > 127 else None


def _along_depth(op: Op) -> str | None:
    axis = op.constant(1)
    rank = len(op.shape(0))
    along = axis is None or int(axis.reshape(-1)[0]) % max(rank, 1) == rank - 1
    return None if along else f"works along axis {int(axis.reshape(-1)[0])}" if axis is not None else None


def _scale_factor(op: Op) -> str | None:
    before, after = op.shape(0)[1:3], op.outputs[0].shape[1:3]
    if len(before) < 2 or before == (1, 1) or before == after:
        return None
    if len(after) < 2:
        return f"scales {list(before)} to {list(after)}"
    less = int(bool(op.options.get("align_corners")))
    factors = [(b - less) / max(a - less, 1) for a, b in zip(before, after, strict=True)]
    allowed = (2,) if op.options.get("half_pixel_centers") and op.name == "RESIZE_BILINEAR" else (2, 4, 8)
    fine = factors[0] == factors[1] and factors[0] in allowed
    return None if fine else f"scales {list(before)} to {list(after)}"


def _reduced(op: Op) -> str | None:
    extents = [op.shape(0)[axis] for axis in axes_of(op, 1, "axis", len(op.shape(0)))]
    return f"reduces {extents}" if max(extents, default=1) >= 4096 or math.prod(extents) > 2**23 else None


def _depth_mean(op: Op) -> str | None:
    axes, shape = op.constant(1), op.shape(0)
    deep = axes is not None and any(int(a) % len(shape) == len(shape) - 1 for a in axes.reshape(-1))
    return f"reduces the depth of {list(shape)}" if deep and 1 not in shape[-3:] else None


def _softmax_rows(op: Op) -> str | None:
    rows = math.prod(op.shape(0)[:-1])
    return f"has {rows} rows" if rows >= 65_536 else None


NARROW_ONLY = activations_in(NARROW)
WINDOW = where("window up to 8x8 (SAME), height up to 256 (VALID)", _pool_window, "pool in two steps")
MAX_WINDOW = where("window height up to 256, area up to 65536", _max_window, "pool in two steps")
STRIDE = where("strides above 3 only without dilation", _stride, "split the stride")
STRIDES_3 = options_between(1, 3, "stride_h", "stride_w", hint="split the stride")
SAME_GRIDS = where("inputs have the output's scale and zero point", _same_grids, "share the scales")
SCALE_FACTOR = where("sizes grow 2, 4 or 8 times, equally in y and x", _scale_factor, "resize in two steps")
CONV = (weights_in(("int8", "uint8")), constant(2), weight_sum_at_most(8_323_072))
KERNEL = kernel_at_most(64, 4096)
V5 = 5
PARAMETERS = constant(1, 2, 3)


def _rows(names: str, *limits: Limit) -> tuple[OpRule, ...]:
    return tuple(OpRule(name, limits) for name in names.split())


ROWS = (
    *_rows("ADD SUB MUL NEG EXPAND_DIMS RESHAPE SQUEEZE"),
    *_rows("ABS CONCATENATION HARD_SWISH LEAKY_RELU LOGISTIC TANH PACK UNPACK PRELU", NARROW_ONLY),
    *_rows("RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 SPLIT SPLIT_V SQUARED_DIFFERENCE TILE", NARROW_ONLY),
    *_rows("REDUCE_MAX REDUCE_MIN SUM QUANTIZE", NARROW_ONLY),
    *_rows("LOG RSQRT", activations_in(("int8", "int16"))),
    OpRule("EXP", (NARROW_ONLY,), older=((activations_in(("int8", "int16")), V5),)),
    *_rows("ELU", activations_in(("int8",))),
    *_rows("GELU", activations_in(("int8", "uint8"))),
    *_rows("MAXIMUM MINIMUM", NARROW_ONLY, SAME_GRIDS),
    *_rows("PAD PADV2 SLICE STRIDED_SLICE", NARROW_ONLY, PARAMETERS),
    *_rows("MIRROR_PAD TRANSPOSE", PARAMETERS),
    *_rows("RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR", NARROW_ONLY, SCALE_FACTOR),
    OpRule("CONV_2D", (NARROW_ONLY, *CONV, STRIDE), older=((KERNEL, V5), (STRIDES_3, V5))),
    OpRule("DEPTHWISE_CONV_2D", (NARROW_ONLY, *CONV, STRIDES_3), older=((KERNEL, V5),)),
    OpRule("FULLY_CONNECTED", (weights_in(("int8", "uint8")), constant(2), weight_sum_at_most(8_323_072))),
    OpRule(
        "TRANSPOSE_CONV",
        (
            NARROW_ONLY,
            weights_in(("int8", "uint8")),
            constant(0, 3),
            options_between(1, 2, "stride_h", "stride_w"),
        ),
    ),
    OpRule("AVERAGE_POOL_2D", (NARROW_ONLY, WINDOW, STRIDE)),
    OpRule("MAX_POOL_2D", (NARROW_ONLY, MAX_WINDOW, STRIDE)),
    OpRule(
        "MEAN",
        (
            NARROW_ONLY,
            constant(1),
            where("a reduced axis is shorter than 4096", _reduced, "split the mean in two"),
            where("depth only if y, x or depth is 1", _depth_mean, "use a CONV_2D of ones"),
        ),
    ),
    OpRule("SOFTMAX", (NARROW_ONLY, where("fewer than 65536 rows", _softmax_rows, "split the tensor"))),
    OpRule("BATCH_MATMUL", (activations_in(("int8",)),)),
    OpRule("UNIDIRECTIONAL_SEQUENCE_LSTM", (NARROW_ONLY,)),
    OpRule(
        "ARG_MAX",
        (
            where("depth at most 127", _depth, "split the channels"),
            where("along the depth", _along_depth, "transpose before"),
        ),
    ),
)
ETHOS_U = DeviceRules(
    name="ethos-u",
    title="Arm Ethos-U55/U65",
    source="Vela 5.2.0, --supported-ops-report",
    prediction="This is a prediction from published limits: compile the file with Vela (ethos-u-vela).",
    words=Words(
        mapped="NPU",
        unsupported="CPU: operator is not on the list of supported operators",
        dtype="CPU: operation has tensor with unsupported DataType",
        limited="CPU: a constraint of the operator is not met",
    ),
    everywhere=(
        activations_in((*NARROW, "int32"), exempt=("ARG_MAX",)),
        static_sizes(),
        per_tensor_activations(WEIGHTED),
    ),
    rows=ROWS,
    runtimes=(4, V5),
    versioned="Vela",
    older=((rank_at_most(4), V5), (batch_one(), V5)),
    rewrites={
        "DEQUANTIZE": "int8 outputs (`--io int8`), so that nothing is converted",
        "SPACE_TO_DEPTH": "CONV_2D with a kernel that picks the pixels",
        "SQUARE": "MUL of the tensor with itself",
        "DIV": "MUL with the inverse, where it is constant",
    },
)
