"""Whole files: models, our own exports, conversions, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm.ir import assert_structural_equal

from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.exporter import export_tflite
from tvm_qplugin.frontend import load
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import scheme_of, stored_arguments
from tvm_qplugin.simulator import simulate
from tvm_qplugin.tflite.reader import read_tflite

INTEGER_MODELS = [
    "mobilenet_v2_1.0_224_ptq_u8io_int8",
    "tiny_resnet8_cifar10_int8",
    "tiny_kws_dscnn_int8",
    "tiny_vww_mobilenetv1_025_96_int8",
    "tiny_ad_autoencoder_int8",
]
FLOAT_MODELS = [
    "deeplabv3_257_mnv2_dm05_float",
    "mobilenet_v1_0.25_224_float",
    "tiny_resnet8_cifar10_float",
    "tiny_vww_mobilenetv1_025_96_float",
    "tiny_ad_autoencoder_float",
]


def model_of(shared_data: Path, name: str) -> bytes:
    return (shared_data / "models" / "tflite" / f"{name}.tflite").read_bytes()


@pytest.mark.parametrize("name", INTEGER_MODELS)
def test_an_integer_model(litert: Any, files: Any, shared_data: Path, name: str) -> None:
    file = model_of(shared_data, name)
    artifact = build(load(file))
    assert all(op.integer for op in artifact.manifest.operators)
    for seed in range(3):
        arrays = files.inputs_of(load(file), seed)
        for got, wanted in zip(artifact.run(*arrays), litert.run(file, *arrays).outputs, strict=True):
            np.testing.assert_array_equal(got, wanted, strict=True)


@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_a_float_model(litert: Any, files: Any, shared_data: Path, name: str) -> None:
    file = model_of(shared_data, name)
    module = load(file)
    arrays = files.inputs_of(module, 0)
    (got,), (wanted,) = build(module).run(*arrays), litert.run(file, *arrays).outputs
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))


def test_a_dynamic_range_model(litert: Any, files: Any, shared_data: Path) -> None:
    """Read as a module of that scheme; simulated as LiteRT computes it, but for softmax's rounding."""
    file = model_of(shared_data, "tiny_kws_dscnn_hybrid_dynrange")
    module = load(file)
    assert scheme_of(module) == "dynamic" and len(stored_arguments(module)) == 5
    for seed in range(3):
        arrays = files.inputs_of(module, seed)
        (wanted,) = litert.run(file, *arrays).outputs
        np.testing.assert_allclose(simulate(module, *arrays)[0], wanted, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(litert.run(export_tflite(module), *arrays).outputs[0], wanted)


def test_an_uint8_weight_of_a_float_layer(litert: Any, files: Any) -> None:
    tensors = {name: litert.Tensor((1, 4), "float32") for name in ("x", "y")}
    tensors["w"] = litert.constant(np.ones((4, 4)), "uint8", 0.1, zero_point=3)
    with pytest.raises(ModelError, match="its weight uint8 with zero point 3; expected int8"):
        read_tflite(chain(litert, tensors, ("FULLY_CONNECTED", ["x", "w"], ["y"])))


def test_importing_twice_changes_nothing(litert: Any, files: Any) -> None:
    for quantized in (True, False):
        module = load(files.file_of(litert, "conv", quantized))
        assert_structural_equal(load(module)["main"], module["main"])


@pytest.mark.parametrize("io", ["float", "int8", "uint8"])
def test_integer_inputs_keep_their_parameters(litert: Any, files: Any, tmp_path: Path, io: str) -> None:
    path = tmp_path / "conv.tflite"
    path.write_bytes(files.file_of(litert, "conv", True))
    manifest = build(quantize(path, io=io)).manifest
    assert (manifest.inputs[0].name, manifest.inputs[0].dtype) == ("x", "int8")
    assert (
        manifest.inputs[0].qparams == files.GRID.to_json()
        and manifest.outputs[0].qparams == files.OTHER.to_json()
    )


def test_a_float_file_can_be_quantized(litert: Any, files: Any) -> None:
    module = load(files.file_of(litert, "conv_relu6", False))
    samples = [files.inputs_of(module, seed) for seed in range(4)]
    artifact = build(quantize(module, calibration=samples))
    assert all(op.integer for op in artifact.manifest.operators)
    (got,), (wanted,) = artifact.run(*samples[0]), build(module).run(*samples[0])
    np.testing.assert_allclose(got, wanted, atol=0.1)


def chain(lite: Any, tensors: dict[str, Any], *nodes: tuple[str, list[str], list[str]]) -> bytes:
    made = [lite.Node(getattr(lite.Builtin, code), tuple(ins), tuple(outs)) for code, ins, outs in nodes]
    return lite.write(tensors, made, ["x"], [nodes[-1][2][-1]])


def test_conversions_at_the_ends(litert: Any, files: Any) -> None:
    codes = QuantParams.of(0.02, 133, "uint8")
    tensors = {
        "x": files.activation(litert, files.SHAPE, codes, True),
        "a": files.activation(litert, files.SHAPE, files.GRID, True),
        "b": files.activation(litert, files.SHAPE, files.OTHER, True),
        "c": litert.Tensor(files.SHAPE, "float32"),
    }
    nodes = [
        ("QUANTIZE", ["x"], ["a"]),
        ("QUANTIZE", ["a"], ["b"]),
        ("DEQUANTIZE", ["b"], ["c"]),
    ]
    for count in (1, 2, 3):
        file = chain(litert, tensors, *nodes[:count])
        files.equal(litert, read_tflite(file), file)


def test_float16_constants_stay_float16(litert: Any, files: Any) -> None:
    half = np.linspace(-1, 1, 4).astype("float16")
    tensors = {name: litert.Tensor(files.SHAPE, "float32") for name in ("x", "y")}
    tensors |= {"w": litert.Tensor((4,), "float32"), "half": litert.Tensor((4,), "float16", data=half)}
    file = chain(litert, tensors, ("DEQUANTIZE", ["half"], ["w"]), ("MUL", ["x", "w"], ["y"]))
    module = read_tflite(file)
    (x,) = files.inputs_of(module, 0)
    (stored,) = stored_arguments(module).values()
    assert scheme_of(module) == "fp16" and np.array_equal(stored.array, half)
    np.testing.assert_allclose(build(module).run(x)[0], x * half.astype("float32"), rtol=1e-6)


def test_equal_names_are_told_apart(litert: Any, files: Any) -> None:
    tensors = {name: files.activation(litert, files.SHAPE, files.GRID, True) for name in ("x", "aa", "ab")}
    file = chain(litert, tensors, ("RELU", ["x"], ["aa"]), ("RELU6", ["aa"], ["ab"]))
    files.equal(litert, read_tflite(file.replace(b"ab\0", b"aa\0")), file)


def test_everything_that_is_not_supported_is_named_at_once(litert: Any, files: Any) -> None:
    tensors = {name: litert.Tensor(files.SHAPE, "float32") for name in ("x", "a", "b", "c")}
    tensors["c"] = litert.Tensor(files.SHAPE, "int16", 0.1, 3)
    nodes = ("ELU", ["x"], ["a"]), ("FLOOR", ["a"], ["b"]), ("QUANTIZE", ["b"], ["c"])
    with pytest.raises(ModelError) as caught:
        read_tflite(chain(litert, tensors, *nodes))
    text = str(caught.value)
    assert "ELU (makes a), FLOOR (makes b)" in text and "c (int16)" in text


def test_contradictions_in_the_file(litert: Any, files: Any) -> None:
    for code, shape, grid, text in [
        ("RELU", (1, 192), files.GRID, "has shape"),
        ("RESHAPE", (1, 192), files.OTHER, "they must agree"),
    ]:
        tensors = {
            "x": files.activation(litert, files.SHAPE, files.GRID, True),
            "y": files.activation(litert, shape, grid, True),
        }
        with pytest.raises(ModelError, match=text):
            read_tflite(chain(litert, tensors, (code, ["x"], ["y"])))


@pytest.mark.parametrize(
    ("case", "fields", "text"),
    [
        ("softmax", {"beta": 2.0}, "beta is 2"),
        ("concatenation", {"axis": 7}, "axis is 7"),
        ("strided_slice", {"ellipsisMask": 1}, "ellipsis"),
        ("gather", {"axis": 2, "batchDims": 2}, "matrix of indices"),
    ],
)
def test_options_that_cannot_be_read(
    litert: Any, files: Any, monkeypatch: pytest.MonkeyPatch, case: str, fields: dict[str, Any], text: str
) -> None:
    monkeypatch.setitem(files.CASES, case, (*files.CASES[case][:4], fields))
    with pytest.raises(ModelError, match=text):
        read_tflite(files.file_of(litert, case, True))


def number(values: Any) -> tuple[str, Array]:
    return "const", np.asarray(values, "int32")


def weight(*shape: int) -> tuple[str, Array]:
    return "weight", np.ones(shape, "float32")


@pytest.mark.parametrize(
    ("case", "given"),
    [
        ("conv", ["x"]),
        ("conv", ["x", weight(5, 36), "bias"]),
        ("conv", ["x", weight(5, 3, 3, 3), "bias"]),
        ("depthwise", ["x", weight(1, 3, 3, 7), "bias"]),
        ("dense", ["x", weight(7, 5), "bias"]),
        ("transpose", ["x", number([0, 3, 1])]),
        ("pad", ["x", number([1, 2])]),
        ("strided_slice", ["x", number([0] * 4), number([1] * 4), number([0] * 4)]),
        ("split", [number([]), "x"]),
        ("mean", ["x", "y"]),
        ("slice", ["x", number([0, 1]), number([1, 3])]),
    ],
)
def test_damaged_operators(
    litert: Any, files: Any, monkeypatch: pytest.MonkeyPatch, case: str, given: list[Any]
) -> None:
    code, _, *rest = files.CASES[case]
    monkeypatch.setitem(files.CASES, case, (code, given, *rest))
    with pytest.raises(ModelError, match=f"{code} that makes out0"):
        read_tflite(files.file_of(litert, case, True))


def test_shapes_and_batch_are_fixed(litert: Any, files: Any) -> None:
    file = files.file_of(litert, "relu", True)
    assert load(file, batch=1) is not None
    with pytest.raises(ModelError, match="fixed batch 1"):
        load(file, batch=2)
    with pytest.raises(ModelError, match="are fixed"):
        load(file, shapes={"x": (1, 2)})


@pytest.mark.parametrize(("name", "io"), [("tiny_kws_dscnn", "float"), ("resnet20_cifar10", "uint8")])
def test_our_own_exports(litert: Any, files: Any, shared_data: Path, name: str, io: str) -> None:
    source = load(shared_data / "models" / f"{name}.onnx", input_layout="NHWC")
    samples = [files.inputs_of(source, seed) for seed in range(3)]
    file = export_tflite(quantize(source, calibration=samples, io=io))
    assert all(op.integer for op in files.equal(litert, load(file), file, (5,)).manifest.operators)


def test_the_form_of_a_layer(litert: Any, files: Any) -> None:
    main = read_tflite(files.file_of(litert, "conv_relu6", True))["main"]
    assert [(var.name, ir.op_name(value).removeprefix("relax.")) for var, value in ir.bindings(main)] == [
        ("x_dq", "dequantize"),
        ("out0_weight_dq", "dequantize"),
        ("out0_bias_dq", "dequantize"),
        ("out0_product", "nn.conv2d"),
        ("out0_sum", "add"),
        ("out0", "clip"),
        ("out0_q", "quantize"),
    ]
    assert [param.name for param in main.params] == ["x"]
    assert [entry["name"] for entry in json.loads(str(main.attrs["qplugin.io"]))["outputs"]] == ["out0"]
