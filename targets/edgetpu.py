"""The Edge TPU as a table: what its compiler maps, from Coral's documentation and measured refusals."""

from __future__ import annotations

import numpy as np

from tvm_qplugin.core.device_limits import (
    activations_in,
    axes_not,
    called,
    constant,
    equal_options,
    fused_activation_in,
    last_dim_multiple,
    one_dimensional,
    one_scale,
    option_in,
    pads_not,
    spatial_at_most,
    static_sizes,
    three_innermost,
    version_at_most,
    weights_in,
    where,
)
from tvm_qplugin.core.device_rules import DeviceRules, Limit, Op, OpRule, Words

R13, R14 = 13, 14
LARGE_RESHAPE = 2**16
EIGHT_BIT = ("int8", "uint8")


def _zero_padding(op: Op) -> str | None:
    stored = [t for t in op.inputs if t is not None and t.data is not None]
    if not stored:
        return None
    if len(op.inputs) != 2:
        return f"joins {len(op.inputs)} tensors, {len(stored)} of them constant"
    zero = 0 if stored[0].quant is None else int(stored[0].quant.zero_point)
    return f"{called(stored[0])} is not all zeros" if np.any(stored[0].data != zero) else None


def _thin_alpha(op: Op) -> str | None:
    shape = op.shape(1)
    return f"alpha has shape {list(shape)}" if any(extent != 1 for extent in shape[:-1]) else None


def _unit_strides(op: Op) -> str | None:
    strides = op.constant(3)
    return f"strides are {strides.tolist()}" if strides is not None and np.any(strides != 1) else None


def _leading(op: Op) -> str | None:
    rank = len(op.shape(0))
    ones = [i for i, extent in enumerate(op.shape(0)) if extent == 1]
    axes = sorted(int(a) % rank for a in op.options.get("squeeze_dims") or ones)
    return None if axes == list(range(len(axes))) else f"removes axes {axes}"


def _dilated(op: Op) -> str | None:
    given = [op.options.get(f"dilation_{side}_factor", 1) for side in "hw"]
    return None if given == [1, 1] else f"is dilated by {given[0]}x{given[1]}"


def _images(op: Op) -> str | None:
    flat = [t for t in op.activations if len(t.shape) < 3]
    return f"{called(flat[0])} has {len(flat[0].shape)} dimensions" if flat else None


def _large(op: Op) -> str | None:
    count = int(np.prod(op.outputs[0].shape))
    return f"moves {count} elements" if count > LARGE_RESHAPE else None


NO_ACTIVATION = fused_activation_in("NONE")
NOT_BATCH = axes_not("batch")
SAME_DILATION = equal_options(
    "dilation_h_factor",
    "dilation_w_factor",
    "same dilation in x and y",
    "insert zeros into the kernel instead of dilating it",
)
ZERO_PADDING = where(
    "a constant only beside one other input, and all zeros",
    _zero_padding,
    "add the constant with PAD, or compute it in a layer",
)
DEFAULT_WEIGHTS = option_in("weights_format", ("DEFAULT",), "convert the weights to the default format")
SMALL_MEAN = spatial_at_most(
    64 * 128,
    "y and x of at most 64x128 elements (256x128 is known to fail)",
    "split the mean in two, or use AVERAGE_POOL_2D",
)
THIN_ALPHA = where("alpha is 1-D", _thin_alpha, "share alpha over y and x")
UNIT_STRIDES = where("all strides are 1", _unit_strides, "use a convolution or a pool with that stride")
IMAGES = where("input and output are 3-D", _images, "reshape to y, x and channels before")
NO_ELLIPSIS = option_in("ellipsis_mask", (0,), "write begin and end of every dimension")
NO_NEW_AXIS = option_in("new_axis_mask", (0,), "add the axis with RESHAPE")
NO_DILATION = where("no dilation", _dilated)
LEADING = where("removes leading dimensions", _leading)
LARGE = where(f"more than {LARGE_RESHAPE} elements may not map (no limit is published)", _large)
SOME_SIZES = where("some sizes are refused (none is published)", lambda op: "depends on the sizes")
UNVERIFIED = where("the compiler's list has it, nobody here saw it map", lambda op: "unverified")
CONSTANT_1 = constant(1)


def _pool(name: str) -> OpRule:
    return OpRule(name, (NO_ACTIVATION,))


def _reduce(name: str, runtime: int, caution: Limit | None = None) -> OpRule:
    return OpRule(name, (CONSTANT_1, NOT_BATCH), runtime, caution=caution)


ROWS = (
    OpRule("ADD"),
    OpRule("SUB"),
    OpRule("MUL"),
    OpRule("MAXIMUM"),
    OpRule("MINIMUM"),
    OpRule("LOGISTIC"),
    OpRule("TANH"),
    OpRule("RELU"),
    OpRule("RELU6"),
    OpRule("RELU_N1_TO_1"),
    OpRule("L2_NORMALIZATION"),
    OpRule("SLICE", (constant(1, 2),)),
    OpRule("SPACE_TO_DEPTH"),
    _pool("AVERAGE_POOL_2D"),
    _pool("MAX_POOL_2D"),
    OpRule("CONCATENATION", (NO_ACTIVATION, ZERO_PADDING)),
    OpRule(
        "CONV_2D",
        (weights_in(EIGHT_BIT), constant(1, 2), SAME_DILATION, version_at_most(5)),
        older=((version_at_most(4), R14),),
    ),
    OpRule(
        "DEPTHWISE_CONV_2D",
        (weights_in(EIGHT_BIT), constant(1, 2), SAME_DILATION),
        older=((NO_DILATION, R13),),
    ),
    OpRule("EXPAND_DIMS", (CONSTANT_1,), R13),
    OpRule("QUANTIZE", (), R13),
    OpRule(
        "FULLY_CONNECTED",
        (weights_in(EIGHT_BIT), constant(1, 2), DEFAULT_WEIGHTS, one_scale(), one_dimensional("output")),
    ),
    OpRule("UNIDIRECTIONAL_SEQUENCE_LSTM", (), R14),
    OpRule(
        "MEAN",
        (CONSTANT_1, NOT_BATCH, last_dim_multiple(4), SMALL_MEAN),
        older=((axes_not("x/y"), R13),),
    ),
    OpRule("PACK", (axes_not("batch", None),), R13),
    OpRule("PAD", (CONSTANT_1, pads_not("batch")), older=((pads_not("x/y"), R13),)),
    OpRule("PRELU", (CONSTANT_1, THIN_ALPHA), R13),
    _reduce("REDUCE_MAX", R14),
    _reduce("REDUCE_MIN", R14),
    OpRule("RESHAPE", (CONSTANT_1,), caution=LARGE),
    OpRule("RESIZE_BILINEAR", (CONSTANT_1, IMAGES), caution=SOME_SIZES),
    OpRule("RESIZE_NEAREST_NEIGHBOR", (CONSTANT_1, IMAGES), caution=SOME_SIZES),
    OpRule("SOFTMAX", (one_dimensional("input", 16_000),)),
    OpRule("SPLIT", (constant(0), axes_not("batch", 0))),
    OpRule("SQUEEZE", (), older=((LEADING, R13),)),
    OpRule("STRIDED_SLICE", (constant(1, 2, 3), UNIT_STRIDES, NO_ELLIPSIS, NO_NEW_AXIS)),
    _reduce("SUM", R13, UNVERIFIED),
    OpRule("RSQRT", (), R14, caution=UNVERIFIED),
    OpRule("SQUARED_DIFFERENCE", (), R14, caution=UNVERIFIED),
    OpRule("TRANSPOSE", (CONSTANT_1,), R14, caution=UNVERIFIED),
    OpRule(
        "TRANSPOSE_CONV",
        (weights_in(EIGHT_BIT), constant(0, 1, 3), version_at_most(3)),
        R13,
        caution=UNVERIFIED,
    ),
)
REWRITES = {
    "LEAKY_RELU": "PRELU with a 1-D alpha",
    "HARD_SWISH": "x * RELU6(x + 3) / 6, written as ADD, RELU6 and MUL",
    "QUANTIZE": "int8 or uint8 inputs (`--io int8`), so that nothing is converted",
    "DEQUANTIZE": "int8 or uint8 outputs (`--io int8`), so that nothing is converted",
    "PADV2": "PAD, which pads with the zero point",
    "MIRROR_PAD": "PAD before training, or CONCATENATION of slices",
    "SPLIT_V": "SPLIT into equal parts, or SLICE",
    "UNPACK": "SPLIT and SQUEEZE",
    "GATHER": "SLICE or SPLIT",
    "SQUARE": "MUL of the tensor with itself",
    "NEG": "MUL with -1",
    "DIV": "MUL with the inverse, where it is constant",
    "BATCH_MATMUL": "FULLY_CONNECTED or CONV_2D, where one side is constant",
    "BIDIRECTIONAL_SEQUENCE_LSTM": "two UNIDIRECTIONAL_SEQUENCE_LSTM",
    "DEPTH_TO_SPACE": "TRANSPOSE_CONV or RESIZE_NEAREST_NEIGHBOR",
}

EDGETPU = DeviceRules(
    name="edgetpu",
    title="Edge TPU",
    source="Coral's list of supported operations (coral.ai/docs/edgetpu/models-intro)",
    prediction="This is a prediction: the Edge TPU compiler is closed, and it alone decides.",
    words=Words(
        mapped="Mapped to Edge TPU",
        unsupported="Operation not supported",
        dtype="Operation is working on an unsupported data type",
        limited="Operation is otherwise supported, but not mapped due to some unspecified limitation",
        after_cut="More than one subgraph is not supported",
        activations="Compilation failed due to large activation tensors in model",
    ),
    everywhere=(activations_in(EIGHT_BIT), static_sizes(), three_innermost()),
    rows=ROWS,
    rewrites=REWRITES,
    one_subgraph=True,
    on_chip_bytes=int(7.7 * 2**20),
    runtimes=(10, R14),
)
