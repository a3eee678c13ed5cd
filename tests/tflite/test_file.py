"""Reading ``.tflite``: what is in the files, and a clear error for every file that is not right."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_qplugin.core.errors import ModelError, TargetError
from tvm_qplugin.tflite import options
from tvm_qplugin.tflite.file import TfliteModel, load


def _damage() -> Any:
    spec = importlib.util.spec_from_file_location("tflite_damage", Path(__file__).with_name("damage.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


d = _damage()
DAMAGE, FOREIGN, objects, pack = d.DAMAGE, d.FOREIGN, d.objects, d.pack

CONVERTED = (
    "deeplabv3_257_mnv2_dm05_float",
    "mnist_lstm_float",
    "mnist_lstm_int8",
    "mobilenet_v1_0.25_224_float",
    "mobilenet_v2_1.0_224_ptq_u8io_int8",
    "tiny_ad_autoencoder_float",
    "tiny_ad_autoencoder_int8",
    "tiny_kws_dscnn_hybrid_dynrange",
    "tiny_kws_dscnn_int8",
    "tiny_resnet8_cifar10_float",
    "tiny_resnet8_cifar10_int8",
    "tiny_vww_mobilenetv1_025_96_float",
    "tiny_vww_mobilenetv1_025_96_int8",
)


@pytest.fixture(scope="module")
def small(litert: Any) -> bytes:
    """A convolution, a ReLU and a signature: every kind of table."""
    return pack(litert, objects(litert))


def test_contents(small: bytes) -> None:
    model = load(small)
    assert [(t.name, t.shape, t.dtype) for t in model.tensors] == [
        ("x", (1, 4, 4, 3), "int8"),
        ("w", (2, 2, 2, 3), "int8"),
        ("b", (2,), "int32"),
        ("y", (1, 2, 2, 2), "int8"),
        ("z", (1, 2, 2, 2), "int8"),
    ]
    x, w, b, *_ = model.tensors
    assert x.quant is not None and (x.quant.scale, x.quant.zero_point, x.quant.axis) == (0.5, 3, None)
    assert w.quant is not None and w.quant.axis == 0 and w.quant.scale.tolist() == [0.25, 0.125]
    assert x.data is None and w.data is not None and b.data is not None
    np.testing.assert_array_equal(w.data, np.arange(24).reshape(2, 2, 2, 3))
    assert b.data.tolist() == [5, -7] and not b.data.flags.writeable
    conv, relu = model.operators
    assert (conv.name, conv.version, conv.inputs, conv.outputs) == ("CONV_2D", 3, (0, 1, 2), (3,))
    assert conv.options["fused_activation_function"] == "RELU6" and conv.options["padding"] == "SAME"
    assert conv.options["stride_w"] == 2 and conv.options["dilation_w_factor"] == 1
    assert (relu.name, relu.options) == ("RELU", {})
    assert (model.inputs, model.outputs) == ((0,), (4,))
    assert model.min_runtime_version == "1.14.0" and model.description == "made by hand"
    assert model.signature is not None and model.signature.inputs == (("image", 0),)
    assert (model.signature.key, model.signature.outputs) == ("serving_default", (("out", 4),))


def test_defaults_of_options_left_out(litert: Any) -> None:
    x = litert.Tensor((1, 4), "int8", 0.5)
    model = load(litert.operator("SOFTMAX", [x], [x]))
    assert model.operators[0].options == {"beta": 0.0}


def test_an_optional_input_left_out(litert: Any) -> None:
    model = objects(litert)
    model.subgraphs[0].operators[0].inputs = [0, 1, -1]
    assert load(pack(litert, model)).operators[0].inputs == (0, 1, -1)


def test_an_open_batch_has_the_proposed_extent(litert: Any) -> None:
    model = objects(litert)
    model.subgraphs[0].tensors[0].shapeSignature = [-1, 4, 4, 3]
    x = load(pack(litert, model)).tensors[0]
    assert x.shape == (1, 4, 4, 3) and x.dynamic


def test_buffers_behind_the_tables(litert: Any) -> None:
    model = objects(litert)
    bias = model.buffers[model.subgraphs[0].tensors[2].buffer]
    bias.data, bias.offset, bias.size = None, 1 << 20, 8
    length = len(pack(litert, model))
    bias.offset = length
    file = pack(litert, model) + np.int32([6, 8]).tobytes()
    data = load(file).tensors[2].data
    assert data is not None and data.tolist() == [6, 8]
    with pytest.raises(ModelError, match="truncated"):
        load(file[:-1])


def test_int64_biases(litert: Any) -> None:
    model = objects(litert)
    bias = model.subgraphs[0].tensors[2]
    bias.type = litert.schema.TensorType.INT64
    model.buffers[bias.buffer].data = np.int64([5, -7]).view("uint8")
    read = load(pack(litert, model)).tensors[2]
    assert read.dtype == "int64" and read.quant is not None and read.quant.dtype == "int32"


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(litert: Any, name: str) -> None:
    change, expected = DAMAGE[name]
    model = objects(litert)
    change(litert.schema, model)
    with pytest.raises(ModelError, match=expected):
        load(pack(litert, model))


@pytest.mark.parametrize(("data", "expected"), FOREIGN)
def test_foreign_bytes(litert: Any, data: bytes, expected: str) -> None:
    with pytest.raises(ModelError, match=re.escape(expected)):
        load(data)


def test_paths(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(small)
    assert load(tmp_path / "m.tflite").operators[0].name == "CONV_2D"
    for path, expected in [(tmp_path, "directory"), (tmp_path / "absent.tflite", "No such file")]:
        with pytest.raises(ModelError, match=f"{re.escape(str(path))} cannot be read.*{expected}"):
            load(path)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, small: bytes) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert", None)
    options.schema.cache_clear()
    with pytest.raises(TargetError, match=r"pip install 'tvm-qplugin\[tflite\]'"):
        load(small)
    options.schema.cache_clear()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("custom operator", lambda m: m.operators[0].custom and m.operators[0].name == "NMS"),
        ("variable", lambda m: m.tensors[0].variable),
        ("sparse", lambda m: m.tensors[1].sparse and m.tensors[1].nbytes == 24),
        ("open shape", lambda m: m.tensors[0].dynamic and m.tensors[0].shape == (1, -1, 4, 3)),
    ],
)
def test_what_only_a_checker_can_use(litert: Any, name: str, found: Callable[[TfliteModel], bool]) -> None:
    model = objects(litert)
    DAMAGE[name][0](litert.schema, model)
    assert found(load(pack(litert, model), strict=False))


def test_truncation_at_every_offset(small: bytes) -> None:
    for length in range(len(small)):
        with pytest.raises(ModelError):
            load(small[:length])


@pytest.mark.parametrize("strict", [True, False])
def test_random_corruption(small: bytes, strict: bool) -> None:
    """Whatever happens to a file, it is read or refused; offsets and lengths are hit often."""
    rng = np.random.default_rng(int(strict))
    refused = 0
    for _ in range(2000):
        data = bytearray(small)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            value = rng.choice([0, 1, 4, 127, 128, 255, int(rng.integers(256))])
            data[at] = data[at] ^ (1 << int(rng.integers(8))) if rng.random() < 0.3 else int(value)
        try:
            load(bytes(data), strict=strict)
        except ModelError as error:
            refused += 1
            assert len(str(error)) < 1000
    assert refused > 200


def test_overlapping_tables(litert: Any) -> None:
    """Thousands of operators that are one operator with thousands of inputs: far more than the file."""
    model = objects(litert)
    operators = model.subgraphs[0].operators
    operators[0].inputs = [0] * 5000
    operators.extend(operators[1:] * 5000)
    data = bytearray(pack(litert, model))
    table = litert.schema.Model.GetRootAs(data).Subgraphs(0)._tab
    first = table.Vector(table.Offset(10))
    target = first + int(np.frombuffer(data, "<u4", 1, first)[0])
    offsets = (target - first - 4 * np.arange(len(operators))).astype("<u4")
    data[first : first + offsets.nbytes] = offsets.tobytes()
    with pytest.raises(ModelError, match="parts of the file overlap"):
        load(bytes(data))


@pytest.mark.parametrize("name", CONVERTED)
def test_files_of_the_converter(litert: Any, shared_data: Path, name: str) -> None:
    path = shared_data / "models" / "tflite" / f"{name}.tflite"
    interpreter = litert.Interpreter(str(path))
    model = load(path)
    assert [model.tensors[i].name for i in model.inputs] == [
        d["name"] for d in interpreter.get_input_details()
    ]
    for detail in interpreter.get_tensor_details():
        if detail["index"] < len(model.tensors) and detail["name"]:
            tensor = model.tensors[detail["index"]]
            assert (tensor.name, tensor.shape) == (detail["name"], tuple(detail["shape"]))
            assert np.dtype(tensor.dtype) == detail["dtype"]
            if tensor.quant is not None:
                scales = detail["quantization_parameters"]["scales"]
                np.testing.assert_array_equal(tensor.quant.scale.reshape(-1), scales)
    assert len(model.operators) == len(
        [d for d in interpreter._get_ops_details() if d["op_name"] != "DELEGATE"]
    )
