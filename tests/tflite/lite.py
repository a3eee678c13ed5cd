"""Single-operator ``.tflite`` files through the object API of LiteRT's schema, and a runner for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tvm_qplugin.core.qparams import Array

Builtin = schema.BuiltinOperator
DELEGATE, BUILTIN, REFERENCE = (
    OpResolverType.AUTO,
    OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    OpResolverType.BUILTIN_REF,
)
SAME, VALID = 0, 1
"""Values of the schema's ``Padding``."""
NONE, RELU, RELU_N1_TO_1, RELU6 = 0, 1, 2, 3
"""Values of the schema's ``ActivationFunctionType``."""

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
}
_VERSIONS = {
    Builtin.CONV_2D: 3,
    Builtin.DEPTHWISE_CONV_2D: 3,
    Builtin.FULLY_CONNECTED: 4,
    Builtin.QUANTIZE: 1,
    Builtin.RESHAPE: 1,
    Builtin.HARD_SWISH: 1,
    Builtin.ELU: 1,
    Builtin.NEG: 1,
    Builtin.PRELU: 1,
    Builtin.SQUARE: 1,
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: shape, dtype, parameters, and the values of a constant."""

    shape: tuple[int, ...]
    dtype: str = "int8"
    scale: Any = None
    zero_point: int = 0
    data: Array | None = None
    axis: int = 0
    variable: bool = False


def constant(values: Any, dtype: str, scale: Any = None, axis: int = 0, zero_point: int = 0) -> Tensor:
    """A tensor stored in the file."""
    array = np.asarray(values, dtype)
    return Tensor(array.shape, dtype, scale, zero_point, array, axis)


@dataclass(frozen=True)
class Node:
    """One operator: builtin code, tensor names, the name of its option table and its fields."""

    code: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: str = ""
    fields: Mapping[str, Any] | None = None
    version: int | None = None
    intermediates: tuple[str, ...] = ()


def write(
    tensors: Mapping[str, Tensor], nodes: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str]
) -> bytes:
    """A file with one subgraph; tensors by name."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    index = {name: i for i, name in enumerate(tensors)}
    graph.tensors = [_tensor(name, tensor, model.buffers) for name, tensor in tensors.items()]
    graph.inputs, graph.outputs = [index[n] for n in inputs], [index[n] for n in outputs]
    codes = list(dict.fromkeys((node.code, _version(node)) for node in nodes))
    model.operatorCodes = [_code(*code) for code in codes]
    graph.operators = [_operator(node, codes.index((node.code, _version(node))), index) for node in nodes]
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _version(node: Node) -> int:
    return node.version or _VERSIONS.get(node.code, 2)


def _code(builtin: int, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
    return code


def _operator(node: Node, code: int, index: Mapping[str, int]) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex = code
    operator.inputs = [index[n] if n else -1 for n in node.inputs]
    operator.outputs = [index[n] for n in node.outputs]
    operator.intermediates = [index[n] for n in node.intermediates]
    if node.options:
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, node.options)
        operator.builtinOptions = getattr(schema, node.options + "T")()
        for name, value in (node.fields or {}).items():
            assert hasattr(operator.builtinOptions, name), name
            setattr(operator.builtinOptions, name, value)
    return operator


def _tensor(name: str, tensor: Tensor, buffers: list[Any]) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.type = name, list(tensor.shape), _TYPES[tensor.dtype]
    made.buffer, made.isVariable = 0, tensor.variable
    if tensor.data is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), "uint8")
        made.buffer = len(buffers)
        buffers.append(buffer)
    if tensor.scale is not None:
        made.quantization = schema.QuantizationParametersT()
        scale = np.atleast_1d(np.asarray(tensor.scale, "float32"))
        made.quantization.scale = scale
        made.quantization.zeroPoint = np.full(scale.shape, tensor.zero_point, "int64")
        made.quantization.quantizedDimension = tensor.axis
    return made


@dataclass(frozen=True)
class Ran:
    """Outputs of a run, and whether the XNNPACK delegate took the operator."""

    outputs: list[Array]
    delegated: bool


def run(file: bytes, *arrays: Array, resolver: OpResolverType = DELEGATE) -> Ran:
    """Run a file once in LiteRT with one thread."""
    interpreter = Interpreter(model_content=file, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    delegated = any(d["op_name"] == "DELEGATE" for d in interpreter._get_ops_details())
    return Ran([interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()], delegated)


def operator(
    code: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    options: str = "",
    version: int | None = None,
    **fields: Any,
) -> bytes:
    """A file of one operator; inputs without data are the graph's inputs."""
    names = [f"input{i}" for i in range(len(inputs))], [f"output{i}" for i in range(len(outputs))]
    tensors = dict(zip((*names[0], *names[1]), (*inputs, *outputs), strict=True))
    node = Node(getattr(Builtin, code), tuple(names[0]), tuple(names[1]), options, fields, version)
    given = [name for name in names[0] if tensors[name].data is None]
    return write(tensors, [node], given, names[1])
