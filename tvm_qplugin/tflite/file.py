"""A ``.tflite`` file as plain data. Files are not trusted: whatever is wrong with one is a ModelError."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.tflite.flat import AGAIN, FlatBuffer, Table
from tvm_qplugin.tflite.options import names_of, read_options, schema

IDENTIFIER, SCHEMA_VERSION = b"TFL3", 3
MAX_RANK, MAX_ELEMENTS = 8, 2**31 - 1
LSTM, STATES = "UNIDIRECTIONAL_SEQUENCE_LSTM", slice(18, 20)
"""The operator whose variables can be read, and where they stand: hidden state, cell state."""
DTYPES = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "FLOAT64": "float64",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "UINT16": "uint16",
    "INT32": "int32",
    "UINT32": "uint32",
    "INT64": "int64",
    "UINT64": "uint64",
    "BOOL": "bool",
}
"""The schema's types that can be read; strings, complex numbers and packed 4-bit ones cannot."""


@dataclass(frozen=True, eq=False)
class TfliteTensor:
    """One tensor. ``data`` is a read-only view of the file for constants, None for activations.

    ``quant.dtype`` is int32 for int64 biases (their zero point is 0). ``unknown`` are the dimensions
    that the file leaves open; ``shape`` has what it proposes, as LiteRT runs it (converters leave the
    batch open and propose 1). ``variable`` tensors are states that outlive a run. Only files loaded with
    ``strict=False`` have other open extents (-1 in ``shape`` where nothing is proposed) and ``sparse``
    constants: those have no ``data`` but ``nbytes``, their size in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    quant: QuantParams | None = None
    data: Array | None = None
    unknown: tuple[int, ...] = ()
    variable: bool = False
    sparse: bool = False
    nbytes: int = 0

    @property
    def dynamic(self) -> bool:
        """Whether the file leaves an extent open."""
        return bool(self.unknown)


@dataclass(frozen=True)
class TfliteOperator:
    """One operator: the schema's name, indices of tensors (-1: an optional input left out), options.

    ``options`` have the schema's names in snake_case; activations and paddings are names ("RELU6",
    "SAME"), vectors tuples. ``custom`` operators (``strict=False`` only) bear their custom code as name.
    """

    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    intermediates: tuple[int, ...] = ()
    custom: bool = False


@dataclass(frozen=True)
class Signature:
    """A SignatureDef: names of inputs and outputs for callers, with the tensors that they mean."""

    key: str
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class TfliteModel:
    """A file with one subgraph; operators stand in an order in which they can run."""

    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    signature: Signature | None = None
    description: str = ""

    @property
    def min_runtime_version(self) -> str:
        """What the file says of the runtime that it needs; "" if it does not."""
        return self.metadata.get("min_runtime_version", b"").rstrip(b"\0").decode("ascii", "replace")


def load(source: str | os.PathLike[str] | bytes, *, strict: bool = True) -> TfliteModel:
    """Read a file, or its bytes.

    ``strict`` refuses what no static importer can run: custom operators, unknown extents other than the
    batch, variable tensors (state) other than an LSTM's, and sparse weights. Raises ModelError for any file
    that is damaged or foreign, TargetError if the schema (extra ``tflite``) is not installed.
    """
    schema()
    data, where = (source, "the file") if isinstance(source, bytes) else (_bytes(Path(source)), str(source))
    try:
        return _Reader(_checked(data), strict).model()
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; expected a .tflite file") from None


def _checked(data: bytes) -> FlatBuffer:
    if len(data) < 8:
        raise ModelError(f"has {len(data)} bytes, too few for a .tflite file; download or export it again")
    if data[4:8] != IDENTIFIER:
        raise ModelError(
            f"is not a .tflite file: bytes 4 to 7 are {data[4:8]!r}, expected {IDENTIFIER!r}; "
            "give a file made by the TensorFlow Lite converter or by tvm-qplugin"
        )
    return FlatBuffer(data)


@dataclass
class _Reader:
    """Numbers in calls are the schema's field numbers."""

    flat: FlatBuffer
    strict: bool

    def model(self) -> TfliteModel:
        root = self.flat.root("model")
        version = root.number(0, "<I")
        if version != SCHEMA_VERSION:
            raise ModelError(f"schema version {version}, expected {SCHEMA_VERSION}; convert the model anew")
        graphs = root.vector(2, "<u4").size
        if graphs != 1:
            raise ModelError(f"holds {graphs} subgraphs, expected 1; export it without control flow")
        self.buffers = [self._buffer(table) for table in root.tables(4, "buffer")]
        self.codes = [self._code(table) for table in root.tables(1, "operator code")]
        (graph,) = root.tables(2, "subgraph")
        self.tensors = tuple(self._tensor(i, table) for i, table in enumerate(graph.tables(0, "tensor")))
        operators = tuple(self._operator(table) for table in graph.tables(3, "operator"))
        inputs, outputs = self._indices(graph, 1), self._indices(graph, 2)
        self._check_order(operators, inputs, outputs)
        if self.strict:
            self._check_states(operators, inputs, outputs)
        metadata = {table.text(0): self._buffer_at(table, 1) for table in root.tables(6, "metadata")}
        signatures = [self._signature(table) for table in root.tables(7, "signature")]
        stored = {name: data.tobytes() for name, data in metadata.items()}
        signature = signatures[0] if signatures else None
        return TfliteModel(self.tensors, operators, inputs, outputs, stored, signature, root.text(3))

    def _buffer(self, table: Table) -> Array:
        offset, size = table.number(1, "<Q"), table.number(2, "<Q")
        if offset > 1:
            self.flat.claim(offset, size, table.what)
            return np.frombuffer(self.flat.data, "uint8", size, offset)
        return table.vector(0, "uint8")

    def _buffer_at(self, table: Table, slot: int) -> Array:
        index = table.number(slot, "<I")
        if index >= len(self.buffers):
            raise table.error(f"refers to buffer {index}, but the file has {len(self.buffers)}; {AGAIN}")
        return self.buffers[index]

    def _code(self, table: Table) -> tuple[str, int, bool]:
        code = max(table.number(0, "<b"), table.number(3))
        name = names_of("BuiltinOperator").get(code)
        if name is None:
            raise table.error(f"is {code}, which LiteRT's schema does not know; update ai-edge-litert")
        custom = name == "CUSTOM"
        if custom and self.strict:
            raise table.error(
                f"is the custom operator {table.text(1)!r}; only LiteRT's own operators can be read: "
                "export the model without it, or cut the model before it"
            )
        return (table.text(1) or name if custom else name), table.number(2, default=1), custom

    def _tensor(self, number: int, table: Table) -> TfliteTensor:
        name = table.text(3) or f"tensor{number}"
        table = Table(table.flat, table.at, f"tensor {number} ({name})")
        kind = table.number(1, "<b")
        dtype = DTYPES.get(names_of("TensorType").get(kind, ""))
        if dtype is None:
            known = names_of("TensorType").get(kind, f"number {kind}")
            raise table.error(f"has type {known}; expected one of {', '.join(DTYPES)}")
        if table.number(10, "<I"):
            raise table.error("lies in an external buffer; expected buffers inside of the file: export anew")
        shape, unknown = self._shape(table)
        stored, sparse = self._buffer_at(table, 2), table.table(6, f"sparsity of {name}") is not None
        variable = bool(table.number(5, "<B"))
        if self.strict and sparse:
            raise table.error("is stored sparse; expected dense weights: export without sparse storage")
        data = None if sparse or -1 in shape else _data(table, stored, shape, dtype)
        if variable and data is not None and data.size:
            raise table.error(f"is a variable and holds data; expected one or the other: {AGAIN}")
        quant = _quantization(table, shape, dtype)
        return TfliteTensor(name, shape, dtype, quant, data, unknown, variable, sparse, stored.size)

    def _shape(self, table: Table) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape that the file proposes, and the dimensions that it leaves open."""
        stored, signature = table.vector(0, "<i4"), table.vector(7, "<i4")
        if max(stored.size, signature.size) > MAX_RANK:
            raise table.error(
                f"has {max(stored.size, signature.size)} dimensions; expected at most {MAX_RANK}"
            )
        shape = tuple(map(int, stored))
        wanted = tuple(map(int, signature)) if signature.size else shape
        if len(wanted) != len(shape) or any(w not in (-1, s) for s, w in zip(shape, wanted, strict=True)):
            raise table.error(f"has shape {list(shape)} and signature {list(wanted)}; {AGAIN}")
        if any(extent < -1 for extent in shape):
            raise table.error(f"has shape {list(shape)}; expected extents of 0 or more: {AGAIN}")
        if math.prod(map(abs, shape)) > MAX_ELEMENTS:
            raise table.error(f"has shape {list(shape)}: more than {MAX_ELEMENTS} elements")
        if self.strict and (-1 in shape or -1 in wanted[1:]):
            raise table.error("has an unknown extent (-1) that is not the batch; export with a fixed shape")
        return shape, tuple(i for i, extent in enumerate(wanted) if extent < 0)

    def _operator(self, table: Table) -> TfliteOperator:
        index = table.number(0, "<I")
        if index >= len(self.codes):
            raise table.error(f"has code {index}, but the file has {len(self.codes)} codes; {AGAIN}")
        name, version, custom = self.codes[index]
        table = Table(table.flat, table.at, f"{table.what} ({name})")
        inputs, outputs = self._indices(table, 1, optional=True), self._indices(table, 2)
        options = {} if custom else read_options(table, name)
        middle = self._indices(table, 8)
        return TfliteOperator(name, version, inputs, outputs, options, middle, custom)

    def _indices(self, table: Table, slot: int, optional: bool = False) -> tuple[int, ...]:
        return tuple(self._index(table, int(i), optional) for i in table.vector(slot, "<i4"))

    def _index(self, table: Table, index: int, optional: bool = False) -> int:
        count = len(self.tensors)
        if not (-int(optional) <= index < count):
            raise table.error(f"refers to tensor {index}, but the file has {count} tensors; {AGAIN}")
        return index

    def _check_order(
        self, operators: tuple[TfliteOperator, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> None:
        """Every tensor is made once, before it is used."""
        made = {-1, *inputs}
        made |= {i for i, t in enumerate(self.tensors) if t.data is not None or t.variable or t.sparse}
        for number, operator in enumerate(operators):
            what = f"operator {number} ({operator.name})"
            for index in operator.inputs:
                if index not in made:
                    raise ModelError(f"{what} uses {self._called(index)} before it is made; {AGAIN}")
            for index in operator.outputs:
                if index in made and not self.tensors[index].variable:
                    raise ModelError(f"{what} makes {self._called(index)} a second time; {AGAIN}")
                made.add(index)
        for index in outputs:
            if index not in made:
                raise ModelError(f"output {self._called(index)} is made by no operator; {AGAIN}")

    def _check_states(
        self, operators: tuple[TfliteOperator, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> None:
        """Every variable is the state of one LSTM and read by nothing else."""
        for index, tensor in enumerate(self.tensors):
            if not tensor.variable:
                continue
            readers = [op for op in operators if index in (*op.inputs, *op.outputs)]
            if not readers and index not in (*inputs, *outputs):
                continue
            states = [op for op in readers if op.name == LSTM and index in op.inputs[STATES]]
            if len(readers) != 1 or len(states) != 1 or index in (*inputs, *outputs):
                users = ", ".join(op.name for op in readers) or "the model"
                raise ModelError(
                    f"{self._called(index)} is a variable (state that outlives a run) of {users}; expected "
                    f"none but the states of one {LSTM}: export the model with that operator, or unroll the "
                    "loop"
                )

    def _called(self, index: int) -> str:
        return f"tensor {index} ({self.tensors[index].name})"

    def _signature(self, table: Table) -> Signature:
        return Signature(table.text(2), tuple(self._pairs(table, 0)), tuple(self._pairs(table, 1)))

    def _pairs(self, table: Table, slot: int) -> Iterator[tuple[str, int]]:
        for item in table.tables(slot, f"{table.what}, name"):
            yield item.text(0), self._index(item, item.number(1, "<I"))


def _data(table: Table, stored: Array, shape: tuple[int, ...], dtype: str) -> Array | None:
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if not stored.size and (expected or not table.number(2, "<I")):
        return None
    if stored.size != expected:
        raise table.error(
            f"holds {stored.size} bytes, expected {expected} for {dtype} of shape {list(shape)}; {AGAIN}"
        )
    return stored.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)


def _quantization(table: Table, shape: tuple[int, ...], dtype: str) -> QuantParams | None:
    params = table.table(4, f"quantization of {table.what}")
    if params is None or "float" in dtype or dtype == "bool":
        return None
    scale, zero = params.vector(2, "<f4"), params.vector(3, "<i8")
    if params.number(4, "<B"):
        raise params.error("is custom or blockwise; expected a scale per tensor or per channel")
    if not scale.size:
        return None
    axis = params.number(6) if scale.size > 1 else None
    if axis is not None and not 0 <= axis < len(shape):
        raise params.error(f"has quantized dimension {axis}, but the tensor has {len(shape)} dimensions")
    if axis is not None and shape[axis] != scale.size:
        raise params.error(f"has {scale.size} scales for {shape[axis]} channels (dimension {axis}); {AGAIN}")
    if zero.size not in (0, 1, scale.size):
        raise params.error(f"has {zero.size} zero points for {scale.size} scales; {AGAIN}")
    return _params(params, scale, zero if zero.size else np.zeros(1, "int64"), dtype, axis)


def _params(table: Table, scale: Array, zero: Array, dtype: str, axis: int | None) -> QuantParams:
    wide = {"int64": "int32", "uint32": "int32", "uint64": "int32"}.get(dtype, dtype)
    if abs(zero).max() > 2**16:
        raise table.error(f"has zero point {zero[abs(zero).argmax()]}, which does not fit {dtype}; {AGAIN}")
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    try:
        return QuantParams.of(scale, zero, wide, axis)
    except ValueError as error:
        raise table.error(f"is not usable: {error}; {AGAIN}") from None
