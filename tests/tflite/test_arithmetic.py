"""The oracle against LiteRT's default kernels, operator by operator, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tvm_qplugin.core import oracle
from tvm_qplugin.core.fixed_point import quantize_multiplier
from tvm_qplugin.core.lite import prelu_multipliers
from tvm_qplugin.core.qparams import (
    Array,
    QuantParams,
    add_params,
    clamp_bounds,
    mean_factor,
    multiplier,
    rescale_multiplier,
)

CODES = np.arange(-128, 128, dtype="int8")
PAIRS = (np.repeat(CODES, 256).reshape(1, 256, 256, 1), np.tile(CODES, 256).reshape(1, 256, 256, 1))
RANGE = {"lo": -128, "hi": 127}
POWERS = (0.25, 0.5, 1.0, 2.0)


def grids(seed: int, count: int, spread: float = 2.0) -> Iterator[tuple[QuantParams, QuantParams]]:
    """Pairs of grids: extreme and odd zero points, ratios of scales that make ties every third time."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        zero = np.where(rng.random(2) < 0.3, rng.choice([-128, 127], 2), rng.integers(-128, 128, 2))
        scale = np.float32(2.0 ** rng.uniform(-9, -2))
        ratio = rng.choice(POWERS) if i % 3 == 0 else 2.0 ** rng.uniform(-spread, spread)
        yield QuantParams.of(scale, zero[0]), QuantParams.of(scale * np.float32(ratio), zero[1])


def image(seed: int, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(seed).integers(-128, 128, shape).astype("int8")


def tensor(lite: Any, shape: tuple[int, ...], grid: QuantParams) -> Any:
    return lite.Tensor(tuple(shape), grid.dtype, grid.scale, int(grid.zero_point))


def same_padding(extent: int, kernel: int, stride: int) -> tuple[int, int]:
    missing = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
    return missing // 2, missing - missing // 2


def equal(lite: Any, file: bytes, expected: Array, *arrays: Array, delegated: bool) -> None:
    ran = lite.run(file, *arrays)
    np.testing.assert_array_equal(ran.outputs[0], expected)
    assert ran.delegated == delegated


@dataclass(frozen=True)
class Layer:
    """Weights of a convolution or dense layer; ``axis`` is that of the output channels."""

    weight: Array
    scale: Array
    bias: Array
    axis: int

    def params(self, a: QuantParams, c: QuantParams) -> dict[str, Any]:
        return {**RANGE, "in_zp": int(a.zero_point), "out_zp": int(c.zero_point)}

    def factor(self, a: QuantParams, c: QuantParams) -> Array:
        return np.broadcast_to(multiplier(a.scale, self.scale, c.scale), self.bias.shape)

    def inputs(self, lite: Any, shape: tuple[int, ...], a: QuantParams) -> list[Any]:
        weight = lite.Tensor(self.weight.shape, "int8", self.scale, 0, self.weight, self.axis)
        bias = lite.Tensor(self.bias.shape, "int32", a.scale * self.scale, 0, self.bias)
        return [tensor(lite, shape, a), weight, bias]


@pytest.mark.parametrize("code", ["ADD", "MAX_POOL_2D", "AVERAGE_POOL_2D", "RELU6"])
def test_bounds_of_activations(litert: Any, code: str) -> None:
    x = np.full((1, 1, 1, 1), 127, "int8")
    fields, options = {"fusedActivationFunction": litert.RELU6}, {"ADD": "AddOptions", "RELU6": ""}.get(code)
    if options is None:
        options = "Pool2DOptions"
        fields |= {"filterHeight": 1, "filterWidth": 1, "strideH": 1, "strideW": 1}
    builtin = code in ("AVERAGE_POOL_2D", "RELU6")
    for tie in range(250):
        grid = (
            QuantParams.of(6 / (tie / 2 + 0.25 * (tie % 3)), -128 + tie % 30) if tie else QuantParams.of(1.0)
        )
        inputs = [tensor(litert, x.shape, grid)] * (2 if code == "ADD" else 1)
        given = [x] * len(inputs)
        file = litert.operator(code, inputs, inputs[:1], options, **(fields if options else {}))
        _, high = clamp_bounds(grid, 0.0, 6.0, builtin)
        assert litert.run(file, *given).outputs[0].item() == high


@pytest.mark.parametrize("code", ["ADD", "SUB"])
def test_add(litert: Any, code: str) -> None:
    rng = np.random.default_rng(1)
    for a, b in grids(2, 9):
        c = QuantParams.of(rng.uniform(0.1, 2) * (a.scale + b.scale), rng.integers(-128, 128))
        a_mul, b_mul, shift = add_params(float(a.scale), float(b.scale), float(c.scale))
        zero = dict(zip(("a_zp", "b_zp", "out_zp"), (int(g.zero_point) for g in (a, b, c)), strict=True))
        p = {**RANGE, **zero, "a_mul": a_mul, "b_mul": b_mul if code == "ADD" else -b_mul, "shift": shift}
        shapes = [tensor(litert, PAIRS[0].shape, g) for g in (a, b, c)]
        file = litert.operator(code, shapes[:2], shapes[2:], f"{code.title()}Options")
        equal(litert, file, oracle.qadd(p, *PAIRS, "int8"), *PAIRS, delegated=True)


def test_mul(litert: Any) -> None:
    rng = np.random.default_rng(3)
    for a, b in grids(4, 9):
        c = QuantParams.of(2.0 ** rng.uniform(-2, 8) * a.scale * b.scale, rng.integers(-128, 128))
        zero = dict(zip(("a_zp", "b_zp", "out_zp"), (int(g.zero_point) for g in (a, b, c)), strict=True))
        p = {**RANGE, **zero, "multiplier": multiplier(a.scale, b.scale, c.scale)}
        shapes = [tensor(litert, PAIRS[0].shape, g) for g in (a, b, c)]
        file = litert.operator("MUL", shapes[:2], shapes[2:], "MulOptions")
        equal(litert, file, oracle.qmul(p, *PAIRS, "int8"), *PAIRS, delegated=True)


@pytest.mark.parametrize("turned", [False, True])
def test_matmul(litert: Any, turned: bool) -> None:
    """Also where the rounding of the product and that of the shift decide."""
    rng = np.random.default_rng(11)
    for i, (a, b) in enumerate(grids(12, 20)):
        c = QuantParams.of(2.0 ** rng.uniform(0, 12) * a.scale * b.scale, rng.integers(-128, 128))
        zero = dict(zip(("a_zp", "b_zp", "out_zp"), (int(g.zero_point) for g in (a, b, c)), strict=True))
        real = float(np.float32(a.scale) * np.float32(b.scale)) / float(c.scale)
        x, y = image(i, (2, 3, 65, 33)), image(99 + i, (2, 3, 33, 67))
        given = np.ascontiguousarray(y.swapaxes(2, 3)) if turned else y
        ends = (
            [tensor(litert, x.shape, a), tensor(litert, given.shape, b)],
            [tensor(litert, (2, 3, 65, 67), c)],
        )
        file = litert.operator("BATCH_MATMUL", *ends, "BatchMatMulOptions", adjX=False, adjY=turned)
        expected = oracle.qmatmul({**RANGE, **zero, "multiplier": quantize_multiplier(real)}, x, y, "int8")
        equal(litert, file, expected, x, given, delegated=False)


@pytest.mark.parametrize("shape", [(256,), (1, 1, 256)])
def test_prelu(litert: Any, shape: tuple[int, ...]) -> None:
    """Every input by every slope."""
    rng, x = np.random.default_rng(8), PAIRS[0].reshape(1, 256, 1, 256)
    for i, (a, b) in enumerate(grids(9, 30, spread=6.0)):
        slope = QuantParams.of(2.0 ** rng.uniform(-10, -4) if i % 3 else 2.0**-7, rng.integers(-128, 128))
        multipliers = prelu_multipliers(a, slope, b)
        assert multipliers is not None
        zero = dict(
            zip(("in_zp", "alpha_zp", "out_zp"), (int(g.zero_point) for g in (a, slope, b)), strict=True)
        )
        p = {**RANGE, **zero, "positive": multipliers[0], "negative": multipliers[1]}
        alpha = litert.constant(CODES.reshape(shape), "int8", slope.scale, 0, int(slope.zero_point))
        file = litert.operator("PRELU", [tensor(litert, x.shape, a), alpha], [tensor(litert, x.shape, b)])
        equal(litert, file, oracle.qprelu(p, x, CODES, "int8"), x, delegated=False)


def weighted(rng: np.random.Generator, shape: tuple[int, ...], axis: int, per_channel: bool) -> Layer:
    channels = shape[axis]
    scale = rng.uniform(0.002, 0.02, channels if per_channel else 1).astype("float32")
    bias = rng.integers(-9000, 9000, channels).astype("int32")
    return Layer(rng.integers(-127, 128, shape).astype("int8"), scale, bias, axis)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
def test_convolutions(litert: Any, depthwise: bool, per_channel: bool) -> None:
    rng, name = np.random.default_rng(5), "DepthwiseConv2D" if depthwise else "Conv2D"
    for i, (a, c) in enumerate(grids(6, 12, spread=6)):
        layer = weighted(rng, (1, 3, 3, 12) if depthwise else (7, 3, 3, 6), 3 * depthwise, per_channel)
        x, stride, same = image(i, (1, 9, 8, 6)), 1 + i % 2, i % 3 != 0
        (t, b), (left, r) = (same_padding(n, 3, stride) if same else (0, 0) for n in x.shape[1:3])
        p = {**layer.params(a, c), "strides": (stride, stride), "padding": (t, left, b, r)}
        p["groups"] = 6 if depthwise else 1
        w = np.moveaxis(layer.weight[0], 2, 0)[..., None] if depthwise else layer.weight
        expected = oracle.qconv2d(p, x, w, layer.bias, layer.factor(a, c), "int8")
        fields = {"padding": litert.SAME if same else litert.VALID, "strideH": stride, "strideW": stride}
        fields |= {
            "dilationHFactor": 1,
            "dilationWFactor": 1,
            **({"depthMultiplier": 2} if depthwise else {}),
        }
        ends = layer.inputs(litert, x.shape, a), [tensor(litert, expected.shape, c)]
        code = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        equal(litert, litert.operator(code, *ends, f"{name}Options", **fields), expected, x, delegated=True)


@pytest.mark.parametrize("per_channel", [False, True])
def test_fully_connected(litert: Any, per_channel: bool) -> None:
    rng = np.random.default_rng(5)
    for i, (a, c) in enumerate(grids(6, 12, spread=6)):
        layer, x = weighted(rng, (11, 40), 0, per_channel), image(i, (9, 40))
        expected = oracle.qdense(layer.params(a, c), x, layer.weight, layer.bias, layer.factor(a, c), "int8")
        ends = layer.inputs(litert, x.shape, a), [tensor(litert, expected.shape, c)]
        version = 12 if per_channel else 4
        file = litert.operator("FULLY_CONNECTED", *ends, "FullyConnectedOptions", version)
        equal(litert, file, expected, x, delegated=True)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("activation", [0, 1])
def test_pools(litert: Any, same: bool, activation: int) -> None:
    rng = np.random.default_rng(7)
    for i, (grid, _) in enumerate(grids(8, 10)):
        x = image(i, (1, 12, 11, 5)) if i % 2 else rng.choice(np.int8([-128, -127, 126, 127]), (1, 12, 11, 5))
        (kh, kw), (sh, sw) = rng.integers(2, 6, 2), rng.integers(1, 4, 2)
        pads = [same_padding(n, k, s) for n, k, s in ((12, kh, sh), (11, kw, sw))] if same else [(0, 0)] * 2
        zero = int(grid.zero_point)
        p = {"pool": (kh, kw), "strides": (sh, sw), "padding": [pads[a][b] for b in (0, 1) for a in (0, 1)]}
        p |= {"in_zp": zero, "out_zp": zero, "lo": zero if activation else -128, "hi": 127}
        fields = {"padding": litert.SAME if same else litert.VALID, "fusedActivationFunction": activation}
        fields |= {"filterHeight": kh, "filterWidth": kw, "strideH": sh, "strideW": sw}
        average = oracle.qavgpool2d({**p, "count_include_pad": False}, x, "int8")
        maximum = oracle.qmaxpool2d(p, x, "int8")
        for code, expected in (("AVERAGE_POOL_2D", average), ("MAX_POOL_2D", maximum)):
            ends = [tensor(litert, x.shape, grid)], [tensor(litert, expected.shape, grid)]
            file = litert.operator(code, *ends, "Pool2DOptions", **{k: int(v) for k, v in fields.items()})
            equal(litert, file, expected, x, delegated=code == "MAX_POOL_2D")


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axes", [(1, 2), (3,), (2,), (1, 2, 3)])
def test_mean(litert: Any, axes: tuple[int, ...], keep: bool) -> None:
    for i, (a, c) in enumerate(grids(9, 40)):
        x = image(i, (1, 2 + i % 7, 3 + i % 5, 40 if 3 not in axes else 6))
        factor = mean_factor(a.scale, c.scale, int(np.prod([x.shape[axis] for axis in axes])))
        p = {**RANGE, "axes": axes, "keepdims": keep, "multiplier": factor}
        expected = oracle.qmean({**p, "in_zp": a.zero_point, "out_zp": c.zero_point}, x, "int8")
        inputs = [tensor(litert, x.shape, a), litert.constant(axes, "int32")]
        outputs = [tensor(litert, expected.shape, c)]
        file = litert.operator("MEAN", inputs, outputs, "ReducerOptions", keepDims=keep)
        equal(litert, file, expected, x, delegated=True)


def test_quantize_floats(litert: Any) -> None:
    rng = np.random.default_rng(10)
    for _, grid in grids(11, 30):
        x = (rng.standard_normal(3000) * 60 * grid.scale).astype("float32")
        x[:256] = (np.arange(256) - 127.5).astype("float32") * grid.scale
        p = {**RANGE, "scale": float(grid.scale), "out_zp": int(grid.zero_point)}
        outputs = [tensor(litert, x.shape, grid)]
        file = litert.operator("QUANTIZE", [litert.Tensor(x.shape, "float32")], outputs, "QuantizeOptions")
        equal(litert, file, oracle.quantize(p, x, "int8"), x, delegated=True)


def test_dequantize(litert: Any) -> None:
    for grid, _ in grids(12, 10):
        p = {"scale": float(grid.scale), "in_zp": int(grid.zero_point)}
        ends = [tensor(litert, CODES.shape, grid)], [litert.Tensor(CODES.shape, "float32")]
        file = litert.operator("DEQUANTIZE", *ends, "DequantizeOptions")
        equal(litert, file, oracle.dequantize(p, CODES), CODES, delegated=True)


def test_requantize(litert: Any) -> None:
    for a, c in grids(13, 60, spread=6.9):
        p = {**RANGE, "in_zp": a.zero_point, "out_zp": c.zero_point}
        factor = rescale_multiplier(a.scale, c.scale)
        expected = oracle.requantize_tensor({**p, "multiplier": factor}, CODES, "int8")
        ends = [tensor(litert, CODES.shape, a)], [tensor(litert, CODES.shape, c)]
        file = litert.operator("QUANTIZE", *ends, "QuantizeOptions")
        equal(litert, file, expected, CODES, delegated=True)


@pytest.mark.parametrize("to", ["int8", "uint8"])
def test_shift_of_the_storage_type(litert: Any, to: str) -> None:
    signed = QuantParams.of(0.03, -77)
    unsigned = QuantParams.of(0.03, 51, "uint8")
    a, c = (unsigned, signed) if to == "int8" else (signed, unsigned)
    q = (CODES.astype("int32") + 128).astype("uint8") if to == "int8" else CODES
    lo = {"int8": -128, "uint8": 0}[to]
    p = {"lo": lo, "hi": lo + 255, "in_zp": a.zero_point, "out_zp": c.zero_point, "multiplier": 256}
    file = litert.operator(
        "QUANTIZE", [tensor(litert, q.shape, a)], [tensor(litert, q.shape, c)], "QuantizeOptions"
    )
    equal(litert, file, oracle.requantize_tensor(p, q, to), q, delegated=False)


@pytest.mark.parametrize("classes", [2, 10, 1001])
def test_softmax(litert: Any, classes: int) -> None:
    out = QuantParams.of(1 / 256, -128)
    for i, (grid, _) in enumerate(grids(14, 12)):
        x = image(i, (3, classes)) if i % 2 else np.clip(image(i, (3, classes)) // 8, -128, 127)
        exponent = (np.arange(255, -1, -1, dtype="float32") * -grid.scale).astype("float64")
        p = {**RANGE, "axis": 1, "out_scale": 1 / 256, "out_zp": -128}
        expected = oracle.qsoftmax(p, x, np.exp(exponent).astype("float32"), "int8")
        ends = [tensor(litert, x.shape, grid)], [tensor(litert, x.shape, out)]
        file = litert.operator("SOFTMAX", *ends, "SoftmaxOptions", beta=1.0)
        equal(litert, file, expected, x, delegated=False)


RESIZES = {"asymmetric": (False, False), "align_corners": (True, False), "half_pixel": (False, True)}


@pytest.mark.parametrize("coordinate", RESIZES)
@pytest.mark.parametrize("code", ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"])
def test_resize(litert: Any, code: str, coordinate: str) -> None:
    corners, half = RESIZES[coordinate]
    linear = code == "RESIZE_BILINEAR"
    grid = QuantParams.of(0.1, 3)
    for i, size in enumerate([(14, 18), (13, 17), (10, 5), (1, 1), (3, 4), (23, 31)]):
        x = image(i, (1, 7, 9, 12))
        rounding = "floor" if coordinate == "asymmetric" else "round_prefer_ceil"
        p = {"size": size, "method": "linear" if linear else "nearest", "coordinate": coordinate}
        expected = oracle.qresize2d({**p, "rounding": rounding}, x, "int8")
        inputs = [tensor(litert, x.shape, grid), litert.constant(size, "int32")]
        options = "ResizeBilinearOptions" if linear else "ResizeNearestNeighborOptions"
        fields = {"alignCorners": corners, "halfPixelCenters": half}
        outputs = [tensor(litert, expected.shape, grid)]
        file = litert.operator(code, inputs, outputs, options, 3 if half else 2, **fields)
        equal(litert, file, expected, x, delegated=linear)


def test_pad(litert: Any) -> None:
    x, width = image(0, (1, 5, 6, 3)), [[0, 0], [1, 2], [3, 0], [0, 0]]
    for grid, _ in grids(15, 4):
        expected = oracle.qpad({"pad_width": width, "value": int(grid.zero_point)}, x, "int8")
        inputs = [tensor(litert, x.shape, grid), litert.constant(width, "int32")]
        file = litert.operator("PAD", inputs, [tensor(litert, expected.shape, grid)], "PadOptions")
        equal(litert, file, expected, x, delegated=True)


def test_movement(litert: Any) -> None:
    x, grid = image(0, (1, 6, 8, 4)), QuantParams.of(0.02, 5)
    given = tensor(litert, x.shape, grid)
    numbers = {name: litert.constant(v, "int32") for name, v in {"r": (1, -1), "t": (0, 3, 1, 2)}.items()}
    begin, end, steps = (litert.constant(v, "int32") for v in ((0, 1, 2, 0), (1, 5, 8, 4), (1, 2, 1, 1)))
    cases = [
        ("RESHAPE", [given, numbers["r"]], x.reshape(1, -1), "ReshapeOptions", {"newShape": [1, -1]}, True),
        ("TRANSPOSE", [given, numbers["t"]], x.transpose(0, 3, 1, 2), "TransposeOptions", {}, True),
        ("STRIDED_SLICE", [given, begin, end, steps], x[:, 1:5:2, 2:], "StridedSliceOptions", {}, False),
    ]
    for code, inputs, expected, options, fields, delegated in cases:
        file = litert.operator(code, inputs, [tensor(litert, expected.shape, grid)], options, **fields)
        equal(litert, file, expected, x, delegated=delegated)
    both = np.concatenate([x, x[..., :2]], 3)
    inputs = [given, tensor(litert, (1, 6, 8, 2), grid)]
    file = litert.operator(
        "CONCATENATION", inputs, [tensor(litert, both.shape, grid)], "ConcatenationOptions", axis=3
    )
    equal(litert, file, both, x, np.ascontiguousarray(x[..., :2]), delegated=True)
    halves = [tensor(litert, (1, 3, 8, 4), grid)] * 2
    file = litert.operator("SPLIT", [litert.constant(1, "int32"), given], halves, "SplitOptions", numSplits=2)
    parts = litert.run(file, x).outputs
    np.testing.assert_array_equal(np.concatenate(parts, 1), x)
