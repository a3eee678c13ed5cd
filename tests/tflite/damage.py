"""A small file, and everything that can be wrong with one: each change makes it unusable in its own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np


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

FOREIGN: list[tuple[bytes, str]] = [
    (b"", "has 0 bytes, too few"),
    (b"TFL3", "has 4 bytes, too few"),
    (b"\x08\0\0\0TFL4" + b"\0" * 40, "bytes 4 to 7 are b'TFL4', expected b'TFL3'"),
    (b"PK\x03\x04" + b"\0" * 400, "is not a .tflite file"),
    (b"\x08\0\0\0TFL3", "the file has 8; it is truncated or damaged"),
    (b"\xff\xff\xff\xffTFL3" + b"\0" * 40, "at offset 4294967295"),
    (b"\x08\0\0\0TFL3" + b"\xff" * 40, "model"),
    (b"\x08\0\0\0TFL3" + b"\0" * 40, "table of offsets of 0 bytes"),
]
"""Bytes that are no such file, or only its beginning."""

CHECKABLE = {
    "custom operator",
    "open extent",
    "open shape",
    "open batch without proposal",
    "variable",
    "sparse",
}
"""What cannot be imported, but is looked at by a checker (``strict=False``)."""
