"""The second operand of a product as the multiply reads it: ``[groups * blocks, steps, lanes, depth]``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm_qplugin.core.qparams import centre
from tvm_qplugin.schedules.x86_border import constant, padded_copy, workspace
from tvm_qplugin.schedules.x86_epilogue16 import packed_lane as packed_lane16
from tvm_qplugin.schedules.x86_geometry import Geometry, Scratch
from tvm_qplugin.schedules.x86_isa import (
    Buffer,
    Expr,
    Index,
    Isa,
    T,
    dot_int16,
    dot_uint8,
    load,
    pack_bytes,
    pack_int16,
    packed_lane,
    round_to_int32,
    select_lanes,
    splat,
    store,
)

PARALLEL_BYTES = 64 * 1024
Row = Callable[[Index], Expr]


def with_slack(buffer: Buffer, size: int, dtype: str) -> Buffer:
    """A copy that may be read beyond its end, by less than a vector."""
    scratch = Scratch((1, 1, 1, size), (1, 1), 0, 0, dtype)
    return padded_copy(scratch, buffer, str(buffer.dtype), constant(dtype, 0))


@dataclass(frozen=True)
class Operand:
    """Matrices ``[groups, span, channels]`` in a flat buffer, with slack where rows are no vector long."""

    isa: Isa
    geometry: Geometry
    buffer: Buffer

    @classmethod
    def of(cls, isa: Isa, geometry: Geometry, buffer: Buffer) -> Operand:
        """Of an argument."""
        g = geometry
        if g.channels < isa.lanes:
            buffer = with_slack(buffer, g.groups * g.span * g.channels, str(buffer.dtype))
        return cls(isa, g, buffer)

    @property
    def columns(self) -> int:
        """Columns of all groups, vectors filled up."""
        return self.geometry.groups * self.geometry.blocks * self.isa.lanes

    def row(self, group: Expr, block: Expr, valid: int) -> Row:
        """Reads 16 (or 8) columns of a row; of a partial vector those that it has."""
        g, lanes = self.geometry, self.isa.lanes
        whole = valid == lanes or g.channels < lanes
        start = block * lanes if whole else g.channels - lanes
        order = [min(lanes - valid + lane, lanes - 1) for lane in range(lanes)]

        def read(k: Index) -> Expr:
            value = load(self.buffer, (group * g.span + k) * g.channels + start, lanes)
            return value if whole else select_lanes(value, order)

        return read

    def every(self, emit: Callable[[Expr, Row], None]) -> None:
        """Call ``emit(vector, row)`` for all vectors of columns, in parallel where that pays."""
        g, lanes = self.geometry, self.isa.lanes
        whole, large = g.channels // lanes, g.weight_bytes >= PARALLEL_BYTES
        with (T.parallel if large and g.groups > 1 else T.serial)(0, g.groups) as group:
            with (T.parallel if large and g.groups == 1 and whole > 1 else T.serial)(0, whole) as block:
                with _opaque("pack"):
                    emit(group * g.blocks + block, self.row(group, block, lanes))
            if g.channels % lanes:
                with _opaque("pack_last"):
                    emit(group * g.blocks + whole, self.row(group, T.int32(whole), g.channels % lanes))


def packed_integers(b: Operand, zero: int) -> dict[str, Buffer]:
    """Of uint8 codes: ``weights``, and as ``bias`` what the zero point of the first operand takes away."""
    isa, lanes, middle = b.isa, b.isa.lanes, centre("uint8")
    found = {"weights": _weights(b, _packed_dtype(isa)), "bias": workspace(b.columns, "int32")}

    def joined(rows: list[Expr]) -> Expr:
        if isa.depth == 4:
            codes = T.bitwise_xor(_interleaved(rows, lanes), splat(T.uint8(middle), 4 * lanes))
            return T.reinterpret(f"int8x{4 * lanes}", codes)
        wide = [T.Cast(f"int16x{lanes}", row) - splat(T.int16(middle), lanes) for row in rows]
        return _interleaved(wide, lanes)

    def emit(vector: Expr, row: Row) -> None:
        sums = _pack(b, found["weights"], vector, row, joined, splat(T.uint8(middle), lanes))
        store(found["bias"], vector * lanes, load(sums, 0, lanes) * splat(T.int32(-zero), lanes), lanes)

    b.every(emit)
    return found


def packed_floats(b: Operand) -> dict[str, Buffer]:
    """Of floats, each column symmetric: ``weights``, ``sums`` of codes, and ``scale``."""
    isa, lanes = b.isa, b.isa.lanes
    found = {
        "weights": _weights(b, _packed_dtype(isa)),
        "sums": workspace(b.columns, "int32"),
        "scale": workspace(b.columns, "float32"),
    }

    def emit(vector: Expr, row: Row) -> None:
        inverse = _inverse(b, row)
        one = splat(T.float32(1), lanes)
        store(found["scale"], vector * lanes, one / load(inverse, 0, lanes), lanes)

        def joined(rows: list[Expr]) -> Expr:
            return _narrowed(isa, [round_to_int32(value * load(inverse, 0, lanes), isa) for value in rows])

        sums = _pack(b, found["weights"], vector, row, joined, splat(T.float32(0), lanes))
        store(found["sums"], vector * lanes, load(sums, 0, lanes), lanes)

    b.every(emit)
    return found


def pack_words(b: Operand, weights: Buffer, halved: bool) -> None:
    """Int16 codes; ``halved``: for every vector of columns one of ``low`` and one of ``high`` parts.

    ``code = 256 * high + low``, neither of them beyond 128 in magnitude.
    """
    g, width = b.geometry, 2 * b.isa.lanes

    def emit(vector: Expr, row: Row) -> None:
        def write(step: Index, rows: list[Expr]) -> None:
            codes = _interleaved(rows, b.isa.lanes)
            parts = _halves(codes, width) if halved else (codes,)
            for n, part in enumerate(parts):
                at = ((vector * len(parts) + n) * g.steps + step) * width
                store(weights, at, part, width)

        _steps(g, row, write, splat(T.int16(0), b.isa.lanes))

    b.every(emit)


def _halves(codes: Expr, lanes: int) -> tuple[Expr, Expr]:
    """The low and the high parts of int16 codes."""
    eight, seven, one = (splat(T.int16(value), lanes) for value in (8, 7, 1))
    low = T.shift_right(T.shift_left(codes, eight), eight)
    carry = T.bitwise_and(T.shift_right(codes, seven), one)
    return low, T.shift_right(codes, eight) + carry


def _inverse(b: Operand, row: Row) -> Buffer:
    """Codes per unit of 16 columns: 127 by the largest magnitude, 1 where that is 0."""
    lanes = b.isa.lanes
    largest = T.sblock_alloc_buffer((lanes,), "float32")
    zero, one = (splat(T.float32(value), lanes) for value in (0, 1))
    store(largest, 0, zero, lanes)
    with T.serial(0, b.geometry.span) as k:
        value = row(k)
        store(largest, 0, T.max(load(largest, 0, lanes), T.max(value, zero - value)), lanes)
    flat = load(largest, 0, lanes) == zero
    divisor = T.Select(flat, one, load(largest, 0, lanes))
    store(largest, 0, T.Select(flat, one, splat(T.float32(127), lanes) / divisor), lanes)
    return largest


def _pack(
    b: Operand, weights: Buffer, vector: Expr, row: Row, joined: Callable[[list[Expr]], Expr], nothing: Expr
) -> Buffer:
    """Write all steps of a vector of columns, ``joined`` from ``depth`` rows; gives the sums of its codes."""
    g, isa, lanes = b.geometry, b.isa, b.isa.lanes
    sums, codes = T.sblock_alloc_buffer((lanes,), "int32"), _cell(lanes * g.depth, str(weights.dtype))
    store(sums, 0, splat(T.int32(0), lanes), lanes)

    def write(step: Index, rows: list[Expr]) -> None:
        store(codes, 0, joined(rows), lanes * g.depth)
        value = load(codes, 0, lanes * g.depth)
        store(sums, 0, _summed(isa, load(sums, 0, lanes), value), lanes)
        store(weights, (vector * g.steps + step) * (lanes * g.depth), value, lanes * g.depth)

    _steps(g, row, write, nothing)
    return sums


def _summed(isa: Isa, sums: Expr, codes: Expr) -> Expr:
    if isa.depth == 4:
        return dot_uint8(isa, sums, splat(T.uint8(1), 4 * isa.lanes), codes)
    return dot_int16(isa, sums, splat(T.int16(1), 2 * isa.lanes), codes)


def _steps(g: Geometry, row: Row, write: Callable[[Index, list[Expr]], None], nothing: Expr) -> None:
    """Call ``write(step, rows)`` for all steps; an overlapping one has ``nothing`` in what others have."""
    with T.serial(0, g.full_steps) as step:
        write(step, [row(step * g.depth + i) for i in range(g.depth)])
    if g.has_tail:
        rest = [row(k) for k in range(g.full_steps * g.depth, g.span)]
        unread = [nothing] * (g.depth - len(rest))
        write(T.int32(g.full_steps), unread + rest if g.full_steps else rest + unread)


def _interleaved(rows: list[Expr], lanes: int) -> Expr:
    """Two vectors of int16, or four of bytes, as one: what has the same lane lies side by side."""
    if len(rows) == 2:
        return _zipped(rows[0], rows[1], lanes)
    first, second = (T.reinterpret(f"int16x{lanes}", _zipped(rows[i], rows[i + 1], lanes)) for i in (0, 2))
    return T.reinterpret(f"uint8x{4 * lanes}", _zipped(first, second, lanes))


def _narrowed(isa: Isa, codes: list[Expr]) -> Expr:
    """``_interleaved`` of int32 vectors whose values fit."""
    lanes, depth = isa.lanes, isa.depth
    halves = [pack_int16(codes[i], codes[i + 1], isa) for i in range(0, depth, 2)]
    packed = pack_bytes(halves[0], halves[1], "int8", isa) if depth == 4 else halves[0]
    where = packed_lane if depth == 4 else packed_lane16
    return select_lanes(packed, [where(place, i) for i in range(lanes) for place in range(depth)])


def _zipped(a: Expr, b: Expr, lanes: int) -> Expr:
    return T.Shuffle([a, b], [T.int32(i + side) for i in range(lanes) for side in (0, lanes)])


def _packed_dtype(isa: Isa) -> str:
    return "int8" if isa.depth == 4 else "int16"


def _weights(b: Operand, dtype: str) -> Buffer:
    return workspace(b.geometry.weight_bytes, dtype)


def _cell(size: int, dtype: str) -> Buffer:
    return T.sblock_alloc_buffer((size,), dtype)


@contextmanager
def _opaque(name: str) -> Iterator[None]:
    with T.sblock(name):
        T.reads()
        T.writes()
        yield
