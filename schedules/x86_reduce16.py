"""Sums that may leave int32: cut in parts that do not, which are gathered in int64."""

from __future__ import annotations

from tvm_qplugin.schedules.x86_geometry import Axis
from tvm_qplugin.schedules.x86_isa import Index, T, load, splat, store
from tvm_qplugin.schedules.x86_reduce import Cells, Kernel, Spot, loops, multiply, span_steps
from tvm_qplugin.schedules.x86_rescale16 import Cut, piece_steps


def reduce_in_parts(k: Kernel, spot: Spot, acc: Cells, cut: Cut) -> Cells:
    """Add all products; the sums in int64, without bias. ``acc`` takes up the parts."""
    lanes, taps = k.isa.lanes, k.geometry.taps
    totals = [[T.sblock_alloc_buffer((lanes,), "int64") for _ in row] for row in acc]
    for row in totals:
        for cell in row:
            store(cell, 0, splat(T.int64(0), lanes), lanes)
    if not cut.rows:
        _pieces(k, spot, acc, totals, taps, 0, 0, cut.pieces)
        return totals
    with T.serial(0, taps[0].extent) as i:
        _clear(k, acc)
        loops(k, spot, acc, taps[1:], i * taps[0].source, i, False)
        _gather(k, acc, totals)
    return totals


def _pieces(
    k: Kernel,
    spot: Spot,
    acc: Cells,
    totals: Cells,
    taps: tuple[Axis, ...],
    offset: Index,
    step: Index,
    pieces: int,
) -> None:
    """Loops over ``taps``, then over the pieces of the span; ``step`` as in ``x86_reduce.loops``."""
    if taps:
        with T.serial(0, taps[0].extent) as i:
            place, inner = offset + i * taps[0].source, step * taps[0].extent + i
            _pieces(k, spot, acc, totals, taps[1:], place, inner, pieces)
        return
    g = k.geometry
    first = step * (g.full_steps + g.has_tail)

    def piece(start: Index, count: int, tail: bool) -> None:
        _clear(k, acc)
        span_steps(k, spot, acc, offset + start * g.depth, first + start, count, False)
        if tail:
            multiply(k, spot, acc, offset + max(g.span - g.depth, 0), first + g.full_steps)
        _gather(k, acc, totals)

    *whole, (start, count) = piece_steps(g.full_steps, pieces)
    if whole:
        with T.serial(0, len(whole)) as n:
            piece(n * whole[0][1], whole[0][1], False)
    piece(start, count, g.has_tail)


def _clear(k: Kernel, acc: Cells) -> None:
    for row in acc:
        for cell in row:
            store(cell, 0, splat(T.int32(0), k.isa.lanes), k.isa.lanes)


def _gather(k: Kernel, acc: Cells, totals: Cells) -> None:
    lanes = k.isa.lanes
    for parts, sums in zip(acc, totals, strict=True):
        for part, total in zip(parts, sums, strict=True):
            wide = T.Cast(f"int64x{lanes}", load(part, 0, lanes))
            store(total, 0, load(total, 0, lanes) + wide, lanes)
