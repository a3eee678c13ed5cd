"""Reading ``.tflite``: what is in the files, and a clear error for every file that is not right."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest

from tvm_qplugin.core.errors import ModelError, TargetError
from tvm_qplugin.tflite import options
from tvm_qplugin.tflite.file import TfliteModel, load

SHARED = Path(os.environ.get("QPLUGIN_DATA", "../shared")) / "models/tflite"
ABSENT = pytest.param(None, marks=pytest.mark.skip(f"no files in {SHARED} (set QPLUGIN_DATA)"))
FILES = sorted(SHARED.glob("*.tflite")) or [ABSENT]


@pytest.fixture(scope="module")
def small(litert: Any) -> bytes:
    """A convolution, a ReLU and a signature: every kind of table."""
    return pack(litert, objects(litert))


def objects(litert: Any) -> Any:
    """The same as objects of the schema, to be damaged."""
    weight = np.arange(24, dtype="int8").reshape(2, 2, 2, 3)
    tensors = {
        "x": litert.Tensor((1, 4, 4, 3), "int8", 0.5, 3),
        "w": litert.Tensor(weight.shape, "int8", [0.25, 0.125], 0, weight),
        "b": litert.constant([5, -7], "int32", [0.125, 0.0625]),
        "y": litert.Tensor((1, 2, 2, 2), "int8", 0.25, -128),
        "z": litert.Tensor((1, 2, 2, 2), "int8", 0.25, -128),
    }
    fields = {"padding": litert.SAME, "strideW": 2, "strideH": 2, "fusedActivationFunction": litert.RELU6}
    conv = litert.Node(litert.Builtin.CONV_2D, ("x", "w", "b"), ("y",), "Conv2DOptions", fields)
    nodes = [conv, litert.Node(litert.Builtin.RELU, ("y",), ("z",))]
    s = litert.schema
    model = s.ModelT.InitFromObj(s.Model.GetRootAs(litert.write(tensors, nodes, ["x"], ["z"])))
    model.description = b"made by hand"
    signature = s.SignatureDefT()
    signature.signatureKey = b"serving_default"
    signature.inputs, signature.outputs = [pair(s, b"image", 0)], [pair(s, b"out", 4)]
    model.signatureDefs = [signature]
    metadata = s.MetadataT()
    metadata.name, metadata.buffer = b"min_runtime_version", len(model.buffers)
    buffer = s.BufferT()
    buffer.data = np.frombuffer(b"1.14.0".ljust(16, b"\0"), "uint8")
    model.buffers.append(buffer)
    model.metadata = [metadata]
    return model


def pair(schema: Any, name: bytes, index: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made


def pack(litert: Any, model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 12)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


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


def graph(change: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda s, model: change(model.subgraphs[0])


def tensor(index: int, **fields: Any) -> Callable[[Any, Any], None]:
    def change(s: Any, model: Any) -> None:
        for name, value in fields.items():
            setattr(model.subgraphs[0].tensors[index], name, value)

    return change


def quantization(index: int, **fields: Any) -> Callable[[Any, Any], None]:
    def change(s: Any, model: Any) -> None:
        for name, value in fields.items():
            setattr(model.subgraphs[0].tensors[index].quantization, name, value)

    return change


def operator(index: int, **fields: Any) -> Callable[[Any, Any], None]:
    def change(s: Any, model: Any) -> None:
        for name, value in fields.items():
            setattr(model.subgraphs[0].operators[index], name, value)

    return change


def code(**fields: Any) -> Callable[[Any, Any], None]:
    def change(s: Any, model: Any) -> None:
        for name, value in fields.items():
            setattr(model.operatorCodes[0], name, value)

    return change


def conv_options(**fields: Any) -> Callable[[Any, Any], None]:
    def change(s: Any, model: Any) -> None:
        for name, value in fields.items():
            setattr(model.subgraphs[0].operators[0].builtinOptions, name, value)

    return change


def sparse(s: Any, model: Any) -> None:
    model.subgraphs[0].tensors[1].sparsity = s.SparsityParametersT()


def blockwise(s: Any, model: Any) -> None:
    quantized = model.subgraphs[0].tensors[1].quantization
    quantized.detailsType, quantized.details = 2, s.BlockwiseQuantizationT()


def no_subgraph(s: Any, model: Any) -> None:
    model.subgraphs = []


def two_subgraphs(s: Any, model: Any) -> None:
    model.subgraphs.append(s.SubGraphT())


def metadata_buffer(s: Any, model: Any) -> None:
    model.metadata[0].buffer = 77


def signature_tensor(s: Any, model: Any) -> None:
    model.signatureDefs[0].inputs[0].tensorIndex = 50


def short_weight(s: Any, model: Any) -> None:
    model.buffers[1].data = model.buffers[1].data[:-1]


def far_buffer(s: Any, model: Any) -> None:
    model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, 2**40, 24


def shared_version(s: Any, model: Any) -> None:
    model.version = 2


DAMAGE: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "schema version": (shared_version, "schema version 2, expected 3"),
    "no subgraph": (no_subgraph, "holds 0 subgraphs, expected 1"),
    "two subgraphs": (two_subgraphs, "holds 2 subgraphs, expected 1"),
    "unknown operator": (code(builtinCode=9999), "operator code 0 is 9999, which LiteRT's schema does not"),
    "custom operator": (code(builtinCode=32, deprecatedBuiltinCode=32, customCode=b"NMS"), "operator 'NMS'"),
    "code out of range": (operator(0, opcodeIndex=9), "operator 0 has code 9, but the file has 2 codes"),
    "input out of range": (operator(0, inputs=[0, 1, 99]), "operator 0 .CONV_2D. refers to tensor 99, but"),
    "input below -1": (operator(0, inputs=[0, 1, -2]), "refers to tensor -2"),
    "output missing": (operator(0, outputs=[-1]), "refers to tensor -1"),
    "output out of range": (operator(1, outputs=[5]), "operator 1 .RELU. refers to tensor 5"),
    "used before made": (operator(0, inputs=[3, 1, 2]), "operator 0 .CONV_2D. uses tensor 3 .y. before"),
    "cycle": (operator(0, inputs=[4, 1, 2]), "uses tensor 4 .z. before it is made"),
    "made twice": (operator(1, outputs=[3]), "operator 1 .RELU. makes tensor 3 .y. a second time"),
    "writes a constant": (operator(1, outputs=[1]), "makes tensor 1 .w. a second time"),
    "writes the input": (operator(1, outputs=[0]), "makes tensor 0 .x. a second time"),
    "graph input out of range": (graph(lambda g: setattr(g, "inputs", [9])), "subgraph 0 refers to tensor 9"),
    "graph input -1": (graph(lambda g: setattr(g, "inputs", [-1])), "subgraph 0 refers to tensor -1"),
    "graph output out of range": (graph(lambda g: setattr(g, "outputs", [9])), "refers to tensor 9"),
    "graph output never made": (graph(lambda g: g.operators.pop()), "output tensor 4 .z. is made by no"),
    "no tensors": (graph(lambda g: setattr(g, "tensors", [])), "but the file has 0 tensors"),
    "wrong options": (operator(0, builtinOptionsType=8), "options FullyConnectedOptions, expected Conv2D"),
    "unknown options": (operator(1, builtinOptionsType=250), "options number 250, expected none"),
    "unknown activation": (conv_options(fusedActivationFunction=77), "fused_activation_function 77"),
    "unknown padding": (conv_options(padding=5), "padding 5, expected one of SAME, VALID"),
    "unknown type": (tensor(0, type=100), r"tensor 0 \(x\) has type number 100; expected one of FLOAT32"),
    "string type": (tensor(0, type=5), "has type STRING"),
    "packed type": (tensor(1, type=17), "has type INT4"),
    "buffer out of range": (tensor(1, buffer=40), r"tensor 1 \(w\) refers to buffer 40, but the file has 4"),
    "buffer too short": (short_weight, r"holds 23 bytes, expected 24 for int8 of shape \[2, 2, 2, 3\]"),
    "buffer of other shape": (tensor(1, shape=[2, 2, 2, 4]), "holds 24 bytes, expected 32"),
    "buffer of other type": (tensor(1, type=7), "holds 24 bytes, expected 48 for int16"),
    "buffer outside of the file": (far_buffer, "buffer 1: expected 24 bytes at offset 1099511627776"),
    "external buffer": (tensor(1, externalBuffer=3), r"tensor 1 \(w\) lies in an external buffer"),
    "open extent": (tensor(0, shapeSignature=[1, -1, 4, 3]), "has an unknown extent .-1. that is not the"),
    "open shape": (tensor(0, shape=[1, -1, 4, 3]), "has an unknown extent"),
    "open batch without proposal": (tensor(0, shape=[-1, 4, 4, 3]), "has an unknown extent"),
    "negative extent": (tensor(0, shape=[1, -4, 4, 3]), "expected extents of 0 or more"),
    "signature of other rank": (tensor(0, shapeSignature=[1, 4]), "and signature .1, 4."),
    "signature contradicts": (tensor(0, shapeSignature=[1, 4, 5, 3]), "and signature .1, 4, 5, 3."),
    "huge shape": (tensor(0, shape=[2**30, 2**30, 1, 1]), "more than 2147483647 elements"),
    "too many dimensions": (tensor(0, shape=[1] * 9), "has 9 dimensions; expected at most 8"),
    "variable": (tensor(0, isVariable=True), "is a variable"),
    "variable constant": (tensor(1, isVariable=True), "is a variable"),
    "sparse": (sparse, r"tensor 1 \(w\) is stored sparse"),
    "blockwise": (blockwise, "is custom or blockwise"),
    "scale zero": (quantization(0, scale=[0.0]), "quantization of tensor 0 .x. is not usable: scale must be"),
    "scale not a number": (quantization(0, scale=[float("nan")]), "scale must be positive"),
    "scale negative": (quantization(1, scale=[0.5, -0.5]), "scale must be positive"),
    "zero point too large": (quantization(0, zeroPoint=[400]), "zero point 400 does not fit int8"),
    "zero point huge": (quantization(0, zeroPoint=[2**40]), "zero point 1099511627776, which does not fit"),
    "zero points too many": (quantization(0, zeroPoint=[1, 2]), "has 2 zero points for 1 scales"),
    "channels differ": (quantization(1, scale=[1.0] * 3), r"has 3 scales for 2 channels \(dimension 0\)"),
    "dimension too large": (quantization(1, quantizedDimension=4), "has quantized dimension 4, but"),
    "dimension negative": (quantization(1, quantizedDimension=-1), "has quantized dimension -1"),
    "metadata buffer": (metadata_buffer, "metadata 0 refers to buffer 77"),
    "signature tensor": (signature_tensor, "signature 0, name 0 refers to tensor 50"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(litert: Any, name: str) -> None:
    change, expected = DAMAGE[name]
    model = objects(litert)
    change(litert.schema, model)
    with pytest.raises(ModelError, match=expected):
        load(pack(litert, model))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "has 0 bytes, too few"),
        (b"TFL3", "has 4 bytes, too few"),
        (b"\x08\0\0\0TFL4" + b"\0" * 40, "bytes 4 to 7 are b'TFL4', expected b'TFL3'"),
        (b"PK\x03\x04" + b"\0" * 400, "is not a .tflite file"),
        (b"\x08\0\0\0TFL3", "the file has 8; it is truncated or damaged"),
        (b"\xff\xff\xff\xffTFL3" + b"\0" * 40, "at offset 4294967295"),
        (b"\x08\0\0\0TFL3" + b"\xff" * 40, "model"),
        (b"\x08\0\0\0TFL3" + b"\0" * 40, "table of offsets of 0 bytes"),
    ],
)
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


@pytest.mark.parametrize("path", FILES, ids=lambda p: p and p.stem)
def test_files_of_the_converter(litert: Any, path: Path) -> None:
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
