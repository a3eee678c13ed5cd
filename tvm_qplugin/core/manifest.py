"""What an artifact says about itself: dataclasses and the JSON form of ``manifest.json``.

Decoding is strict: a missing, unknown or wrongly typed field is refused by name, so that a manifest that
loads has exactly the fields below. A new field means a new ``FORMAT``.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tvm_qplugin.core.errors import ArtifactError
from tvm_qplugin.core.qparams import QuantParams

FORMAT = 3
TABLES = ("operators", "calls")
"""Lists of objects that the file holds as tables, so that no name of a field stands there twice."""

T = TypeVar("T")


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: static shape, dtype, and the JSON form of its qparams (None: float)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    qparams: dict[str, Any] | None = None

    @property
    def params(self) -> QuantParams | None:
        """Its quantization parameters."""
        return None if self.qparams is None else QuantParams.from_json(self.qparams)


@dataclass(frozen=True)
class OperatorInfo:
    """One operator of the compiled model.

    ``kernel`` is None for what is not one of our kernels; ``reason`` says why it is not integer.
    ``shape`` is that of the output, ``weight_bytes`` what its constants take that no operator
    before it has (unrolled cells share theirs), ``macs`` multiply-adds.
    """

    name: str
    op: str
    kernel: str | None
    integer: bool
    reason: str | None
    shape: tuple[int, ...]
    weight_bytes: int = 0
    macs: int = 0


@dataclass(frozen=True)
class CallInfo:
    """One kernel call of the compiled model; they stand in the order of execution.

    ``function`` is the kernel's symbol in ``model.so``, ``tensor`` what the call makes, ``operators`` the
    positions in ``Manifest.operators`` of all that it computes (none: a conversion that the model does not
    have), ``kernel`` as there, ``dtype`` that of its first operand, ``bytes`` what it reads and writes,
    ``instruction`` what it multiplies with (of a merged one all, after each other), None where that is left
    to LLVM.
    """

    function: str
    tensor: str
    operators: tuple[int, ...]
    kernel: str | None
    dtype: str
    bytes: int
    instruction: str | None


@dataclass(frozen=True)
class Manifest:
    """Everything known about an artifact beside its code.

    ``versions``: of tvm, tvm_qplugin, numpy. ``target``: ``{"profile": name, "tvm": dict,
    "tuned_kernels": calls of kernels from tuning records}``.
    ``tensors``: the qparams of every quantized tensor as JSON. ``sizes``: bytes of every file, and of
    ``"weights"`` (quantized) and ``"float_model"`` where known. ``sha256``: of every file but the
    manifest. Saving fills in the entries of files.
    """

    model: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    versions: dict[str, str] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    operators: tuple[OperatorInfo, ...] = ()
    calls: tuple[CallInfo, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back exactly."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return {"format": FORMAT, **data}

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """The inverse of ``to_json``; raises ArtifactError that names the field."""
        if not isinstance(data, Mapping) or "format" not in data:
            raise ArtifactError(
                'the manifest is not an object with a field "format": not made by tvm_qplugin'
            )
        if data["format"] != FORMAT:
            raise ArtifactError(
                f"the manifest has format {data['format']!r}, this tvm_qplugin reads format {FORMAT}: "
                "install the version that wrote it, or build the model again"
            )
        return _dataclass(cls, {k: v for k, v in data.items() if k != "format"}, "manifest")

    def dumps(self) -> str:
        """The text of ``manifest.json``. NaN and infinity raise ValueError.

        It differs from ``to_json`` in ``TABLES``: ``{"columns": names, "rows": lists of values}``.
        """
        data = self.to_json()
        data |= {name: _table(data[name]) for name in TABLES if data[name]}
        entries = (f"{_dumps(key)}:{_rows(value)}" for key, value in data.items())
        return "{\n" + ",\n".join(entries) + "\n}\n"

    @classmethod
    def loads(cls, text: str) -> Manifest:
        """Parse the text of ``manifest.json``; raises ArtifactError."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"the manifest is not JSON ({error}): save the artifact again") from None
        if isinstance(data, dict):
            data |= {name: _objects(data[name], name) for name in TABLES if isinstance(data.get(name), dict)}
        return cls.from_json(data)


def _table(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Objects with equal keys, of which each stands once."""
    return {"columns": list(objects[0]), "rows": [list(item.values()) for item in objects]}


def _objects(table: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The inverse of ``_table``."""
    columns, rows = table.get("columns"), table.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise _wrong(where, "columns and rows", table)
    if odd := [row for row in rows if not isinstance(row, list) or len(row) != len(columns)]:
        raise _wrong(f"{where}.rows", f"lists of {len(columns)} values", odd[0])
    return [dict(zip(map(str, columns), row, strict=True)) for row in rows]


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _rows(value: Any) -> str:
    """JSON with one line for each entry of a list or object, and for each row of a table."""
    if isinstance(value, dict) and value:
        inner = [f"{_dumps(k)}:{_rows(v) if k == 'rows' else _dumps(v)}" for k, v in value.items()]
        return "{\n" + ",\n".join(inner) + "\n}"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(map(_dumps, value)) + "\n]"
    return _dumps(value)


def _dataclass(kind: type[T], data: Any, where: str) -> T:
    if not isinstance(data, Mapping):
        raise _wrong(where, "an object", data)
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for problem, found in (("unknown", set(data) - names), ("missing", names - set(data))):
        if found:
            raise ArtifactError(f"{where}: {problem} field {', '.join(sorted(found))}; {_AGAIN}")
    return kind(**{name: _value(hints[name], data[name], f"{where}.{name}") for name in names})


def _value(kind: Any, data: Any, where: str) -> Any:
    """``data`` as ``kind``: a dataclass, tuple, dict, optional or plain JSON type."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin in (Union, types.UnionType):
        return None if data is None else _value(args[0], data, where)
    if is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise _wrong(where, "a list", data)
        return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict:
        if not isinstance(data, dict):
            raise _wrong(where, "an object", data)
        return {key: _value(args[1], item, f"{where}[{key!r}]") for key, item in data.items()}
    if type(data) is not kind:
        raise _wrong(where, kind.__name__, data)
    return data


_AGAIN = "the file was altered or written by another version: build the model again"


def _wrong(where: str, expected: str, found: Any) -> ArtifactError:
    return ArtifactError(f"{where}: expected {expected}, found {str(found)[:60]!r}; {_AGAIN}")
