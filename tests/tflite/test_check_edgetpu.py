"""The table of the Edge TPU: every rule, kept and broken."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_qplugin.targets.edgetpu import EDGETPU, REWRITES, ROWS
from tvm_qplugin.tflite.check import CheckReport, check
from tvm_qplugin.tflite.file import load


def _models() -> Any:
    spec = importlib.util.spec_from_file_location("tflite_models", Path(__file__).with_name("models.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


m = _models()
IMAGE = m.IMAGE
t, c, op, unary, pool, conv, dense, concat, reduce, pad, slices, resize, transpose_conv, lstm = (
    m.t,
    m.c,
    m.op,
    m.unary,
    m.pool,
    m.conv,
    m.dense,
    m.concat,
    m.reduce,
    m.pad,
    m.slices,
    m.resize,
    m.transpose_conv,
    m.lstm,
)
MAPPED = "Mapped to Edge TPU"
UNSUPPORTED = "Operation not supported"
DTYPE = "Operation is working on an unsupported data type"
LIMITED = "Operation is otherwise supported, but not mapped due to some unspecified limitation"


PASSING, RELU6 = m.PASSING, m.RELU6
FLOAT = t(dtype="float32", scale=None)
FAILING: list[tuple[str, Callable[[Any], bytes], str, str, str]] = [
    # what, model, status, rule, remedy
    (
        "float",
        op("ADD", [FLOAT, FLOAT], FLOAT, "AddOptions"),
        DTYPE,
        "int8 or uint8.*is float32",
        "quantize the model",
    ),
    (
        "int16",
        op("RELU", [t(dtype="int16")], t(dtype="int16")),
        DTYPE,
        "input0 is int16",
        "quantize the model",
    ),
    ("no scale", op("RELU", [t(scale=None)], t()), DTYPE, "input0 has no scale", "quantize"),
    (
        "float to int8",
        op("QUANTIZE", [FLOAT], t(), "QuantizeOptions"),
        DTYPE,
        "input0 is float32",
        "int8 or uint8 inputs",
    ),
    (
        "batch",
        unary("RELU", (2, 8, 8, 4)),
        LIMITED,
        r"three innermost dimensions exceed 1: input0 has shape \[2,8,8,4\]",
        "batch 1",
    ),
    ("batch of 5", unary("RELU", (2, 1, 8, 8, 4)), LIMITED, "three innermost", "batch 1"),
    (
        "pool activation",
        pool("AVERAGE_POOL_2D", **RELU6),
        LIMITED,
        "no fused activation: has RELU6 fused",
        "operator of its own",
    ),
    (
        "pool activation 2",
        pool("MAX_POOL_2D", **RELU6),
        LIMITED,
        "no fused activation: has RELU6 fused",
        "operator of its own",
    ),
    ("concat activation", concat([t(), t()], **RELU6), LIMITED, "no fused activation", "operator of its own"),
    (
        "concat constant",
        concat([t(), c(np.ones(IMAGE), "int8", 0.5)]),
        LIMITED,
        "all zeros: input1 is not all zeros",
        "PAD",
    ),
    (
        "concat three",
        concat([t(), t(), c(np.zeros(IMAGE), "int8", 0.5)]),
        LIMITED,
        "joins 3 tensors, 1 of them constant",
        "PAD",
    ),
    (
        "conv dilation",
        conv(dilationHFactor=2),
        LIMITED,
        "same dilation in x and y: dilation_h_factor is 2",
        "insert zeros",
    ),
    (
        "conv weight",
        conv(weight=t((1, 3, 3, 4))),
        LIMITED,
        "parameters are constant: input1 is computed",
        "fold",
    ),
    (
        "conv weight type",
        conv(weight=c(np.ones((4, 3, 3, 4)), "int16", 0.1)),
        DTYPE,
        "weights are int8 or uint8: input1 is int16",
        "quantize",
    ),
    ("conv bias", conv(bias=t((4,), "int32")), DTYPE, "input2 is int32", "quantize"),
    (
        "depthwise dilation",
        conv("DEPTHWISE_CONV_2D", dilationWFactor=2),
        LIMITED,
        "same dilation",
        "insert zeros",
    ),
    ("dense batch", dense((3, 4)), LIMITED, r"output is 1-D: output0 has shape \[3,4\]", "reshape"),
    (
        "dense format",
        dense(weightsFormat=1),
        LIMITED,
        "weights_format is DEFAULT: weights_format is SHUFFLED",
        "default format",
    ),
    (
        "dense scales",
        dense(weight=c(np.ones((4, 16)), "int8", [0.1, 0.2, 0.3, 0.4])),
        LIMITED,
        "weights have one scale: input1 has 4 scales",
        "per tensor",
    ),
    ("conv version", conv(version=6), LIMITED, "at most 5: has version 6", "old versions"),
    ("transpose conv version", transpose_conv(version=4), LIMITED, "at most 3: has version 4", "old"),
    ("dense weight", dense(weight=t((4, 16))), LIMITED, "parameters are constant", "fold"),
    (
        "mean batch",
        reduce("MEAN", [0]),
        LIMITED,
        "not along the batch dimension: works on axis 0 of 4",
        "another axis",
    ),
    (
        "mean depth",
        reduce("MEAN", [3], (1, 4, 4, 6)),
        LIMITED,
        "multiple of 4 channels: reduces 6 channels",
        "pad the channels",
    ),
    (
        "mean large",
        reduce("MEAN", [1, 2], (1, 256, 128, 3)),
        LIMITED,
        "64x128.*reduces 256x128",
        "split the mean.*AVERAGE_POOL_2D",
    ),
    (
        "mean axes",
        op("MEAN", [t(), t((2,), "int8")], t((1, 4)), "ReducerOptions"),
        LIMITED,
        "parameters are constant",
        "fold",
    ),
    (
        "pack batch",
        op("PACK", [t((8, 4))] * 2, t((2, 8, 4)), "PackOptions", axis=0, valuesCount=2),
        LIMITED,
        "not along the batch",
        "axis",
    ),
    (
        "pad batch",
        pad([[0, 1], [1, 1], [0, 0]], (1, 8, 4)),
        LIMITED,
        r"not the batch dimension: pads axis 0 by \[0, 1\]",
        "pad another axis",
    ),
    (
        "prelu alpha",
        op("PRELU", [t(), c(np.ones((8, 8, 4)), "int8", 0.1)], t()),
        LIMITED,
        r"alpha is 1-D: alpha has shape \[8, 8, 4\]",
        "share alpha",
    ),
    ("prelu computed", op("PRELU", [t(), t((1, 1, 4))], t()), LIMITED, "parameters are constant", "fold"),
    ("max batch", reduce("REDUCE_MAX", [0]), LIMITED, "not along the batch", "another axis"),
    ("min batch", reduce("REDUCE_MIN", [0, 1]), LIMITED, "not along the batch", "another axis"),
    ("sum batch", reduce("SUM", [-4]), LIMITED, "not along the batch", "another axis"),
    (
        "resize flat",
        resize("RESIZE_BILINEAR", (8, 4), (16, 4)),
        LIMITED,
        "input and output are 3-D: input0 has 2 dim",
        "reshape",
    ),
    ("resize flat 2", resize("RESIZE_NEAREST_NEIGHBOR", (8, 4), (16, 4)), LIMITED, "are 3-D", "reshape"),
    (
        "softmax 2-D",
        unary("SOFTMAX", (4, 10), "SoftmaxOptions", beta=1.0),
        LIMITED,
        r"input is 1-D.*shape \[4,10\]",
        "reshape",
    ),
    (
        "softmax large",
        unary("SOFTMAX", (1, 16_001), "SoftmaxOptions", beta=1.0),
        LIMITED,
        "at most 16000 elements: input0 has 16001",
        "reshape",
    ),
    (
        "split batch",
        op("SPLIT", [c([0]), t((4, 8))], [t((2, 8))] * 2, "SplitOptions", numSplits=2),
        LIMITED,
        "not along the batch",
        "axis",
    ),
    (
        "strides",
        slices((1, 2, 2, 1)),
        LIMITED,
        r"all strides are 1: strides are \[1, 2, 2, 1\]",
        "convolution or a pool",
    ),
    ("ellipsis", slices(ellipsisMask=1), LIMITED, "ellipsis_mask is 0: ellipsis_mask is 1", "begin and end"),
    ("new axis", slices(newAxisMask=2), LIMITED, "new_axis_mask is 0: new_axis_mask is 2", "RESHAPE"),
    ("slice", op("SLICE", [t(), c([0] * 4), t((4,))], t()), LIMITED, "parameters are constant", "fold"),
    (
        "reshape",
        op("RESHAPE", [t(), t((2,))], t((1, 256)), "ReshapeOptions"),
        LIMITED,
        "parameters are constant",
        "fold",
    ),
    (
        "expand",
        op("EXPAND_DIMS", [t((8, 4)), t((1,))], t((1, 8, 4)), "ExpandDimsOptions"),
        LIMITED,
        "parameters",
        "fold",
    ),
    ("transpose", op("TRANSPOSE", [t((8, 4)), t((2,))], t((4, 8))), LIMITED, "parameters", "fold"),
    ("transpose conv", transpose_conv(t((1, 2, 2, 4))), LIMITED, "parameters", "fold"),
    ("sin", unary("SIN"), UNSUPPORTED, "no row for the operator SIN", "cut the model"),
    (
        "top k",
        op("TOPK_V2", [t((1, 8)), c(3)], [t((1, 3)), t((1, 3), "int32")]),
        UNSUPPORTED,
        "TOPK_V2",
        "cut",
    ),
    (
        "arg min",
        op("ARG_MIN", [t(), c([3])], t((1, 8, 8), "int32"), "ArgMinOptions"),
        UNSUPPORTED,
        "ARG_MIN",
        "cut",
    ),
    (
        "leaky relu",
        unary("LEAKY_RELU", options="LeakyReluOptions", alpha=0.1),
        UNSUPPORTED,
        "LEAKY_RELU",
        "PRELU with a 1-D alpha",
    ),
    ("hard swish", unary("HARD_SWISH"), UNSUPPORTED, "HARD_SWISH", r"x \* RELU6\(x \+ 3\) / 6"),
    ("two-way lstm", lstm("BIDIRECTIONAL_SEQUENCE_LSTM"), UNSUPPORTED, "BIDIRECTIONAL", "two UNIDIRECTIONAL"),
    (
        "dequantize",
        op("DEQUANTIZE", [t()], FLOAT, "DequantizeOptions"),
        UNSUPPORTED,
        "DEQUANTIZE",
        "int8 or uint8 outputs",
    ),
]


def report(file: bytes, runtime: int | None = None) -> CheckReport:
    return check(load(file, strict=False), EDGETPU, runtime)


def test_every_row_has_a_passing_model() -> None:
    assert set(PASSING) == {row.name for row in ROWS}


@pytest.mark.parametrize("name", PASSING)
def test_rule_kept(litert: Any, name: str) -> None:
    result = report(PASSING[name](litert))
    (finding,) = result.findings
    assert (finding.operator, finding.placed, finding.status) == (name, "mapped", MAPPED)
    assert result.complete and result.cut is None and result.partitions == 1
    row = EDGETPU.row(name)
    assert row is not None and finding.rule == ("; ".join(limit.text for limit in row.limits) or "no limit")


@pytest.mark.parametrize(
    ("what", "model", "status", "rule", "hint"), FAILING, ids=[case[0] for case in FAILING]
)
def test_rule_broken(litert: Any, what: str, model: Any, status: str, rule: str, hint: str) -> None:
    (finding,) = report(model(litert)).findings
    assert (finding.placed, finding.status) == ("cpu", status)
    match(rule, finding.rule)
    match(hint, finding.hint)


def match(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


def test_rewrites_are_for_operators_without_a_row() -> None:
    assert {row.name for row in ROWS} & set(REWRITES) == {"QUANTIZE"}  # it has one, but not for float
