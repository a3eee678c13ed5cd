"""Padded copies of the input, and the halo of the output."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm_qplugin.schedules.x86_geometry import Halo, Scratch
from tvm_qplugin.schedules.x86_isa import Buffer, Expr, Index, T, load, splat, store

SLACK = 64
PARALLEL_ELEMENTS = 64 * 1024

Piece = Callable[[Index, int], None]
Move = Callable[[Buffer, Index, Buffer, Index, int], None]


def each_piece(count: int, vector: int, write: Piece) -> None:
    """Call ``write(offset, lanes)`` over ``count`` elements: vectors, then powers of two."""
    whole = count // vector
    if whole == 1:
        write(0, vector)
    elif whole > 1:
        with T.serial(0, whole) as i:
            write(i * vector, vector)
    for offset, lanes in powers_of_two(whole * vector, count):
        write(offset, lanes)


def powers_of_two(start: int, stop: int) -> list[tuple[int, int]]:
    """Cut ``[start, stop)`` into falling powers of two: (offset, length).

    >>> powers_of_two(0, 11)
    [(0, 8), (8, 2), (10, 1)]
    """
    pieces = []
    while start < stop:
        length = 1 << ((stop - start).bit_length() - 1)
        pieces.append((start, length))
        start += length
    return pieces


def fill(buffer: Buffer, start: Index, count: int, value: Expr) -> None:
    """Write the scalar ``value`` to ``count`` elements."""

    def write(offset: Index, lanes: int) -> None:
        store(buffer, start + offset, value if lanes == 1 else splat(value, lanes), lanes)

    each_piece(count, 64, write)


def copy(source: Buffer, at: Index, buffer: Buffer, start: Index, count: int, widen: str | None) -> None:
    """Copy ``count`` elements, cast to ``widen`` if given."""

    def write(offset: Index, lanes: int) -> None:
        value = load(source, at + offset, lanes)
        if widen:
            value = T.Cast(widen if lanes == 1 else f"{widen}x{lanes}", value)
        store(buffer, start + offset, value, lanes)

    each_piece(count, 16 if widen else 64, write)


def workspace(size: int, dtype: str) -> Buffer:
    """A flat buffer of exactly ``size`` elements; call it at the top of the function."""
    buffer = T.sblock_alloc_buffer((size,), dtype)
    # An opaque use. CompactBufferAllocation would shrink the buffer to what it takes for the accessed
    # region, which under conditions on a loop's index it computes from the index itself (TVM 0.27).
    T.evaluate(buffer.data)
    return buffer


def padded_copy(scratch: Scratch, source: Buffer, dtype: str, pad: Expr, move: Move | None = None) -> Buffer:
    """A new buffer with the scratch's contents and ``SLACK`` elements behind them; borders are ``pad``.

    ``move(source, at, buffer, start, count)`` writes what is not border, if it is not to be a copy.
    """
    size = math.prod(scratch.box)
    buffer = workspace(size + SLACK, scratch.dtype)
    images, rows = scratch.box[:2]
    loop = T.parallel if size >= PARALLEL_ELEMENTS and images * rows > 1 else T.serial
    with loop(0, images * rows) as r:
        _copy_row(scratch, source, dtype, buffer, r, pad, move)
    return buffer


def _copy_row(
    s: Scratch, source: Buffer, dtype: str, buffer: Buffer, r: Index, pad: Expr, move: Move | None
) -> None:
    _, rows, columns, channels = s.box
    height, width = s.size
    start, y = r * (columns * channels), T.floormod(r, rows) + s.top

    def body() -> None:
        lead = min(max(-s.left, 0), columns)
        trail = min(max(s.left + columns - width, 0), columns - lead)
        inside = columns - lead - trail
        at = ((T.floordiv(r, rows) * height + y) * width + max(s.left, 0)) * channels
        fill(buffer, start, lead * channels, pad)
        widen, to, count = s.dtype if s.dtype != dtype else None, start + lead * channels, inside * channels
        if move is None:
            copy(source, at, buffer, to, count, widen)
        else:
            move(source, at, buffer, to, count)
        fill(buffer, start + (lead + inside) * channels, trail * channels, pad)

    if s.top >= 0 and s.top + rows <= height:
        body()
        return
    with T.If(T.And(y >= 0, y < height)):
        with T.Then():
            body()
        with T.Else():
            fill(buffer, start, columns * channels, pad)


def fill_halo(halo: Halo, out: Buffer, value: Expr) -> None:
    """Write the zero point ``value`` around the inner pixels of every image.

    The right border of a row and the left border of the next are contiguous and written together.
    """
    n, height, width, channels = halo.shape
    top, left, bottom, right = halo.border
    inner = height - top - bottom
    with T.serial(0, n) as image:
        base = image * (height * width * channels)
        fill(out, base, (top * width + left) * channels, value)
        if left + right and inner > 1:
            with T.serial(0, inner - 1) as y:
                at = base + ((y + top + 1) * width - right) * channels
                fill(out, at, (left + right) * channels, value)
        last = base + ((top + inner) * width - right) * channels
        fill(out, last, (right + bottom * width) * channels, value)


def constant(dtype: str, value: float) -> Expr:
    """A scalar immediate."""
    return T.FloatImm(dtype, value) if dtype.startswith("float") else T.IntImm(dtype, int(value))
