"""Files read, compiled and run: LiteRT's integers, operator by operator and for whole models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import IRModule
from tvm.ir import assert_structural_equal

from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.exporter import export_tflite
from tvm_qplugin.frontend import check_canonical, load
from tvm_qplugin.passes import ir
from tvm_qplugin.simulator import simulate
from tvm_qplugin.tflite.reader import OPERATORS, read_tflite

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
    "maximum": ("MAXIMUM", [X, "y_same"], SHAPE, "MaximumMinimumOptions", {}),
    "minimum_scalar": ("MINIMUM", [X, weight(1)], SHAPE, "MaximumMinimumOptions", {}),
}
ONE_GRID = frozenset(
    (
        "AVERAGE_POOL_2D MAX_POOL_2D RESHAPE EXPAND_DIMS SQUEEZE TRANSPOSE CONCATENATION PAD PADV2 SLICE "
        "STRIDED_SLICE SPLIT SPLIT_V PACK UNPACK GATHER RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR MAXIMUM "
        "MINIMUM RELU_N1_TO_1"
    ).split()
)
FIXED = {
    "SOFTMAX": QuantParams.of(1 / 256, -128),
    "LOGISTIC": QuantParams.of(1 / 256, -128),
    "TANH": QuantParams.of(1 / 128, 0),
}
IN_FLOAT = {"maximum", "padv2"}
"""No integer kernel, but exact: a maximum of dequantized integers is one of them."""
VERSIONS = {
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
            tensors[item] = _activation(lite, shape, grid, quantized)
            names.append(item)
            continue
        scale = tensors["weight"].scale if item == "bias" and quantized else None
        kind = "bias" if item == "bias" else item[0]
        name = kind if kind != "const" else f"const{i}"
        tensors[name] = _constant(lite, code, item, scale, tensors, quantized)
        names.append(name)
    results = shapes if isinstance(shapes, list) else [shapes]
    outputs = [f"out{i}" for i in range(len(results))]
    tensors |= {n: _activation(lite, s, out, quantized) for n, s in zip(outputs, results, strict=True)}
    node = lite.Node(
        getattr(lite.Builtin, code), tuple(names), tuple(outputs), options, fields, VERSIONS.get(code)
    )
    inputs = [n for n in dict.fromkeys(names) if tensors[n].data is None]
    return lite.write(tensors, [node], inputs, outputs)


def _activation(lite: Any, shape: tuple[int, ...], grid: QuantParams, quantized: bool) -> Any:
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


def equal(lite: Any, module: IRModule, file: bytes, seeds: Sequence[int] = range(3)) -> Any:
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


@pytest.mark.parametrize("case", CASES)
def test_an_integer_operator(litert: Any, case: str) -> None:
    file = file_of(litert, case, quantized=True)
    artifact = equal(litert, read_tflite(file), file)
    assert all(op.integer for op in artifact.manifest.operators) != (case in IN_FLOAT)


@pytest.mark.parametrize("case", CASES)
def test_a_float_operator(litert: Any, case: str) -> None:
    file = file_of(litert, case, quantized=False)
    module = read_tflite(file)
    check_canonical(module)
    arrays = inputs_of(module, 1)
    for got, wanted in zip(build(module).run(*arrays), litert.run(file, *arrays).outputs, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))


def test_every_operator_has_a_case() -> None:
    tested = {case[0] for case in CASES.values()} | {"QUANTIZE", "DEQUANTIZE", "RELU_0_TO_1"}
    assert tested == set(OPERATORS)


INTEGER_MODELS = [
    "mobilenet_v2_1.0_224_ptq_u8io_int8",
    "tiny_resnet8_cifar10_int8",
    "tiny_kws_dscnn_int8",
    "tiny_vww_mobilenetv1_025_96_int8",
    "tiny_ad_autoencoder_int8",
]
FLOAT_MODELS = [
    "mobilenet_v1_0.25_224_float",
    "tiny_resnet8_cifar10_float",
    "tiny_vww_mobilenetv1_025_96_float",
    "tiny_ad_autoencoder_float",
]


def model_of(shared_data: Path, name: str) -> bytes:
    return (shared_data / "models" / "tflite" / f"{name}.tflite").read_bytes()


@pytest.mark.parametrize("name", INTEGER_MODELS)
def test_an_integer_model(litert: Any, shared_data: Path, name: str) -> None:
    file = model_of(shared_data, name)
    artifact = build(load(file))
    assert all(op.integer for op in artifact.manifest.operators)
    for seed in range(4):
        arrays = inputs_of(load(file), seed)
        for got, wanted in zip(artifact.run(*arrays), litert.run(file, *arrays).outputs, strict=True):
            np.testing.assert_array_equal(got, wanted, strict=True)


@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_a_float_model(litert: Any, shared_data: Path, name: str) -> None:
    file = model_of(shared_data, name)
    module = load(file)
    arrays = inputs_of(module, 0)
    (got,), (wanted,) = build(module).run(*arrays), litert.run(file, *arrays).outputs
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))


@pytest.mark.parametrize(
    ("name", "text"),
    [("tiny_kws_dscnn_hybrid_dynrange", "dynamic range"), ("mnist_lstm_int8", "is a variable")],
)
def test_models_that_cannot_be_read(litert: Any, shared_data: Path, name: str, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        load(model_of(shared_data, name))


def test_importing_twice_changes_nothing(litert: Any) -> None:
    for quantized in (True, False):
        module = load(file_of(litert, "conv", quantized))
        assert_structural_equal(load(module)["main"], module["main"])


@pytest.mark.parametrize("io", ["float", "int8", "uint8"])
def test_integer_inputs_keep_their_parameters(litert: Any, tmp_path: Path, io: str) -> None:
    path = tmp_path / "conv.tflite"
    path.write_bytes(file_of(litert, "conv", True))
    manifest = build(quantize(path, io=io)).manifest
    assert (manifest.inputs[0].name, manifest.inputs[0].dtype) == ("x", "int8")
    assert manifest.inputs[0].qparams == GRID.to_json() and manifest.outputs[0].qparams == OTHER.to_json()


def test_a_float_file_can_be_quantized(litert: Any) -> None:
    module = load(file_of(litert, "conv_relu6", False))
    samples = [inputs_of(module, seed) for seed in range(4)]
    artifact = build(quantize(module, calibration=samples))
    assert all(op.integer for op in artifact.manifest.operators)
    (got,), (wanted,) = artifact.run(*samples[0]), build(module).run(*samples[0])
    np.testing.assert_allclose(got, wanted, atol=0.1)


def chain(lite: Any, tensors: dict[str, Any], *nodes: tuple[str, list[str], list[str]]) -> bytes:
    made = [lite.Node(getattr(lite.Builtin, code), tuple(ins), tuple(outs)) for code, ins, outs in nodes]
    return lite.write(tensors, made, ["x"], [nodes[-1][2][-1]])


def test_conversions_at_the_ends(litert: Any) -> None:
    codes = QuantParams.of(0.02, 133, "uint8")
    tensors = {
        "x": _activation(litert, SHAPE, codes, True),
        "a": _activation(litert, SHAPE, GRID, True),
        "b": _activation(litert, SHAPE, OTHER, True),
        "c": litert.Tensor(SHAPE, "float32"),
    }
    nodes = [
        ("QUANTIZE", ["x"], ["a"]),
        ("QUANTIZE", ["a"], ["b"]),
        ("DEQUANTIZE", ["b"], ["c"]),
    ]
    for count in (1, 2, 3):
        file = chain(litert, tensors, *nodes[:count])
        equal(litert, read_tflite(file), file)


def test_float16_weights_are_folded(litert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(litert._TYPES, "float16", litert.schema.TensorType.FLOAT16)
    half = np.linspace(-1, 1, 4).astype("float16")
    tensors = {name: litert.Tensor(SHAPE, "float32") for name in ("x", "y")}
    tensors |= {"w": litert.Tensor((4,), "float32"), "half": litert.Tensor((4,), "float16", data=half)}
    file = chain(litert, tensors, ("DEQUANTIZE", ["half"], ["w"]), ("MUL", ["x", "w"], ["y"]))
    (x,) = inputs_of(read_tflite(file), 0)
    np.testing.assert_allclose(build(read_tflite(file)).run(x)[0], x * half.astype("float32"), rtol=1e-6)


def test_equal_names_are_told_apart(litert: Any) -> None:
    file = file_of(litert, "add", True).replace(b"out0\0", b"x\0\0\0\0")
    model = read_tflite(file)
    check_canonical(model)


def test_everything_that_is_not_supported_is_named_at_once(litert: Any) -> None:
    tensors = {name: litert.Tensor(SHAPE, "float32") for name in ("x", "a", "b", "c")}
    tensors["c"] = litert.Tensor(SHAPE, "int16", 0.1)
    nodes = ("ELU", ["x"], ["a"]), ("COS", ["a"], ["b"]), ("QUANTIZE", ["b"], ["c"])
    with pytest.raises(ModelError) as caught:
        read_tflite(chain(litert, tensors, *nodes))
    text = str(caught.value)
    assert "ELU (makes a), COS (makes b)" in text and "c (int16)" in text


FAILURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "wrong_shape": ("relu", {"out0": ((1, 6, 8, 5), GRID)}, "has shape"),
    "grids": ("reshape", {"out0": ((1, 192), OTHER)}, "they must agree"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_contradictions_in_the_file(litert: Any, case: str) -> None:
    operator, changed, text = FAILURES[case]
    shape, grid = changed["out0"]
    code, given, _, options, fields = CASES[operator]
    tensors = {"x": _activation(litert, SHAPE, GRID, True), "out0": _activation(litert, shape, grid, True)}
    names = ["x"]
    if len(given) > 1:
        tensors["shape"] = litert.constant([1, -1], "int32")
        names.append("shape")
    node = litert.Node(getattr(litert.Builtin, code), tuple(names), ("out0",), options, fields)
    with pytest.raises(ModelError, match=text):
        read_tflite(litert.write(tensors, [node], ["x"], ["out0"]))


@pytest.mark.parametrize(
    ("case", "fields", "text"),
    [
        ("softmax", {"beta": 2.0}, "beta is 2"),
        ("concatenation", {"axis": 7}, "axis is 7"),
        ("strided_slice", {**SLICE, "ellipsisMask": 1}, "ellipsis"),
        ("gather", {"axis": 2, "batchDims": 2}, "matrix of indices"),
    ],
)
def test_options_that_cannot_be_read(
    litert: Any, monkeypatch: pytest.MonkeyPatch, case: str, fields: dict[str, Any], text: str
) -> None:
    monkeypatch.setitem(CASES, case, (*CASES[case][:4], fields))
    with pytest.raises(ModelError, match=text):
        read_tflite(file_of(litert, case, True))


@pytest.mark.parametrize(
    ("case", "given"),
    [
        ("conv", [X]),
        ("conv", [X, weight(5, 36), "bias"]),
        ("conv", [X, weight(5, 3, 3, 3), "bias"]),
        ("depthwise", [X, weight(1, 3, 3, 7), "bias"]),
        ("dense", [X, weight(7, 5), "bias"]),
        ("transpose", [X, number([0, 3, 1])]),
        ("pad", [X, number([1, 2])]),
        ("strided_slice", [X, number([0] * 4), number([1] * 4), number([0] * 4)]),
        ("split", [number([]), X]),
        ("mean", [X, "y"]),
        ("slice", [X, number([0, 1]), number([1, 3])]),
    ],
)
def test_damaged_operators(litert: Any, monkeypatch: pytest.MonkeyPatch, case: str, given: list[Any]) -> None:
    code, _, *rest = CASES[case]
    monkeypatch.setitem(CASES, case, (code, given, *rest))
    with pytest.raises(ModelError, match=f"{code} that makes out0"):
        read_tflite(file_of(litert, case, True))


def test_shapes_and_batch_are_fixed(litert: Any) -> None:
    file = file_of(litert, "relu", True)
    assert load(file, batch=1) is not None
    with pytest.raises(ModelError, match="fixed batch 1"):
        load(file, batch=2)
    with pytest.raises(ModelError, match="are fixed"):
        load(file, shapes={"x": (1, 2)})


@pytest.mark.parametrize("case", [case for case in CASES if case not in IN_FLOAT])
def test_what_was_read_can_be_exported_and_read_again(litert: Any, case: str) -> None:
    module = read_tflite(file_of(litert, case, True))
    again = export_tflite(module, keep_layout=True)
    arrays = inputs_of(module, 2)
    wanted = simulate(module, *arrays)
    for got in (litert.run(again, *arrays).outputs, simulate(read_tflite(again), *arrays)):
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("io", ["float", "uint8"])
@pytest.mark.parametrize("name", ["resnet20_cifar10", "tiny_kws_dscnn"])
def test_our_own_exports(litert: Any, shared_data: Path, name: str, io: str) -> None:
    source = load(shared_data / "models" / f"{name}.onnx", input_layout="NHWC")
    samples = [inputs_of(source, seed) for seed in range(3)]
    file = export_tflite(quantize(source, calibration=samples, io=io))
    assert all(op.integer for op in equal(litert, load(file), file, (5,)).manifest.operators)
