"""A padded copy of the input rows under a few output rows, small enough for the inner caches."""

from __future__ import annotations

from tvm_qplugin.schedules.x86_border import copy, each_piece, fill, workspace
from tvm_qplugin.schedules.x86_depthwise_plan import Config, Source, Window
from tvm_qplugin.schedules.x86_isa import Buffer, Expr, Index, T, load, splat, store

REPEATED = 64  # elements that are written at a time


def stage_rows(
    w: Window, c: Config, s: Source, x: Buffer, dtype: str, pad: Expr, image: Expr, first: Expr
) -> Buffer:
    """Allocate and fill the scratch for ``chunk`` output rows from ``first`` on, ``pad`` around them."""
    scratch, height = workspace(s.rows * s.pitch, dtype), w.source[1]
    with T.serial(0, s.rows) as r:
        y = first * w.strides[0] + r - w.top
        at = (image * height + y) * (w.source[2] * w.channels // w.repeat)
        if w.top <= 0 and w.span(0, w.size[0]) - w.top <= height:
            _stage_row(w, s, x, at, scratch, r * s.pitch, pad)
        else:
            with T.If(T.And(y >= 0, y < height)):
                with T.Then():
                    _stage_row(w, s, x, at, scratch, r * s.pitch, pad)
                with T.Else():
                    fill(scratch, r * s.pitch, s.pitch, pad)
    return scratch


def _stage_row(w: Window, s: Source, x: Buffer, at: Expr, scratch: Buffer, start: Expr, pad: Expr) -> None:
    """One row, split in planes by column where the kernel asks for it."""
    channels, width = w.channels, w.source[2]
    if s.planes == 1:
        columns = s.pitch // channels
        lead, stop = _inside(columns, width, 1, 0, w.left)
        fill(scratch, start, lead * channels, pad)
        _copy(w, x, at, lead - w.left, scratch, start + lead * channels, stop - lead)
        fill(scratch, start + stop * channels, (columns - stop) * channels, pad)
        return
    columns = s.plane // channels
    for plane in range(s.planes):
        to = start + plane * s.plane
        lead, stop = _inside(columns, width, s.planes, plane, w.left)
        fill(scratch, to, lead * channels, pad)
        if stop > lead:
            with T.serial(0, stop - lead) as i:
                column: Index = (i + lead) * s.planes + (plane - w.left)
                _copy(w, x, at, column, scratch, to + (i + lead) * channels, 1)
        fill(scratch, to + stop * channels, (columns - stop) * channels, pad)


def _copy(w: Window, x: Buffer, row: Expr, column: Index, scratch: Buffer, to: Index, count: int) -> None:
    """``count`` pixels from a column on; ``row``: where the row begins."""
    channels = w.channels // w.repeat
    at = row + column * channels
    if w.repeat == 1:
        copy(x, at, scratch, to, count * channels, None)
        return

    def write(offset: Index, lanes: int) -> None:
        value = load(x, at + offset, lanes)
        order = [T.int32(i // w.repeat) for i in range(lanes * w.repeat)]
        repeated = splat(value, w.repeat) if lanes == 1 else T.Shuffle([value] * w.repeat, order)
        store(scratch, to + offset * w.repeat, repeated, lanes * w.repeat)

    each_piece(count * channels, 1 << max(0, (REPEATED // w.repeat).bit_length() - 1), write)


def _inside(columns: int, width: int, planes: int, plane: int, left: int) -> tuple[int, int]:
    """Scratch columns ``[lead, stop)`` of a plane that the input has."""
    lead = min(max(-((plane - left) // planes), 0), columns)
    stop = (width - 1 + left - plane) // planes + 1
    return lead, min(max(stop, lead), columns)
