"""What happens to sums that become int16: rescaled by ``x86_rescale16.Rescaling``, or as bytes are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm_qplugin.schedules.x86_constants import Reader
from tvm_qplugin.schedules.x86_epilogue import Cell, IntegerEpilogue, runs, store_lanes
from tvm_qplugin.schedules.x86_isa import (
    Buffer,
    Expr,
    Isa,
    T,
    dot_int16,
    high_uint16,
    load,
    pack_int16,
    splat,
    store,
)
from tvm_qplugin.schedules.x86_reduce import Cells, Kernel, Spot, reduce
from tvm_qplugin.schedules.x86_reduce16 import reduce_in_parts
from tvm_qplugin.schedules.x86_rescale16 import Cut

NEARLY_HALF = 0.5 - 2.0**-54

Section = Callable[[str, str], Expr]
"""A vector of a section's values, by its name and dtype."""


@dataclass(frozen=True)
class Int16Epilogue:
    """Two vectors at a time; ``cut`` says how sums that may leave int32 are gathered in int64."""

    cut: Cut | None = None

    def reduce(self, kernel: Kernel, spot: Spot, acc: Cells) -> Cells:
        """Add all products, in ``acc`` or in int64."""
        if self.cut is None:
            return reduce(kernel, spot, acc)
        return reduce_in_parts(kernel, spot, acc, self.cut)

    def finish(self, kernel: Kernel, spot: Spot, acc: Cells) -> None:
        """Store every accumulator of a tile."""
        store_words(kernel, spot, lambda i, j: self._rescaled(kernel, spot, acc, i, j))

    def _rescaled(self, k: Kernel, spot: Spot, acc: Cells, i: int, j: int) -> Expr:
        def section(name: str, dtype: str) -> Expr:
            return k.constants.vector(name, (spot.block + j) * k.isa.lanes, k.isa.lanes, dtype)

        return rescaled(k.isa, k.constants, section, acc[i][j])


@dataclass(frozen=True)
class WideEpilogue(IntegerEpilogue):
    """Sums of bytes as int16 of zero point 0: scaled in float32, rounded, packed two vectors at a time."""

    def finish(self, kernel: Kernel, spot: Spot, acc: Cells) -> None:
        """Store every accumulator of a tile."""
        store_words(kernel, spot, lambda i, j: self.rounded(kernel, spot, acc, i, j))


def store_words(kernel: Kernel, spot: Spot, value: Callable[[int, int], Expr]) -> None:
    """Pack what ``value(pixel, vector)`` gives as int32 to int16, and store it."""
    isa = kernel.isa
    for cells in pairs(len(spot.pixels), spot.vectors):
        packed = pack_words(kernel.constants, [value(i, j) for i, j in (cells + cells)[:2]], isa)
        buffer = T.sblock_alloc_buffer((isa.bytes // 2,), "int16")
        store(buffer, 0, packed, isa.bytes // 2)
        for start, lanes in runs(kernel, spot, cells, packed_lane):
            store_lanes(kernel, spot.out + start, buffer, lanes)


def pairs(pixels: int, vectors: int) -> list[list[Cell]]:
    """Group the cells (pixel, vector) of a tile by two, neighbours in memory together."""
    whole = vectors // 2 * 2
    groups = [[(i, j), (i, j + 1)] for i in range(pixels) for j in range(0, whole, 2)]
    rest = [(i, vectors - 1) for i in range(pixels)] if vectors % 2 else []
    return groups + [rest[n : n + 2] for n in range(0, len(rest), 2)]


def packed_lane(vector: int, element: int) -> int:
    """Where element ``element`` of vector ``vector`` lies after packing two int32 vectors to int16."""
    return element // 4 * 8 + vector * 4 + element % 4


def pack_words(constants: Reader, two: list[Expr], isa: Isa) -> Expr:
    """Two vectors of int32 as one of int16 within the bounds, in the order of ``packed_lane``."""
    return constants.clamped(pack_int16(two[0], two[1], isa), "int16", isa.bytes // 2)


def rescaled(isa: Isa, constants: Reader, section: Section, sums: Buffer) -> Expr:
    """Sums (int32, int64) as results (int32), still to be clamped."""
    lanes, dtype = isa.lanes, str(sums.dtype)
    total = load(sums, 0, lanes)
    if constants.has("low"):
        return _short(isa, section, total)
    if constants.has("offset"):
        total = _wide(total, dtype, lanes) + section("offset", "int64")
    if constants.has("scale"):
        return _double(constants, section, total, lanes)
    scaled = total * section("factor", "int64") + section("round", "int64")
    return T.Cast(f"int32x{lanes}", T.shift_right(scaled, section("shift", "int64")))


def _wide(total: Expr, dtype: str, lanes: int) -> Expr:
    return T.Cast(f"int64x{lanes}", total) if dtype == "int32" else total


def _short(isa: Isa, section: Section, acc: Expr) -> Expr:
    """``((acc * factor >> 16) + round) >> shift``: the halves of ``acc`` are multiplied apart."""
    words, lanes = f"int16x{isa.lanes * 2}", isa.lanes
    halves = T.reinterpret(words, acc)
    low = high_uint16(halves, T.reinterpret(words, section("low", "int32")), isa)
    product = dot_int16(
        isa, T.reinterpret(f"int32x{lanes}", low), halves, T.reinterpret(words, section("high", "int32"))
    )
    return T.shift_right(product + section("round", "int32"), section("shift", "int32"))


def _double(constants: Reader, section: Section, total: Expr, lanes: int) -> Expr:
    """The clamp comes first: it keeps the compiler from contracting product and sum."""
    least, most = (splat(constants.vector(name, 0, 1, "float64"), lanes) for name in ("least", "most"))
    scaled = T.Cast(f"float64x{lanes}", total) * section("scale", "float64")
    inside = T.max(T.min(scaled, most), least)
    half = splat(T.float64(NEARLY_HALF), lanes)
    away = T.Select(inside < splat(T.float64(0.0), lanes), splat(T.float64(-NEARLY_HALF), lanes), half)
    return T.Cast(f"int32x{lanes}", inside + away)
