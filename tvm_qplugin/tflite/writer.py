"""Writes a ``.tflite`` file (schema 3) with one subgraph through the object API of LiteRT's schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.errors import TargetError
from tvm_qplugin.core.qparams import Array, QuantParams

IDENTIFIER = b"TFL3"
MIN_RUNTIME_VERSION = "1.14.0"
ALIGNMENT = 16
"""Of the data of buffers, as the schema asks."""

VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "ELU": 1,
    "HARD_SWISH": 1,
    "PRELU": 1,
    "QUANTIZE": 1,
    "RELU_N1_TO_1": 1,
    "RESHAPE": 1,
}
"""Versions of the operators in int8 that old runtimes, too, accept; all others have version 2."""
FLOAT_VERSIONS = {"DEQUANTIZE": 3}
"""Versions of the operators in float32 (DEQUANTIZE: of float16); all others have version 1."""

VERSIONS16 = {
    "CONV_2D": 4,
    "DEPTHWISE_CONV_2D": 5,
    "EXP": 2,
    "FULLY_CONNECTED": 7,
    "GATHER": 4,
    "LEAKY_RELU": 2,
    "MAXIMUM": 4,
    "MINIMUM": 4,
    "MUL": 4,
    "QUANTIZE": 2,
    "RESHAPE": 1,
    "RESIZE_BILINEAR": 4,
    "RESIZE_NEAREST_NEIGHBOR": 4,
    "STRIDED_SLICE": 4,
    "SUB": 5,
    "SUM": 2,
    "TRANSPOSE": 4,
}
"""The same for operators with an int16 tensor; all others have version 3."""


@dataclass(frozen=True)
class Value:
    """A tensor of the file: its index, what it holds, and its grid (None for floats and indices)."""

    index: int
    spec: TensorSpec
    grid: QuantParams | None = None


class Writer:
    """Collects tensors and operators in the order of execution; ``finish`` gives the file."""

    def __init__(self, integer: bool = True, description: str = "tvm-qplugin") -> None:
        """Start an empty file, with the versions of operators on integers or on floats.

        Raises TargetError where the extra ``tflite`` is not installed.
        """
        self._schema = schema()
        self._versions, self._version = (VERSIONS, 2) if integer else (FLOAT_VERSIONS, 1)
        self._model, self._graph = self._schema.ModelT(), self._schema.SubGraphT()
        self._model.version, self._model.description = 3, description
        self._model.subgraphs = [self._graph]
        self._model.buffers, self._buffers = [self._schema.BufferT()], dict[bytes, int]()
        self._graph.name, self._graph.tensors, self._graph.operators = "main", [], []
        self._codes: dict[tuple[str, int], int] = {}
        self._constants: dict[tuple[Any, ...], Value] = {}

    def tensor(
        self, name: str, spec: TensorSpec, grid: QuantParams | None = None, variable: bool = False
    ) -> Value:
        """A tensor that an operator computes, an input, or a ``variable``: state that outlives a run."""
        made = self._add(name, spec, grid, 0)
        self._graph.tensors[made.index].isVariable = variable
        return made

    def constant(self, name: str, array: Array, grid: QuantParams | None = None) -> Value:
        """A tensor stored in the file; equal data is stored once, an equal tensor made once."""
        data = np.ascontiguousarray(array).tobytes()
        key = (data, array.shape, str(array.dtype), repr(grid and grid.to_json()))
        if key not in self._constants:
            spec = TensorSpec(tuple(map(int, array.shape)), str(array.dtype))
            self._constants[key] = self._add(name, spec, grid, self._buffer(data))
        return self._constants[key]

    def operator(
        self,
        code: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[Value],
        options: str = "",
        version: int | None = None,
        intermediates: Sequence[Value] = (),
        **fields: Any,
    ) -> None:
        """Append an operator: ``options`` is the name of its table of options, ``fields`` its entries.

        An input of None is an optional one left out.
        """
        wide = any(value is not None and value.spec.dtype == "int16" for value in (*inputs, *outputs))
        known, usual = (VERSIONS16, 3) if wide else (self._versions, self._version)
        key = (code, version or known.get(code, usual))
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(key, len(self._codes))
        operator.inputs = np.array([-1 if value is None else value.index for value in inputs], "int32")
        operator.intermediates = [value.index for value in intermediates]
        operator.outputs = np.array([value.index for value in outputs], "int32")
        if options:
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self._schema, f"{options}T")()
            for name, value in fields.items():
                if not hasattr(operator.builtinOptions, name):
                    raise AttributeError(f"{options} has no field {name}")
                setattr(operator.builtinOptions, name, value)
        self._graph.operators.append(operator)

    def counts(self) -> dict[str, int]:
        """How many operators there are of each kind, the most frequent first."""
        names = [name for name, _ in self._codes]
        return dict(Counter(names[operator.opcodeIndex] for operator in self._graph.operators).most_common())

    def enum(self, name: str, member: str) -> int:
        """A number of the schema, as ``enum("Padding", "SAME")``."""
        return int(getattr(getattr(self._schema, name), member))

    def finish(self, inputs: Mapping[str, Value], outputs: Mapping[str, Value], signature: str) -> bytes:
        """The bytes of the file; names are those of the signature."""
        self._graph.inputs = [value.index for value in inputs.values()]
        self._graph.outputs = [value.index for value in outputs.values()]
        self._model.operatorCodes = [self._code(*key) for key in self._codes]
        self._model.signatureDefs = [self._signature(inputs, outputs, signature)]
        version = self._schema.MetadataT()
        version.name = "min_runtime_version"
        version.buffer = self._buffer(MIN_RUNTIME_VERSION.encode().ljust(16, b"\0"))
        self._model.metadata = [version]
        builder = _builder()
        builder.Finish(self._model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _add(self, name: str, spec: TensorSpec, grid: QuantParams | None, buffer: int) -> Value:
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, np.array(spec.shape, "int32"), buffer
        tensor.type = self.enum("TensorType", spec.dtype.upper())
        if grid is not None:
            tensor.quantization = self._quantization(grid)
        self._graph.tensors.append(tensor)
        return Value(len(self._graph.tensors) - 1, spec, grid)

    def _quantization(self, grid: QuantParams) -> Any:
        made = self._schema.QuantizationParametersT()
        made.scale = np.atleast_1d(grid.scale).astype("float32")
        made.zeroPoint = np.atleast_1d(grid.zero_point).astype("int64")
        made.quantizedDimension = grid.axis or 0
        return made

    def _buffer(self, data: bytes) -> int:
        if data not in self._buffers:
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(data, "uint8")
            self._buffers[data] = len(self._model.buffers)
            self._model.buffers.append(buffer)
        return self._buffers[data]

    def _code(self, name: str, version: int) -> Any:
        made = self._schema.OperatorCodeT()
        made.builtinCode = self.enum("BuiltinOperator", name)
        made.deprecatedBuiltinCode, made.version = min(made.builtinCode, 127), version
        return made

    def _signature(self, inputs: Mapping[str, Value], outputs: Mapping[str, Value], key: str) -> Any:
        made = self._schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = key, 0
        made.inputs, made.outputs = self._names(inputs), self._names(outputs)
        return made

    def _names(self, values: Mapping[str, Value]) -> list[Any]:
        made = []
        for name, value in values.items():
            entry = self._schema.TensorMapT()
            entry.name, entry.tensorIndex = name, value.index
            made.append(entry)
        return made


def _builder() -> Any:
    """A FlatBuffers builder that stores equal vectors once, and bytes at multiples of 16."""
    base = import_module("flatbuffers").Builder

    class Builder(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(1 << 20)
            self.vectors: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: Array) -> int:
            key = (str(x.dtype), x.tobytes())
            if key not in self.vectors:
                if x.dtype == "uint8":
                    self.Prep(ALIGNMENT, x.nbytes)
                self.vectors[key] = super().CreateNumpyVector(x)
            return self.vectors[key]

    return Builder()


def schema() -> Any:
    """LiteRT's schema with its object API. Raises TargetError where it is not installed."""
    try:
        return import_module("ai_edge_litert.schema_py_generated")
    except ImportError as error:
        raise TargetError(
            f"the schema of .tflite files cannot be imported ({error}): pip install 'tvm-qplugin[tflite]'"
        ) from None
