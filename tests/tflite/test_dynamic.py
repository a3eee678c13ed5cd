"""Layers with int8 weights and float inputs: ``core/dynamic.py`` equals LiteRT to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvm_qplugin.core import dynamic
from tvm_qplugin.core.qparams import Array

BOUNDS = {0: (None, None), 1: (0.0, None), 3: (0.0, 6.0)}


def quantized(rng: Any, shape: tuple[int, ...], axis: int | None) -> tuple[Array, Array]:
    """A random weight in [-127, 127] and its scale, per channel or for the whole."""
    weight = rng.normal(size=shape)
    others = None if axis is None else tuple(i for i in range(len(shape)) if i != axis)
    scale = np.abs(weight).max(axis=others, keepdims=axis is not None) / 127
    codes = np.clip(np.rint(weight / scale), -127, 127).astype("int8")
    return codes, np.asarray(scale.reshape(-1) if axis is not None else scale, "float32")


def images(rng: Any, shape: tuple[int, ...]) -> Array:
    """Values of any size and any mean."""
    values = rng.normal(size=shape) * rng.uniform(0.01, 9) + rng.normal()
    return np.asarray(values, "float32")


def same(extent: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    missing = max((-(-extent // stride) - 1) * stride + (kernel - 1) * dilation + 1 - extent, 0)
    return missing // 2, missing - missing // 2


def convolution(
    litert: Any, code: str, x: Array, weight: Array, scale: Array, bias: Array, **p: Any
) -> tuple[Array, Array]:
    """LiteRT's result and ours, with SAME padding."""
    stride, dilation, act = p.get("stride", 1), p.get("dilation", 1), p.get("activation", 0)
    (t, b), (left, r) = (same(x.shape[i + 1], weight.shape[i + 1], stride, dilation) for i in (0, 1))
    depthwise = code == "DEPTHWISE_CONV_2D"
    stored = weight.transpose(3, 1, 2, 0) if depthwise else weight
    fields = {"strideH": stride, "strideW": stride, "padding": litert.SAME, "fusedActivationFunction": act}
    fields |= {"dilationHFactor": dilation, "dilationWFactor": dilation}
    fields |= {"depthMultiplier": weight.shape[0] // x.shape[3]} if depthwise else {}
    inputs = [
        litert.Tensor(x.shape, "float32"),
        litert.constant(stored, "int8", scale, 3 if depthwise else 0),
        litert.constant(bias, "float32"),
    ]
    shape = (x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride), weight.shape[0])
    options = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
    version = 6 if depthwise else 5
    file = litert.operator(code, inputs, [litert.Tensor(shape, "float32")], options, version, **fields)
    params = {"strides": [stride] * 2, "dilation": [dilation] * 2, "padding": [t, left, b, r]}
    params |= {"groups": x.shape[3] // weight.shape[3]}
    params |= dict(zip(("lo", "hi"), BOUNDS[act], strict=True))
    return litert.run(file, x).outputs[0], dynamic.conv2d(params, x, weight, scale, bias)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["conv", "pointwise", "grouped", "grouped pointwise", "strided"])
def test_convolutions(litert: Any, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = 2 if "grouped" in kind else 1
    channels, outputs = (int(rng.integers(1, 20)) * groups for _ in range(2))
    kernel = 1 if "pointwise" in kind else 3
    p = {"stride": 2} if kind == "strided" else {"dilation": 1 + seed % 2 * (kernel - 1) // 2}
    x = images(rng, (1 + seed % 2, *rng.integers(4, 12, 2), channels))
    shape = (outputs, kernel, kernel, channels // groups)
    weight, scale = quantized(rng, shape, 0 if seed % 3 else None)
    bias = rng.normal(size=outputs).astype("float32")
    activation = (0, 1, 3)[seed % 3]
    found, ours = convolution(litert, "CONV_2D", x, weight, scale, bias, activation=activation, **p)
    np.testing.assert_array_equal(ours, found, strict=True)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(litert: Any, multiplier: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels = int(rng.integers(2, 30))
    x = images(rng, (1 + seed % 2, *rng.integers(4, 12, 2), channels))
    weight, scale = quantized(rng, (channels * multiplier, 3, 3, 1), 0)
    bias = rng.normal(size=channels * multiplier).astype("float32")
    p = {"stride": 1 + seed % 2, "dilation": 2 - seed % 2, "activation": (0, 1, 3)[seed % 3]}
    found, ours = convolution(litert, "DEPTHWISE_CONV_2D", x, weight, scale, bias, **p)
    np.testing.assert_array_equal(ours, found, strict=True)


def product(
    litert: Any, x: Array, weight: Array, scale: Array, bias: Array, asymmetric: bool = True
) -> tuple[Array, Array]:
    inputs = [
        litert.Tensor(x.shape, "float32"),
        litert.constant(weight, "int8", scale),
        litert.constant(bias, "float32"),
    ]
    made = litert.Tensor((*x.shape[:-1], weight.shape[0]), "float32")
    fields = {"asymmetricQuantizeInputs": asymmetric, "keepNumDims": len(x.shape) > 2}
    file = litert.operator("FULLY_CONNECTED", inputs, [made], "FullyConnectedOptions", 12, **fields)
    params = {"lo": None, "hi": None}
    return litert.run(file, x).outputs[0], dynamic.dense(params, x, weight, scale, bias)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rows", [(1,), (5,), (2, 3)])
def test_dense(litert: Any, rows: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth, outputs = int(rng.integers(1, 300)), int(rng.integers(1, 40))
    weight, scale = quantized(rng, (outputs, depth), 0 if seed % 2 else None)
    bias = rng.normal(size=outputs).astype("float32")
    x = images(rng, (*rows, depth))
    found, ours = product(litert, x, weight, scale, bias, asymmetric=seed % 3 > 0)
    np.testing.assert_array_equal(ours, found, strict=True)


def near_ties(rng: Any, low: float, high: float, count: int) -> Array:
    """Numbers in the middle between two codes, and their neighbours."""
    step = np.float32(high - low) / 255
    values = ((rng.integers(0, 255, count) + 0.5) * step + low).astype("float32")
    values = np.nextafter(values, values + rng.integers(-1, 2, count), dtype="float32")
    values[:2] = low, high
    return np.clip(values, low, high).astype("float32")


@pytest.mark.parametrize("seed", range(30))
def test_numbers_between_two_codes(litert: Any, seed: int) -> None:
    """Weights that pass the codes on: every rounding of the input shows."""
    rng = np.random.default_rng(seed)
    low, high = -float(rng.uniform(0, 6)) * (seed % 2), float(rng.uniform(1, 6))
    x = near_ties(rng, low, high, 128)
    one, zero = np.ones(1, "float32"), np.zeros(16, "float32")
    image, each = x.reshape(1, 2, 4, 16), np.ones((16, 1, 1, 1), "int8")
    found, ours = convolution(litert, "DEPTHWISE_CONV_2D", image, each, np.repeat(one, 16), zero)
    np.testing.assert_array_equal(ours, found)
    found, ours = product(litert, x.reshape(1, 128), np.eye(128, dtype="int8"), one, np.repeat(zero, 8))
    np.testing.assert_array_equal(ours, found)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5])
def test_inputs_that_are_all_equal(litert: Any, value: float) -> None:
    rng = np.random.default_rng(0)
    weight, scale = quantized(rng, (6, 3, 3, 1), 0)
    x, bias = np.full((1, 5, 5, 6), value, "float32"), rng.normal(size=6).astype("float32")
    found, ours = convolution(litert, "DEPTHWISE_CONV_2D", x, weight, scale, bias)
    np.testing.assert_array_equal(ours, found)
    weight, scale = quantized(rng, (4, 150), 0)
    found, ours = product(litert, x.reshape(1, 150), weight, scale, bias[:4])
    np.testing.assert_array_equal(ours, found)
