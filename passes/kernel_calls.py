"""The kernel calls of a lowered ``main`` in order, and the operators of the model that each computes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from tvm_qplugin.core.attrs import CALLS, MEMBERS, REPORT
from tvm_qplugin.passes import ir


@dataclass(frozen=True)
class NamedCall:
    """One ``call_tir``: the variable that it is bound to, and all that it stands for."""

    var: relax.Var
    value: Call
    names: tuple[str, ...]

    @property
    def function(self) -> str:
        """The kernel's name."""
        return str(self.value.args[0].name_hint)

    @property
    def operands(self) -> list[relax.Expr]:
        """The tensors that it reads, constants included."""
        return list(self.value.args[1].fields)

    @property
    def results(self) -> list[relax.TensorType]:
        """The types of what it writes."""
        return list(self.value.ty.fields) if isinstance(self.value.ty, relax.TupleType) else [self.value.ty]

    @property
    def dtype(self) -> str:
        """That of the first operand, of the result where there is none."""
        return str((self.operands[0].ty if self.operands else self.results[0]).dtype)


def named_calls(func: relax.Function) -> Iterator[NamedCall]:
    """Each ``call_tir`` with the old names; recorded calls that became views are passed over."""
    records = iter(_attribute(func, CALLS, []))
    for var, value in ir.bindings(func):
        if ir.op_name(value) == "relax.call_tir":
            function = value.args[0].name_hint
            names = next((names for name, names in records if name == function), [var.name])
            yield NamedCall(var, value, tuple(names))


class Operators:
    """The report's entries by the names of variables."""

    def __init__(self, func: relax.Function) -> None:
        """Read what lowering left in the attributes of ``func``."""
        self.entries: Sequence[Mapping[str, Any]] = _attribute(func, REPORT, [])
        self._members: Mapping[str, list[str]] = _attribute(func, MEMBERS, {})
        self._positions = {entry["variable"]: position for position, entry in enumerate(self.entries)}

    def positions(self, names: Sequence[str]) -> list[int]:
        """Where in the report those stand that ``names`` are bound to."""
        parts = [part for name in names for part in self._members.get(name, [name])]
        return sorted({self._positions[part] for part in parts if part in self._positions})

    def macs(self, names: Sequence[str]) -> int:
        """Multiply-adds of all of them."""
        return sum(int(self.entries[position]["macs"]) for position in self.positions(names))


def bytes_of(ty: relax.TensorType) -> int:
    """Size of a tensor of static shape."""
    return math.prod(int(extent) for extent in ty.shape) * size_of(str(ty.dtype))


def size_of(dtype: str) -> int:
    """Bytes of an element."""
    return np.dtype(dtype).itemsize


def _attribute(func: relax.Function, key: str, default: Any) -> Any:
    text = (func.attrs or {}).get(key)
    return default if text is None else json.loads(str(text))
