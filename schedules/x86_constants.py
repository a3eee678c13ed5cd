"""All constants of a kernel in one vector: an entry of few arguments is small, and so is its call.

What differs between layers of one geometry (zero points, clamps) lies there too, so that they share code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tvm_qplugin.core.qparams import INTEGER_RANGE, Array
from tvm_qplugin.schedules.x86_border import constant
from tvm_qplugin.schedules.x86_isa import Buffer, Expr, Index, T, load, prefetch, splat
from tvm_qplugin.schedules.x86_pack import Requantization


@dataclass(frozen=True)
class Constants:
    """Named sections of a flat vector. ``starts`` in bytes; every section has elements of its own dtype.

    ``halves``: the sections of float16, which are read as float32.
    """

    data: Array
    starts: Mapping[str, int]
    halves: frozenset[str] = frozenset()

    @classmethod
    def join(cls, **sections: Array) -> Constants:
        """All sections behind each other; the vector has the first one's dtype, the narrowest."""
        if not sections:
            return cls(np.zeros(0, "int32"), {})
        flat = [np.ascontiguousarray(section).reshape(-1) for section in sections.values()]
        ends = np.cumsum([0, *(a.nbytes for a in flat)])
        starts = {name: int(end) for name, end in zip(sections, ends[:-1], strict=True)}
        halves = frozenset(name for name, section in sections.items() if section.dtype == "float16")
        return cls(np.concatenate([a.view(flat[0].dtype) for a in flat]), starts, halves)

    def reader(self, buffer: Buffer | None) -> Reader:
        """For a kernel that has ``data`` as an argument, of which ``buffer`` is a flat view."""
        return Reader(str(self.data.dtype), self.starts, buffer, self.halves)


@dataclass(frozen=True)
class Reader:
    """Reads the sections inside a kernel.

    ``dtype``, ``starts``, ``halves``: of the ``Constants``; ``buffer``: a flat view of the argument, None if
    it has none.
    """

    dtype: str
    starts: Mapping[str, int]
    buffer: Buffer | None
    halves: frozenset[str] = frozenset()

    @property
    def item(self) -> int:
        """Bytes of an element of the vector."""
        return np.dtype(self.dtype).itemsize

    def vector(self, name: str, index: Index, lanes: int, dtype: str) -> Expr:
        """``lanes`` elements of a section from element ``index`` on."""
        if name in self.halves and dtype == "float32":
            return T.Cast(
                dtype if lanes == 1 else f"{dtype}x{lanes}", self.vector(name, index, lanes, "float16")
            )
        item, size = self.item, np.dtype(dtype).itemsize
        at = self.starts[name] // item + index * (size // item)
        value = load(self.buffer, at, lanes * size // item)
        if dtype == self.dtype:
            return value
        return T.reinterpret(dtype if lanes == 1 else f"{dtype}x{lanes}", value)

    def prefetch(self, name: str, index: Index) -> None:
        """Prefetch the line of element ``index`` of the section whose dtype is the vector's."""
        prefetch(self.buffer, self.starts[name] // self.item + index)

    def has(self, name: str) -> bool:
        """Whether there is such a section."""
        return name in self.starts

    def word(self, name: str) -> Expr:
        """A section of one int32."""
        return self.vector(name, 0, 1, "int32")

    def repeated(self, name: str, dtype: str, lanes: int) -> Expr:
        """A vector that repeats a section of 4 bytes."""
        words = splat(self.word(name), lanes * np.dtype(dtype).itemsize // 4)
        return words if dtype == "int32" else T.reinterpret(f"{dtype}x{lanes}", words)

    def scalar(self, name: str, dtype: str, otherwise: int = 0) -> Expr:
        """A section of one int32 as ``dtype``; ``otherwise`` where there is none."""
        return T.Cast(dtype, self.word(name)) if self.has(name) else constant(dtype, otherwise)

    def clamped(self, value: Expr, dtype: str, lanes: int) -> Expr:
        """Bytes within the sections ``lo`` and ``hi``, as far as there are such."""
        if self.has("hi"):
            value = T.min(value, self.repeated("hi", dtype, lanes))
        return T.max(value, self.repeated("lo", dtype, lanes)) if self.has("lo") else value


def words(q: Requantization, shifts: bool = True) -> dict[str, Array]:
    """Sections of an epilogue: ``shift`` (int16 zero point), ``lo``, ``hi``, ``limit``; none for defaults.

    ``shifts``: whether the zero point is added at all.
    """
    lo, hi = INTEGER_RANGE[q.dtype]
    found: dict[str, Array] = {}
    if q.zero_point and shifts:
        found["shift"] = np.full(2, q.zero_point, "int16")
    if q.lo > lo:
        found["lo"] = np.full(4, q.lo, q.dtype)
    if q.hi < hi:
        found["hi"] = np.full(4, q.hi, q.dtype)
    if q.guarded:
        found["limit"] = np.full(1, q.hi - q.zero_point, "float32")
    return found


def fills(**values: int) -> dict[str, Array]:
    """Sections for what borders are filled with, none for 0."""
    return {name: np.full(1, value, "int32") for name, value in values.items() if value}
