"""Files of one operator, in float and in int8, and what running them must give: ``files`` in the tests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tvm import IRModule

from tvm_qplugin.builder import build
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.frontend import check_canonical
from tvm_qplugin.passes import ir
from tvm_qplugin.simulator import simulate

SHAPE = (1, 6, 8, 4)
GRID, OTHER = QuantParams.of(0.02, 5), QuantParams.of(0.013, -20)
CONV = {"padding": 0, "strideH": 2, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
POOL = {"padding": 0, "strideH": 2, "strideW": 1, "filterHeight": 3, "filterWidth": 2}


def number(values: Any) -> tuple[str, Array]:
    return "const", np.asarray(values, "int32")


def weight(*shape: int) -> tuple[str, Array]:
    return "weight", np.random.default_rng(len(shape)).uniform(-1, 1, shape).astype("float32")


X = "x"
RESIZE = {"alignCorners": False, "halfPixelCenters": True}
SLICE = {"beginMask": 1, "endMask": 9, "ellipsisMask": 0, "newAxisMask": 0, "shrinkAxisMask": 0}
CASES: dict[str, tuple[str, list[Any], tuple[int, ...] | list[tuple[int, ...]], str, dict[str, Any]]] = {
    "conv": ("CONV_2D", [X, weight(5, 3, 3, 4), "bias"], (1, 3, 8, 5), "Conv2DOptions", CONV),
    "conv_relu6": (
        "CONV_2D",
        [X, weight(5, 1, 1, 4), "bias"],
        (1, 6, 8, 5),
        "Conv2DOptions",
        {**CONV, "strideH": 1, "fusedActivationFunction": 3},
    ),
    "conv_dilated": (
        "CONV_2D",
        [X, weight(5, 3, 3, 4), "bias"],
        (1, 2, 4, 5),
        "Conv2DOptions",
        {**CONV, "padding": 1, "strideH": 1, "dilationHFactor": 2, "dilationWFactor": 2},
    ),
    "depthwise": (
        "DEPTHWISE_CONV_2D",
        [X, weight(1, 3, 3, 8), "bias"],
        (1, 3, 8, 8),
        "DepthwiseConv2DOptions",
        {**CONV, "depthMultiplier": 2, "fusedActivationFunction": 1},
    ),
    "dense": ("FULLY_CONNECTED", [X, weight(7, 192), "bias"], (1, 7), "FullyConnectedOptions", {}),
    "dense_without_bias": ("FULLY_CONNECTED", [X, weight(7, 192)], (1, 7), "FullyConnectedOptions", {}),
    "dense_of_rows": (
        "FULLY_CONNECTED",
        [X, weight(7, 4), "bias"],
        (1, 6, 8, 7),
        "FullyConnectedOptions",
        {"keepNumDims": True, "fusedActivationFunction": 1},
    ),
    "batch_matmul": ("BATCH_MATMUL", [X, "y"], (1, 6, 8, 8), "BatchMatMulOptions", {"adjY": True}),
    "batch_matmul_turned": ("BATCH_MATMUL", [X, "y"], (1, 6, 4, 4), "BatchMatMulOptions", {"adjX": True}),
    "add": ("ADD", [X, X], SHAPE, "AddOptions", {"fusedActivationFunction": 1}),
    "add_constant": ("ADD", [X, weight(4)], SHAPE, "AddOptions", {}),
    "constant_sub": ("SUB", [weight(4), X], SHAPE, "SubOptions", {}),
    "sub": ("SUB", [X, "y"], SHAPE, "SubOptions", {}),
    "mul": ("MUL", [X, "y"], SHAPE, "MulOptions", {"fusedActivationFunction": 3}),
    "mul_constant": ("MUL", [X, weight(1)], SHAPE, "MulOptions", {}),
    "average": ("AVERAGE_POOL_2D", [X], (1, 3, 8, 4), "Pool2DOptions", POOL),
    "average_relu": (
        "AVERAGE_POOL_2D",
        [X],
        (1, 2, 7, 4),
        "Pool2DOptions",
        {**POOL, "padding": 1, "fusedActivationFunction": 1},
    ),
    "maximum_pool": ("MAX_POOL_2D", [X], (1, 3, 8, 4), "Pool2DOptions", POOL),
    "mean": ("MEAN", [X, number([1, 2])], (1, 4), "ReducerOptions", {"keepDims": False}),
    "mean_kept": ("MEAN", [X, number([-1])], (1, 6, 8, 1), "ReducerOptions", {"keepDims": True}),
    "softmax": ("SOFTMAX", [X], SHAPE, "SoftmaxOptions", {"beta": 1.0}),
    "logistic": ("LOGISTIC", [X], SHAPE, "", {}),
    "tanh": ("TANH", [X], SHAPE, "", {}),
    "exp": ("EXP", [X], SHAPE, "ExpOptions", {}),
    "gelu": ("GELU", [X], SHAPE, "GeluOptions", {"approximate": True}),
    "hard_swish": ("HARD_SWISH", [X], SHAPE, "", {}),
    "leaky_relu": ("LEAKY_RELU", [X], SHAPE, "LeakyReluOptions", {"alpha": 0.2}),
    "relu": ("RELU", [X], SHAPE, "", {}),
    "relu6": ("RELU6", [X], SHAPE, "", {}),
    "relu_n1_to_1": ("RELU_N1_TO_1", [X], SHAPE, "", {}),
    "prelu": ("PRELU", [X, weight(1, 1, 4)], SHAPE, "", {}),
    "prelu_one_slope": ("PRELU", [X, weight(1)], SHAPE, "", {}),
    "reshape": ("RESHAPE", [X, number([1, -1])], (1, 192), "ReshapeOptions", {"newShape": [1, -1]}),
    "expand_dims": ("EXPAND_DIMS", [X, number(1)], (1, 1, 6, 8, 4), "ExpandDimsOptions", {}),
    "squeeze": ("SQUEEZE", [X], (6, 8, 4), "SqueezeOptions", {"squeezeDims": [0]}),
    "transpose": ("TRANSPOSE", [X, number([0, 3, 1, 2])], (1, 4, 6, 8), "TransposeOptions", {}),
    "concatenation": ("CONCATENATION", [X, X], (1, 6, 8, 8), "ConcatenationOptions", {"axis": -1}),
    "pad": (
        "PAD",
        [X, number([[0, 0], [1, 2], [3, 0], [0, 0]])],
        (1, 9, 11, 4),
        "PadOptions",
        {},
    ),
    "padv2": (
        "PADV2",
        [X, number([[0, 0], [1, 2], [3, 0], [0, 0]]), weight(1)],
        (1, 9, 11, 4),
        "PadV2Options",
        {},
    ),
    "slice": ("SLICE", [X, number([0, 1, 2, 0]), number([1, 3, -1, 4])], (1, 3, 6, 4), "SliceOptions", {}),
    "strided_slice": (
        "STRIDED_SLICE",
        [X, number([0, 1, 7, 0]), number([1, 6, 0, 3]), number([1, 2, -3, 1])],
        (1, 3, 3, 4),
        "StridedSliceOptions",
        SLICE,
    ),
    "strided_slice_of_one": (
        "STRIDED_SLICE",
        [X, number([0, -2, 0, 0]), number([1, 0, 8, 4]), number([1, 1, 1, 1])],
        (1, 8, 4),
        "StridedSliceOptions",
        {**SLICE, "shrinkAxisMask": 2},
    ),
    "split": ("SPLIT", [number(1), X], [(1, 3, 8, 4)] * 2, "SplitOptions", {"numSplits": 2}),
    "split_v": (
        "SPLIT_V",
        [X, number([1, 5]), number(1)],
        [(1, 1, 8, 4), (1, 5, 8, 4)],
        "SplitVOptions",
        {"numSplits": 2},
    ),
    "pack": ("PACK", [X, X], (1, 6, 2, 8, 4), "PackOptions", {"axis": 2, "valuesCount": 2}),
    "unpack": ("UNPACK", [X], [(1, 6, 8)] * 4, "UnpackOptions", {"axis": 3, "num": 4}),
    "gather": ("GATHER", [X, number([3, 0, 3])], (1, 6, 8, 3), "GatherOptions", {"axis": 3, "batchDims": 0}),
    "bilinear": (
        "RESIZE_BILINEAR",
        [X, number([11, 9])],
        (1, 11, 9, 4),
        "ResizeBilinearOptions",
        RESIZE,
    ),
    "bilinear_corners": (
        "RESIZE_BILINEAR",
        [X, number([11, 9])],
        (1, 11, 9, 4),
        "ResizeBilinearOptions",
        {"alignCorners": True, "halfPixelCenters": False},
    ),
    "nearest": (
        "RESIZE_NEAREST_NEIGHBOR",
        [X, number([11, 9])],
        (1, 11, 9, 4),
        "ResizeNearestNeighborOptions",
        {"alignCorners": False, "halfPixelCenters": False},
    ),
    "nearest_half_pixel": (
        "RESIZE_NEAREST_NEIGHBOR",
        [X, number([11, 9])],
        (1, 11, 9, 4),
        "ResizeNearestNeighborOptions",
        RESIZE,
    ),
    "div": ("DIV", [X, "y"], SHAPE, "DivOptions", {"fusedActivationFunction": 1}),
    "pow": ("POW", [X, weight(1)], SHAPE, "PowOptions", {}),
    **{name.lower(): (name, [X], SHAPE, "", {}) for name in ("LOG", "SQRT", "RSQRT", "SIN")},
    "square": ("SQUARE", [X], SHAPE, "SquareOptions", {}),
    "abs": ("ABS", [X], SHAPE, "AbsOptions", {}),
    "neg": ("NEG", [X], SHAPE, "NegOptions", {}),
    "cos": ("COS", [X], SHAPE, "CosOptions", {}),
    "sum": ("SUM", [X, number([1, 2])], (1, 4), "ReducerOptions", {"keepDims": False}),
    "reduce_max": ("REDUCE_MAX", [X, number([-1])], (1, 6, 8, 1), "ReducerOptions", {"keepDims": True}),
    "reduce_min": ("REDUCE_MIN", [X, number([2])], (1, 6, 4), "ReducerOptions", {"keepDims": False}),
    "maximum": ("MAXIMUM", [X, "y_same"], SHAPE, "MaximumMinimumOptions", {}),
    "minimum_scalar": ("MINIMUM", [X, weight(1)], SHAPE, "MaximumMinimumOptions", {}),
}
ONE_GRID = frozenset(
    (
        "AVERAGE_POOL_2D MAX_POOL_2D RESHAPE EXPAND_DIMS SQUEEZE TRANSPOSE CONCATENATION PAD PADV2 SLICE "
        "STRIDED_SLICE SPLIT SPLIT_V PACK UNPACK GATHER RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR MAXIMUM "
        "MINIMUM REDUCE_MAX REDUCE_MIN RELU_N1_TO_1"
    ).split()
)
FIXED = {
    "SOFTMAX": QuantParams.of(1 / 256, -128),
    "LOGISTIC": QuantParams.of(1 / 256, -128),
    "TANH": QuantParams.of(1 / 128, 0),
}
FLOAT_ONLY = frozenset("div pow log sqrt rsqrt sin square abs neg cos".split())
"""What is read in float32 only."""
POSITIVE = frozenset({"pow", "log", "sqrt", "rsqrt", "div"})
"""What is not defined everywhere."""
VERSIONS = {
    **dict.fromkeys("DIV POW LOG SQRT RSQRT SIN SQUARE ABS NEG COS".split(), 1),
    "EXPAND_DIMS": 1,
    "RELU_N1_TO_1": 1,
    "RESIZE_BILINEAR": 3,
    "RESIZE_NEAREST_NEIGHBOR": 3,
    "SPLIT_V": 2,
    "PACK": 2,
    "UNPACK": 2,
}
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def file_of(lite: Any, case: str, quantized: bool) -> bytes:
    """One operator in a file, all of it in float or all in int8."""
    code, given, shapes, options, fields = CASES[case]
    out = (
        GRID if code in ONE_GRID else FIXED.get(code, OTHER if code in WEIGHTED else QuantParams.of(0.08, -9))
    )
    activations = {X: (SHAPE, GRID), "y": (SHAPE, OTHER), "y_same": (SHAPE, GRID)}
    tensors: dict[str, Any] = {}
    names = []
    for i, item in enumerate(given):
        if isinstance(item, str) and item in activations:
            shape, grid = activations[item]
            tensors[item] = activation(lite, shape, grid, quantized)
            names.append(item)
            continue
        scale = tensors["weight"].scale if item == "bias" and quantized else None
        kind = "bias" if item == "bias" else item[0]
        name = kind if kind != "const" else f"const{i}"
        tensors[name] = _constant(lite, code, item, scale, tensors, quantized)
        names.append(name)
    results = shapes if isinstance(shapes, list) else [shapes]
    outputs = [f"out{i}" for i in range(len(results))]
    tensors |= {n: activation(lite, s, out, quantized) for n, s in zip(outputs, results, strict=True)}
    node = lite.Node(
        getattr(lite.Builtin, code), tuple(names), tuple(outputs), options, fields, VERSIONS.get(code)
    )
    inputs = [n for n in dict.fromkeys(names) if tensors[n].data is None]
    return lite.write(tensors, [node], inputs, outputs)


def activation(lite: Any, shape: tuple[int, ...], grid: QuantParams, quantized: bool) -> Any:
    """A tensor that is no constant."""
    if not quantized:
        return lite.Tensor(shape, "float32")
    return lite.Tensor(shape, grid.dtype, grid.scale, int(grid.zero_point))


def _constant(lite: Any, code: str, item: Any, scale: Any, tensors: dict[str, Any], quantized: bool) -> Any:
    if item == "bias":
        channels = tensors["weight"].shape[{"DEPTHWISE_CONV_2D": 3}.get(code, 0)]
        values = np.linspace(-0.7, 0.6, channels).astype("float32")
        if not quantized:
            return lite.constant(values, "float32")
        return lite.constant(np.rint(values / (GRID.scale * scale)), "int32", GRID.scale * scale)
    kind, values = item
    if kind == "const":
        return lite.constant(values, "int32")
    if not quantized:
        return lite.constant(values, "float32")
    if code not in WEIGHTED:
        grid = GRID if code in ONE_GRID else OTHER
        return lite.constant(grid.quantize(values), "int8", grid.scale, 0, int(grid.zero_point))
    axis = 3 if code == "DEPTHWISE_CONV_2D" else 0
    others = tuple(i for i in range(values.ndim) if i != axis)
    bound = np.abs(values).max(axis=None if code == "FULLY_CONNECTED" else others) / np.float32(127)
    grid = QuantParams.of(bound, 0, "int8", None if code == "FULLY_CONNECTED" else axis)
    return lite.constant(grid.quantize(values), "int8", bound, axis)


def inputs_of(module: IRModule, seed: int) -> list[Array]:
    rng, arrays = np.random.default_rng(seed), []
    for param in module["main"].params:
        spec = ir.spec_of(param)
        if spec.dtype == "float32":
            arrays.append(rng.uniform(-4, 4, spec.shape).astype("float32"))
        else:
            low, high = np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max
            codes = rng.normal((low + high) / 2, 30 + 30 * (seed % 3), spec.shape)
            arrays.append(np.clip(np.rint(codes), low, high).astype(spec.dtype))
    return arrays


def equal(lite: Any, module: IRModule, file: bytes, seeds: Sequence[int] = range(2)) -> Any:
    """The compiled module and the oracle give LiteRT's integers; returns the artifact."""
    check_canonical(module)
    artifact = build(module)
    for seed in seeds:
        arrays = inputs_of(module, seed)
        expected = lite.run(file, *arrays).outputs
        for got in (artifact.run(*arrays), simulate(module, *arrays)):
            for one, wanted in zip(got, expected, strict=True):
                np.testing.assert_array_equal(one, wanted, strict=True)
    return artifact


@pytest.fixture
def files() -> ModuleType:
    """This module."""
    return sys.modules[__name__]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``operator_case``: in int8; ``float_case``: in float; ``integer_case``: with integer kernels."""
    if "operator_case" in metafunc.fixturenames:
        metafunc.parametrize("operator_case", [case for case in CASES if case not in FLOAT_ONLY])
    if "float_case" in metafunc.fixturenames:
        metafunc.parametrize("float_case", CASES)
    if "integer_case" in metafunc.fixturenames:
        metafunc.parametrize("integer_case", [case for case in CASES if case not in FLOAT_ONLY])
