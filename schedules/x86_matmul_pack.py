"""The second operand of a matrix product as the multiply reads it: ``[groups * blocks, steps, lanes, 4]``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm_qplugin.core.qparams import centre
from tvm_qplugin.schedules.x86_border import workspace
from tvm_qplugin.schedules.x86_geometry import Geometry
from tvm_qplugin.schedules.x86_isa import (
    Buffer,
    Expr,
    Index,
    Isa,
    T,
    load,
    round_to_int32,
    select_lanes,
    splat,
    store,
)

PARALLEL_BYTES = 64 * 1024
Row = Callable[[Index], Expr]


@dataclass(frozen=True)
class Operand:
    """Matrices ``[groups, span, channels]`` in a flat buffer."""

    isa: Isa
    geometry: Geometry
    buffer: Buffer

    @property
    def columns(self) -> int:
        """Columns of all groups, vectors filled up."""
        return self.geometry.groups * self.geometry.blocks * self.isa.lanes

    def row(self, group: Expr, block: Expr, valid: int) -> Row:
        """Reads 16 (or 8) columns of a row; of a partial vector those that it has."""
        g, lanes = self.geometry, self.isa.lanes
        start = block * lanes if valid == lanes else g.channels - lanes
        order = [min(lanes - valid + lane, lanes - 1) for lane in range(lanes)]

        def read(k: Index) -> Expr:
            value = load(self.buffer, (group * g.span + k) * g.channels + start, lanes)
            return value if valid == lanes else select_lanes(value, order)

        return read

    def every(self, emit: Callable[[Expr, Row], None]) -> None:
        """Call ``emit(vector, row)`` for all vectors of columns, in one loop over the groups."""
        g, lanes = self.geometry, self.isa.lanes
        whole = g.channels // lanes
        parallel = g.groups > 1 and g.weight_bytes >= PARALLEL_BYTES
        with (T.parallel if parallel else T.serial)(0, g.groups) as group:
            with T.serial(0, whole) as block, T.sblock("pack"):
                _opaque()
                emit(group * g.blocks + block, self.row(group, block, lanes))
            if g.channels % lanes:
                with T.sblock("pack_last"):
                    _opaque()
                    emit(group * g.blocks + whole, self.row(group, T.int32(whole), g.channels % lanes))


def packed_integers(b: Operand, zero: int) -> dict[str, Buffer]:
    """Of uint8 codes: ``weights``, and as ``bias`` what the zero point of the first operand takes away."""
    lanes = b.isa.lanes
    found = {"weights": _weights(b), "bias": workspace(b.columns, "int32")}

    def emit(vector: Expr, row: Row) -> None:
        def code(k: Index) -> Expr:
            return T.Cast(f"int32x{lanes}", row(k)) - splat(T.int32(centre("uint8")), lanes)

        sums = _pack(b, found["weights"], vector, code)
        store(found["bias"], vector * lanes, load(sums, 0, lanes) * splat(T.int32(-zero), lanes), lanes)

    b.every(emit)
    return found


def packed_floats(b: Operand) -> dict[str, Buffer]:
    """Of floats, each column symmetric: ``weights``, ``sums`` of codes, and ``scale``."""
    isa, lanes = b.isa, b.isa.lanes
    found = {
        "weights": _weights(b),
        "sums": workspace(b.columns, "int32"),
        "scale": workspace(b.columns, "float32"),
    }

    def emit(vector: Expr, row: Row) -> None:
        inverse = _inverse(b, row)
        one = splat(T.float32(1), lanes)
        store(found["scale"], vector * lanes, one / load(inverse, 0, lanes), lanes)

        def code(k: Index) -> Expr:
            return round_to_int32(row(k) * load(inverse, 0, lanes), isa)

        sums = _pack(b, found["weights"], vector, code)
        store(found["sums"], vector * lanes, load(sums, 0, lanes), lanes)

    b.every(emit)
    return found


def packed_words(b: Operand) -> dict[str, Buffer]:
    """Of int16 codes: ``weights``, for every vector of columns one of low and one of high bytes."""
    g, lanes = b.geometry, b.isa.lanes
    weights = workspace(2 * g.weight_bytes, "int16")

    def emit(vector: Expr, row: Row) -> None:
        def write(step: Index, codes: list[Expr]) -> None:
            low = [T.bitwise_and(code, splat(T.int32(255), lanes)) for code in codes]
            high = [T.shift_right(code, splat(T.int32(8), lanes)) for code in codes]
            for part, values in enumerate((low, high)):
                at = ((vector * 2 + part) * g.steps + step) * (lanes * g.depth)
                store(weights, at, _joined(b, values, "int16"), lanes * g.depth)

        _steps(g, lambda k: T.Cast(f"int32x{lanes}", row(k)), write)

    b.every(emit)
    return {"weights": weights}


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


def _pack(b: Operand, weights: Buffer, vector: Expr, code: Row) -> Buffer:
    """Write all steps of a vector of columns in bytes; gives the sums of its codes."""
    g, lanes = b.geometry, b.isa.lanes
    sums = T.sblock_alloc_buffer((lanes,), "int32")
    store(sums, 0, splat(T.int32(0), lanes), lanes)

    def write(step: Index, codes: list[Expr]) -> None:
        for value in codes:
            store(sums, 0, load(sums, 0, lanes) + value, lanes)
        at = (vector * g.steps + step) * (lanes * g.depth)
        store(weights, at, _joined(b, codes, "int8"), lanes * g.depth)

    _steps(g, code, write)
    return sums


def _steps(g: Geometry, code: Row, write: Callable[[Index, list[Expr]], None]) -> None:
    """Call ``write(step, codes)`` for all steps; of an overlapping one with what no other has."""
    with T.serial(0, g.full_steps) as step:
        write(step, [code(step * g.depth + i) for i in range(g.depth)])
    if g.has_tail:
        write(g.full_steps, [code(k) for k in range(g.full_steps * g.depth, g.span)])


def _joined(b: Operand, codes: list[Expr], dtype: str) -> Expr:
    """The low parts of int32 vectors as elements side by side; zeros in front of fewer than ``depth``."""
    lanes, depth = b.isa.lanes, b.geometry.depth
    bits = 32 // depth
    word = splat(T.int32(0), lanes)
    for place, value in enumerate(codes, depth - len(codes)):
        part = T.bitwise_and(value, splat(T.int32((1 << bits) - 1), lanes))
        word = T.bitwise_or(word, T.shift_left(part, splat(T.int32(bits * place), lanes)))
    return T.reinterpret(f"{dtype}x{lanes * depth}", word)


def _weights(b: Operand) -> Buffer:
    return workspace(b.geometry.weight_bytes, "int8")


def _opaque() -> None:
    T.reads()
    T.writes()
