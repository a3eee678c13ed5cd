"""The oracle of int16x8 against LiteRT's default resolver, operator by operator, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tvm_qplugin.core import lite16, oracle, oracle16
from tvm_qplugin.core.fixed_point import quantize_multiplier, reduced_factors
from tvm_qplugin.core.interpolated import UNIT, softmax_tables
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array, QuantParams, clamp_bounds
from tvm_qplugin.passes.lut import UNARY

CODES = np.arange(-32768, 32768, dtype="int16")
RANGE = {"lo": -32768, "hi": 32767, "out_zp": 0}
POWERS = (0.25, 0.5, 1.0, 2.0)


def scales(seed: int, count: int, spread: float = 2.0) -> Iterator[tuple[np.float32, np.float32]]:
    """Pairs whose ratio is a power of two every third time."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        scale = np.float32(2.0 ** rng.uniform(-17, -10))
        ratio = rng.choice(POWERS) if i % 3 == 0 else 2.0 ** rng.uniform(-spread, spread)
        yield scale, scale * np.float32(ratio)


def image(seed: int, shape: tuple[int, ...]) -> Array:
    """Random codes, one in eight of them an extreme."""
    rng = np.random.default_rng(seed)
    extreme = rng.choice([-32768, -32767, -1, 0, 1, 32767], shape)
    return np.where(rng.random(shape) < 0.125, extreme, rng.integers(-32768, 32768, shape)).astype("int16")


def tensor(lite: Any, shape: tuple[int, ...], scale: Any, dtype: str = "int16", zero: int = 0) -> Any:
    return lite.Tensor(tuple(shape), dtype, scale, zero)


def equal(lite: Any, file: bytes, expected: Array, *arrays: Array) -> None:
    ran = lite.run(file, *arrays)
    np.testing.assert_array_equal(ran.outputs[0], expected)
    assert not ran.delegated


def same_padding(extent: int, kernel: int, stride: int) -> tuple[int, int]:
    missing = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
    return missing // 2, missing - missing // 2


@pytest.mark.parametrize("code", ["ADD", "SUB"])
@pytest.mark.parametrize("other", [(1, 201, 203, 15), (15,), (1, 1, 203, 15)])
def test_add(litert: Any, code: str, other: tuple[int, ...]) -> None:
    """One element in 100,000 tells the roundings of vectors from that of scalars."""
    rng, subtract = np.random.default_rng(1), code == "SUB"
    for i, (a, b) in enumerate(scales(2, 15, spread=4)):
        c = np.float32(rng.uniform(0.3, 2) * (a + b))
        x, y = image(i, (1, 201, 203, 15)), image(99 + i, other)
        front = oracle16.vectorized_elements(x.shape, y.shape, subtract)
        p = {**RANGE, **oracle16.add_multipliers(a, b, c), "subtract": subtract, "vectorized": front}
        ends = [tensor(litert, x.shape, a), tensor(litert, y.shape, b)], [tensor(litert, x.shape, c)]
        file = litert.operator(code, *ends, f"{code.title()}Options", 3, potScaleInt16=False)
        equal(litert, file, oracle.ORACLE["qadd16"](p, x, y, "int16"), x, y)


def test_mul(litert: Any) -> None:
    rng = np.random.default_rng(3)
    for i, (a, b) in enumerate(scales(4, 30)):
        c = np.float32(2.0 ** rng.uniform(0, 16) * a * b)
        x, y = image(i, (1, 60, 50, 3)), image(99 + i, (1, 60, 50, 3))
        p = {**RANGE, "multiplier": oracle16.mul_multiplier(a, b, c)}
        ends = [tensor(litert, x.shape, a), tensor(litert, y.shape, b)], [tensor(litert, x.shape, c)]
        file = litert.operator("MUL", *ends, "MulOptions", 4)
        equal(litert, file, oracle16.qmul16(p, x, y, "int16"), x, y)


@pytest.mark.parametrize("turned", [False, True])
def test_matmul(litert: Any, turned: bool) -> None:
    rng = np.random.default_rng(7)
    for i, (a, b) in enumerate(scales(8, 20)):
        c = np.float32(2.0 ** rng.uniform(3, 20) * a * b)
        x, y = image(i, (2, 3, 17, 33)), image(99 + i, (2, 3, 33, 19))
        factor, shift = reduced_factors(float(a * b) / float(c))
        p = {**RANGE, "factor": int(factor), "shift": int(shift)}
        given = np.ascontiguousarray(y.swapaxes(2, 3)) if turned else y
        ends = (
            [tensor(litert, x.shape, a), tensor(litert, given.shape, b)],
            [tensor(litert, (2, 3, 17, 19), c)],
        )
        file = litert.operator("BATCH_MATMUL", *ends, "BatchMatMulOptions", 3, adjX=False, adjY=turned)
        equal(litert, file, oracle16.qmatmul16(p, x, y, "int16"), x, given)


class Layer:
    """Random weights and biases; ``axis`` is that of the output channels."""

    def __init__(self, seed: int, shape: tuple[int, ...], axis: int, per_channel: bool) -> None:
        rng, channels = np.random.default_rng(seed), shape[axis]
        self.scale = rng.uniform(0.002, 0.02, channels if per_channel else 1).astype("float32")
        self.weight = rng.integers(-127, 128, shape).astype("int8")
        self.bias = rng.integers(-(10**8), 10**8, channels).astype("int64")
        self.axis = axis

    def reals(self, a: Any, c: Any) -> Array:
        return np.broadcast_to(float(a) * self.scale.astype("float64") / float(c), self.bias.shape)

    def inputs(self, lite: Any, shape: tuple[int, ...], a: Any) -> list[Any]:
        weight = lite.Tensor(self.weight.shape, "int8", self.scale, 0, self.weight, self.axis)
        return [tensor(lite, shape, a), weight, lite.constant(self.bias, "int64", a * self.scale)]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
def test_convolutions(litert: Any, depthwise: bool, per_channel: bool) -> None:
    for i, (a, ratio) in enumerate(scales(6, 12)):
        shape = (1, 3, 3, 12) if depthwise else (7, 3, 3, 6)
        layer, x = Layer(i, shape, 3 * depthwise, per_channel), image(i, (1, 9, 8, 6))
        c, stride, same = np.float32(ratio / a * 0.01 * 127 * a * 30), 1 + i % 2, i % 3 != 0
        (t, b), (left, r) = (same_padding(n, 3, stride) if same else (0, 0) for n in x.shape[1:3])
        p = {
            **RANGE,
            "strides": (stride, stride),
            "padding": (t, left, b, r),
            "groups": 6 if depthwise else 1,
        }
        w = np.moveaxis(layer.weight[0], 2, 0)[..., None] if depthwise else layer.weight
        expected = oracle16.qconv2d16(p, x, w, layer.bias, *reduced_factors(layer.reals(a, c)), "int16")
        fields = {"padding": litert.SAME if same else litert.VALID, "strideH": stride, "strideW": stride}
        fields |= {"dilationHFactor": 1, "dilationWFactor": 1}
        fields |= {"depthMultiplier": 2} if depthwise else {}
        ends = layer.inputs(litert, x.shape, a), [tensor(litert, expected.shape, c)]
        code, name = ("DEPTHWISE_CONV_2D", "DepthwiseConv2D") if depthwise else ("CONV_2D", "Conv2D")
        version = 5 if depthwise else 4
        equal(litert, litert.operator(code, *ends, f"{name}Options", version, **fields), expected, x)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("depth", [3, 40, 2000, 40_000])
def test_fully_connected(litert: Any, per_channel: bool, depth: int) -> None:
    for i, (a, _) in enumerate(scales(6, 8)):
        layer, x = Layer(i, (30, depth), 0, per_channel), image(i, (20, depth))
        if i % 2:
            layer.weight, x = np.abs(layer.weight), np.maximum(x, np.int16(20_000))
        total = np.abs(x.astype("float64") @ layer.weight.T.astype("float64") + layer.bias).max()
        c = np.float32(total * a * 0.02 / 30_000)
        expected = oracle16.qdense16(RANGE, x, layer.weight, layer.bias, layer.reals(a, c), "int16")
        ends = layer.inputs(litert, x.shape, a), [tensor(litert, expected.shape, c)]
        file = litert.operator("FULLY_CONNECTED", *ends, "FullyConnectedOptions", 12 if per_channel else 7)
        equal(litert, file, expected, x)


@pytest.mark.parametrize("real", [0.0021, 0.0013, 2.0**-9, 3 * 2.0**-11])
def test_fully_connected_near_ties(litert: Any, real: float) -> None:
    """Biases alone, so chosen that a multiplier of 31 bits would round otherwise."""
    a, s = np.float32(2.0**-14), np.float32(0.01)
    c = np.float32(float(a) * float(s) / real)
    exact = float(a) * float(s) / float(c)
    bias = np.random.default_rng(0).integers(int(-32000 / exact), int(32000 / exact), 2_000_000)
    bias = bias[np.abs(np.abs(bias * exact) % 1 - 0.5) < 2e-5][:3000]
    x, weight = np.zeros((1, 1), "int16"), np.ones((len(bias), 1), "int8")
    reals = np.full(len(bias), exact)
    expected = oracle16.qdense16(RANGE, x, weight, bias, reals, "int16")
    inputs = [
        tensor(litert, x.shape, a),
        litert.constant(weight, "int8", s),
        litert.constant(bias, "int64", a * s),
    ]
    outputs = [tensor(litert, expected.shape, c)]
    equal(
        litert, litert.operator("FULLY_CONNECTED", inputs, outputs, "FullyConnectedOptions", 7), expected, x
    )


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("activation", [0, 1, 3])
def test_pools(litert: Any, same: bool, activation: int) -> None:
    rng = np.random.default_rng(7)
    for i, (scale, _) in enumerate(scales(8, 8)):
        x, grid = image(i, (1, 12, 11, 5)), QuantParams.of(scale, 0, "int16")
        (kh, kw), (sh, sw) = rng.integers(2, 6, 2), rng.integers(1, 4, 2)
        pads = [same_padding(n, k, s) for n, k, s in ((12, kh, sh), (11, kw, sw))] if same else [(0, 0)] * 2
        lo, hi = clamp_bounds(grid, None if activation == 0 else 0.0, 6.0 if activation == 3 else None, True)
        p = {"pool": (kh, kw), "strides": (sh, sw), "padding": [pads[a][b] for b in (0, 1) for a in (0, 1)]}
        p |= {"in_zp": 0, "out_zp": 0, "lo": lo, "hi": hi}
        fields = {"padding": litert.SAME if same else litert.VALID, "fusedActivationFunction": activation}
        fields |= {"filterHeight": kh, "filterWidth": kw, "strideH": sh, "strideW": sw}
        average = oracle.qavgpool2d({**p, "count_include_pad": False}, x, "int16")
        maximum = oracle.qmaxpool2d(p, x, "int16")
        for code, expected in (("AVERAGE_POOL_2D", average), ("MAX_POOL_2D", maximum)):
            ends = [tensor(litert, x.shape, scale)], [tensor(litert, expected.shape, scale)]
            file = litert.operator(code, *ends, "Pool2DOptions", 3, **{k: int(v) for k, v in fields.items()})
            equal(litert, file, expected, x)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axes", [(1, 2), (3,), (2,), (1, 2, 3)])
def test_mean(litert: Any, axes: tuple[int, ...], keep: bool) -> None:
    for i, (a, c) in enumerate(scales(9, 40)):
        x = image(i, (1, 2 + i % 7, 3 + i % 5, 40 if 3 not in axes else 6))
        multiplier = oracle16.mean_of(a, c, int(np.prod([x.shape[axis] for axis in axes])))
        p = {**RANGE, "axes": axes, "keepdims": keep, "multiplier": multiplier}
        expected = oracle16.qmean16(p, x, "int16")
        inputs = [tensor(litert, x.shape, a), litert.constant(axes, "int32")]
        file = litert.operator(
            "MEAN", inputs, [tensor(litert, expected.shape, c)], "ReducerOptions", 3, keepDims=keep
        )
        equal(litert, file, expected, x)


def test_mean_of_as_many_as_fit(litert: Any) -> None:
    x = np.full((1, 256, 256, 2), 32767, "int16")
    x[..., 1] = -32768
    p = {**RANGE, "axes": (1, 2), "keepdims": True, "multiplier": oracle16.mean_of(0.5, 0.5, 65536)}
    assert oracle16.MEAN_COUNT == 65536
    inputs = [tensor(litert, x.shape, 0.5), litert.constant((1, 2), "int32")]
    file = litert.operator(
        "MEAN", inputs, [tensor(litert, (1, 1, 1, 2), 0.5)], "ReducerOptions", 3, keepDims=True
    )
    equal(litert, file, oracle16.qmean16(p, x, "int16"), x)


def test_quantize_floats(litert: Any) -> None:
    rng = np.random.default_rng(10)
    for scale, _ in scales(11, 30):
        x = (rng.standard_normal(9000) * 9000 * scale).astype("float32")
        x[:4096] = (np.arange(4096) - 2047.5).astype("float32") * scale
        p = {**RANGE, "scale": float(scale)}
        file = litert.operator(
            "QUANTIZE",
            [litert.Tensor(x.shape, "float32")],
            [tensor(litert, x.shape, scale)],
            "QuantizeOptions",
            1,
        )
        np.testing.assert_array_equal(litert.run(file, x).outputs[0], oracle.quantize(p, x, "int16"))


def test_dequantize(litert: Any) -> None:
    for scale, _ in scales(12, 10):
        ends = [tensor(litert, CODES.shape, scale)], [litert.Tensor(CODES.shape, "float32")]
        file = litert.operator("DEQUANTIZE", *ends, "DequantizeOptions", 3)
        equal(litert, file, oracle.dequantize({"in_zp": 0, "scale": float(scale)}, CODES), CODES)


@pytest.mark.parametrize("pair", ["int16 int16", "int16 int8", "int8 int16", "uint8 int16"])
def test_requantize(litert: Any, pair: str) -> None:
    (source, target), zeros = pair.split(), {"int16": 0, "int8": -7, "uint8": 121}
    lo, hi = INTEGER_RANGE[target]
    for a, c in scales(13, 60, spread=6.9):
        a, c = (np.float32(s * (1 if d == "int16" else 256)) for s, d in ((a, source), (c, target)))
        q = CODES if source == "int16" else np.arange(256).astype(source)
        p = {"in_zp": zeros[source], "out_zp": zeros[target], "lo": lo, "hi": hi}
        p["multiplier"] = quantize_multiplier(float(a) / float(c))
        ends = [tensor(litert, q.shape, s, d, zeros[d]) for s, d in ((a, source), (c, target))]
        file = litert.operator("QUANTIZE", ends[:1], ends[1:], "QuantizeOptions", 2)
        equal(litert, file, oracle16.requantize16(p, q, target), q)
        if pair == "int16 int16":
            grids = [QuantParams.of(scale, 0, "int16") for scale in (a, c)]
            np.testing.assert_array_equal(lite16.requantized(*grids), oracle16.requantize16(p, q, target))


@pytest.mark.parametrize("classes", [1, 2, 10, 1001])
def test_softmax(litert: Any, classes: int) -> None:
    for i, (scale, _) in enumerate(scales(14, 24)):
        x = image(i, (40, classes)) // np.int16(1 + i % 3 * 40)
        p = {**RANGE, "axis": 1, "multiplier": oracle16.softmax_multiplier(scale)}
        expected = oracle16.qsoftmax16(p, x, *softmax_tables(), "int16")
        ends = [tensor(litert, x.shape, scale)], [tensor(litert, x.shape, UNIT)]
        equal(litert, litert.operator("SOFTMAX", *ends, "SoftmaxOptions", 3, beta=1.0), expected, x)


@pytest.mark.parametrize("scale", [2.0**-12, 2.0**-11, 2.0**-13, 2.0**-20, 1e-9, 3e-4, 1e-3, 0.4])
@pytest.mark.parametrize("code", ["LOGISTIC", "TANH"])
def test_functions(litert: Any, code: str, scale: float) -> None:
    grids = QuantParams.of(scale, 0, "int16"), QuantParams.of(UNIT, 0, "int16")
    expected = {"LOGISTIC": lite16.logistic, "TANH": lite16.tanh}[code](*grids)
    ends = [tensor(litert, CODES.shape, scale)], [tensor(litert, CODES.shape, UNIT)]
    equal(litert, litert.operator(code, *ends, "", 3), expected, CODES)


TABLES: dict[str, tuple[Callable[[QuantParams, QuantParams], Array], str, dict[str, Any]]] = {
    "RELU": (lambda a, c: lite16.clipped(0.0, None, a, c), "", {}),
    "RELU6": (lambda a, c: lite16.clipped(0.0, 6.0, a, c), "", {}),
    "EXP": (lambda a, c: lite16.smooth(UNARY["exp"], a, c), "ExpOptions", {}),
    "LEAKY_RELU": (lambda a, c: lite16.leaky_relu(0.1, a, c), "LeakyReluOptions", {"alpha": 0.1}),
    "LEAKY_RELU falling": (lambda a, c: lite16.leaky_relu(-0.3, a, c), "LeakyReluOptions", {"alpha": -0.3}),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(litert: Any, name: str) -> None:
    table, options, fields = TABLES[name]
    for a, c in scales(15, 40, spread=4):
        expected = table(QuantParams.of(a, 0, "int16"), QuantParams.of(c, 0, "int16"))
        ends = [tensor(litert, CODES.shape, a)], [tensor(litert, CODES.shape, c)]
        equal(litert, litert.operator(name.split()[0], *ends, options, 2, **fields), expected, CODES)


RESIZES = {"asymmetric": (False, False), "align_corners": (True, False), "half_pixel": (False, True)}


@pytest.mark.parametrize("coordinate", RESIZES)
@pytest.mark.parametrize("code", ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"])
def test_resize(litert: Any, code: str, coordinate: str) -> None:
    corners, half = RESIZES[coordinate]
    linear = code == "RESIZE_BILINEAR"
    for i, size in enumerate([(14, 18), (13, 17), (10, 5), (1, 1), (3, 4), (23, 31)]):
        x = image(i, (1, 7, 9, 12))
        p = {"size": size, "method": "nearest", "coordinate": coordinate}
        p["rounding"] = "floor" if coordinate == "asymmetric" else "round_prefer_ceil"
        expected = oracle.ORACLE["qresize2d16" if linear else "qresize2d"](p, x, "int16")
        inputs = [tensor(litert, x.shape, 0.1), litert.constant(size, "int32")]
        options = "ResizeBilinearOptions" if linear else "ResizeNearestNeighborOptions"
        fields = {"alignCorners": corners, "halfPixelCenters": half}
        outputs = [tensor(litert, expected.shape, 0.1)]
        equal(litert, litert.operator(code, inputs, outputs, options, 4, **fields), expected, x)


@pytest.mark.parametrize(
    ("code", "dtype"),
    [("HARD_SWISH", "int16"), ("ELU", "int16"), ("DEPTHWISE_CONV_2D", "int32"), ("QUANTIZE", "uint8")],
)
def test_refused(litert: Any, code: str, dtype: str) -> None:
    """What LiteRT refuses today: the day it does not, there is more to export."""
    x = tensor(litert, (1, 4, 4, 3), 0.1)
    inputs, options = [x], ""
    out = tensor(litert, x.shape, 0.1, dtype) if dtype == "uint8" else x
    if dtype == "int32":
        weight = litert.constant(np.ones((1, 1, 1, 3)), "int8", [0.1] * 3, 3)
        inputs, options = [x, weight, litert.constant([0] * 3, dtype, [0.01] * 3)], "DepthwiseConv2DOptions"
    fields = {"strideH": 1, "strideW": 1, "depthMultiplier": 1} if options else {}
    with pytest.raises((RuntimeError, ValueError), match=r"INT16|int8|INT32|failed to prepare"):
        litert.run(
            litert.operator(code, inputs, [out], options, 1 if not options else 5, **fields),
            image(0, x.shape),
        )
