"""int16x8 files: layers whose biases decide by what arithmetic LiteRT computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.simulator import Simulator
from tvm_qplugin.tflite.reader import read_tflite

CODES = {"CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "DepthwiseConv2D", "FULLY_CONNECTED": "FullyConnected"}


def layer(lite: Any, code: str, bias: Any = None, zero: int = 0) -> tuple[bytes, np.ndarray]:
    """A file of one layer, and an input for it."""
    rng, dense = np.random.default_rng(0), code == "FULLY_CONNECTED"
    shape = {"CONV_2D": (6, 3, 3, 8), "DEPTHWISE_CONV_2D": (1, 3, 3, 8), "FULLY_CONNECTED": (6, 40)}[code]
    x = rng.integers(-32768, 32768, (9, 40) if dense else (1, 9, 8, 8)).astype("int16")
    axis = 3 if code == "DEPTHWISE_CONV_2D" else 0
    scale = rng.uniform(0.002, 0.02, shape[axis]).astype("float32")
    weight = lite.constant(rng.integers(-127, 128, shape), "int8", scale, axis)
    fields = {} if dense else {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    fields |= {"depthMultiplier": 1} if axis else {}
    inputs = [lite.Tensor(x.shape, "int16", 0.001), weight]
    if bias is not None:
        inputs.append(lite.constant(np.full(shape[axis], bias), str(bias.dtype), 0.001 * scale))
    out = lite.Tensor((*x.shape[:-1], shape[axis]), "int16", 0.3, zero)
    version = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 12}[code]
    return lite.operator(code, inputs, [out], f"{CODES[code]}Options", version, **fields), x


@pytest.mark.parametrize(
    ("code", "bias"),
    [
        ("CONV_2D", np.int64(123_456)),  # without a bias LiteRT refuses it
        ("DEPTHWISE_CONV_2D", np.int64(123_456)),
        ("DEPTHWISE_CONV_2D", None),
        ("FULLY_CONNECTED", np.int64(123_456)),
    ],
)
def test_layers(litert: Any, code: str, bias: Any) -> None:
    file, x = layer(litert, code, bias)
    np.testing.assert_array_equal(Simulator(read_tflite(file)).run(x)[0], litert.run(file, x).outputs[0])


@pytest.mark.parametrize(
    ("code", "bias", "text"),
    [
        ("CONV_2D", np.int32(5), "its bias is int32, expected int64"),
        ("FULLY_CONNECTED", np.int32(5), "its bias is int32, expected int64"),
        ("FULLY_CONNECTED", None, "it has no bias, and LiteRT rounds such int16 layers otherwise"),
        ("FULLY_CONNECTED", np.int64(2**40), "its bias does not fit int32"),
    ],
)
def test_refused_biases(litert: Any, code: str, bias: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        read_tflite(layer(litert, code, bias)[0])


def test_a_zero_point_is_refused(litert: Any) -> None:
    with pytest.raises(
        ModelError, match=r"\(with zero point 0\) int16 with one scale; not so: output0 \(int16\)"
    ):
        read_tflite(layer(litert, "FULLY_CONNECTED", np.int64(0), 7)[0])
