"""The tables of LiteRT's GPU and Hexagon delegates: rules kept and broken."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_qplugin.core.device_rules import DeviceRules
from tvm_qplugin.targets.litert import GPU, HEXAGON
from tvm_qplugin.tflite.check import Finding, check
from tvm_qplugin.tflite.file import load


def _models() -> Any:
    spec = importlib.util.spec_from_file_location("tflite_models", Path(__file__).with_name("models.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


m = _models()
t, c, op, unary = m.t, m.c, m.op, m.unary
FLOAT, SHORT = t(dtype="float32", scale=None), t(dtype="int16")


def find(file: bytes, rules: DeviceRules) -> Finding:
    (finding,) = check(load(file, strict=False), rules).findings
    return finding


def depthwise(multiplier: int, depth: int, **fields: Any) -> Any:
    weight = c(np.ones((1, 3, 3, multiplier * depth)), "int8", 0.1)
    inputs = [t((1, 8, 8, depth)), weight, c([0] * multiplier * depth, "int32", 0.05)]
    fields = {"strideH": 1, "strideW": 1, "depthMultiplier": multiplier} | fields
    output = t((1, 8, 8, multiplier * depth))
    return op("DEPTHWISE_CONV_2D", inputs, output, "DepthwiseConv2DOptions", **fields)


def blocks(size: int) -> Any:
    return op("SPACE_TO_DEPTH", [t()], t((1, 4, 4, 16)), "SpaceToDepthOptions", blockSize=size)


def softmax(beta: float) -> Any:
    return unary("SOFTMAX", (1, 10), "SoftmaxOptions", beta=beta)


def bilinear(size: int, **fields: Any) -> Any:
    inputs = [t(), c([size, size])]
    return op("RESIZE_BILINEAR", inputs, t((1, size, size, 4)), "ResizeBilinearOptions", **fields)


def mul(a: tuple[int, ...], b: tuple[int, ...]) -> Any:
    return op("MUL", [t(a), t(b)], t((1, 8, 8, 4)), "MulOptions")


def mirror(mode: int) -> Any:
    pads = c([[0, 0], [1, 1], [1, 1], [0, 0]])
    return op("MIRROR_PAD", [t(), pads], t((1, 10, 10, 4)), "MirrorPadOptions", mode=mode)


TANH, SIGN_BIT, RELU6 = 4, 5, 3
GPU_CASES: dict[str, tuple[Any, Any, str]] = {
    # a model that maps, one that does not, and why
    "types": (
        op("RELU", [FLOAT], FLOAT),
        op("RELU", [t(dtype="int16")], t(dtype="int16")),
        "input0 is int16",
    ),
    "float": (op("ADD", [FLOAT, FLOAT], FLOAT, "AddOptions"), unary("REVERSE_V2"), "no row .*REVERSE_V2"),
    "rank": (unary("RELU"), unary("RELU", (1, 1, 8, 8, 4)), "at most 4 dimensions: input0 has 5"),
    "activation": (
        m.binary("ADD", options="AddOptions", fusedActivationFunction=TANH),
        m.binary("ADD", options="AddOptions", fusedActivationFunction=SIGN_BIT),
        "has SIGN_BIT fused",
    ),
    "outer product": (
        mul((1, 8, 8, 4), (1, 1, 1, 4)),
        mul((1, 8, 1, 4), (1, 1, 8, 4)),
        r"nowhere smaller.*: multiplies \[1, 8, 1, 4\] by \[1, 1, 8, 4\]",
    ),
    "multiplier": (depthwise(3, 1), depthwise(2, 4), "depth_multiplier 2 on 4 channels"),
    "weights": (m.dense(), m.dense(weightsFormat=1), "weights_format is SHUFFLED"),
    "axes": (
        m.reduce("MEAN", [1, 2]),
        op("MEAN", [t(), t((2,))], t((1, 1, 1, 4)), "ReducerOptions"),
        "parameters are constant",
    ),
    "pads": (m.pad([[0, 0]] * 4), m.pad([[0, 0]] * 2, (8, 4)), r"paddings have shape \[2, 2\]"),
    "mirror": (mirror(0), mirror(1), "mode is REFLECT: mode is 1"),
    "slice": (
        op("SLICE", [t(), c([0] * 4), c([1, 8, 8, 4])], t()),
        op("SLICE", [t((8, 4)), c([0] * 2), c([8, 4])], t((8, 4))),
        "3 or 4 dimensions: input has 2",
    ),
    "shrink": (m.slices(), m.slices(shrinkAxisMask=1), "shrink_axis_mask is 1"),
    "block": (blocks(2), blocks(1), "block_size is 1"),
    "beta": (softmax(1.0), softmax(2.0), "beta is 1.0: beta is 2.0"),
    "corners": (
        bilinear(16, alignCorners=True),
        bilinear(16, alignCorners=True, halfPixelCenters=True),
        "has both",
    ),
}
HEXAGON_CASES: dict[str, tuple[Any, Any, str]] = {
    "types": (unary("RELU"), op("RELU", [FLOAT], FLOAT), "input0 is float32"),
    "rows": (unary("NEG"), unary("SIN"), "no row for the operator SIN"),
    "rank": (unary("RELU6"), unary("RELU6", (1, 1, 8, 8, 4)), "at most 4 dimensions"),
    "activation": (
        m.binary("ADD", options="AddOptions", fusedActivationFunction=RELU6),
        m.binary("ADD", options="AddOptions", fusedActivationFunction=TANH),
        "has TANH fused",
    ),
    "pool": (
        m.pool("AVERAGE_POOL_2D"),
        m.pool("MAX_POOL_2D", fusedActivationFunction=RELU6),
        "no fused activation: has RELU6",
    ),
    "stride": (m.conv(strideH=3, strideW=3), m.conv(strideH=4, strideW=4), "stride_h is 4"),
    "dilation": (m.conv(), m.conv(dilationHFactor=2, dilationWFactor=2), "dilation_h_factor is 2"),
    "depthwise": (
        depthwise(1, 4, dilationHFactor=2, dilationWFactor=2),
        depthwise(1, 4, dilationHFactor=2, dilationWFactor=2, strideH=2, strideW=2),
        "dilation only with stride 1: is dilated and strided",
    ),
    "multiplier": (depthwise(2, 1), depthwise(2, 4), "depth_multiplier 2 on 4 channels"),
    "weights": (m.dense(), m.dense(weight=c(np.ones((4, 16)), "int16", 0.1)), "weights are .*is int16"),
    "rows kept": (m.dense(), m.dense(keepNumDims=True), "keep_num_dims is False: keep_num_dims is True"),
    "resize": (bilinear(65), bilinear(66), r"resizes to at most 65: resizes to \[66, 66\]"),
    "axes": (
        m.reduce("MEAN", [1, 2]),
        op("MEAN", [t(), t((2,))], t((1, 1, 1, 4)), "ReducerOptions"),
        "parameters are constant",
    ),
    "masks": (m.slices(), m.slices(newAxisMask=1), "new_axis_mask is 1"),
    "sum": (m.reduce("MEAN", [1]), m.reduce("SUM", [1]), "no row for the operator SUM"),
}
CASES = [(GPU, *case) for case in GPU_CASES.values()] + [(HEXAGON, *case) for case in HEXAGON_CASES.values()]
IDS = [f"gpu {name}" for name in GPU_CASES] + [f"hexagon {name}" for name in HEXAGON_CASES]


@pytest.mark.parametrize(("rules", "good", "bad", "why"), CASES, ids=IDS)
def test_rules(litert: Any, rules: DeviceRules, good: Any, bad: Any, why: str) -> None:
    kept = find(good(litert), rules)
    assert (kept.placed, kept.status) == ("mapped", rules.words.mapped), kept
    broken = find(bad(litert), rules)
    assert broken.placed == "cpu" and re.search(why, broken.rule), broken
    assert broken.status in (rules.words.unsupported, rules.words.limited, rules.words.dtype)
    assert broken.hint


def test_indices_are_not_activations(litert: Any) -> None:
    indices = op("ARG_MAX", [t(), c([3])], t((1, 8, 8), "int32", None), "ArgMaxOptions")
    assert find(indices(litert), HEXAGON).placed == "mapped"
