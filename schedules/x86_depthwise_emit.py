"""The loops of a depthwise kernel: chunks of rows in parallel, tiles along a row."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm_qplugin.core.attrs import INSTRUCTION, Implementation, KernelCall, TensorSpec
from tvm_qplugin.core.qparams import INTEGER_RANGE
from tvm_qplugin.schedules.primfunc import arguments, function
from tvm_qplugin.schedules.x86_border import fill_halo
from tvm_qplugin.schedules.x86_constants import Constants
from tvm_qplugin.schedules.x86_depthwise_plan import unit_size
from tvm_qplugin.schedules.x86_depthwise_stage import stage_rows
from tvm_qplugin.schedules.x86_depthwise_tile import Buffers, Kernel, Spot, emit_max_tile, emit_tile
from tvm_qplugin.schedules.x86_geometry import Halo
from tvm_qplugin.schedules.x86_isa import INSTRUCTIONS, Buffer, Expr, Index, T

# A parallel launch costs about 1.6 us: as long as so many multiply instructions take two cores.
SERIAL_INSTRUCTIONS = 12_500


def implement(call: KernelCall, kernel: Kernel, constants: Constants) -> Implementation:
    """The scheduled PrimFunc ``(activation[, constants], output)`` and its arguments."""
    data = [constants.data] if constants.starts else []
    specs = [call.args[0], *(TensorSpec(c.shape, str(c.dtype)) for c in data), call.out]
    with function(call) as builder:
        x, *packed, y = arguments(specs)
        chunks(kernel, Buffers(x, constants.reader(packed[0] if packed else None), y))
    func = builder.get()
    if not kernel.maximum:
        func = func.with_attr(INSTRUCTION, INSTRUCTIONS[kernel.isa.name])
    return Implementation(func, (0, *data))


def chunks(k: Kernel, buffers: Buffers) -> None:
    """The loop over chunks of rows, all of the kernel."""
    w, dtype = k.window, str(buffers.y.dtype)
    if any(w.halo):
        fill_halo(Halo(w.out, w.halo), buffers.y, buffers.constants.scalar("fill_out", dtype))
    height, chunk = w.size[0], k.config.chunk
    count = -(-height // chunk)
    extent = w.source[0] * count
    instructions = w.macs // (k.isa.lanes * k.isa.depth)
    parallel = k.cores > 1 and extent > 1 and instructions >= SERIAL_INSTRUCTIONS
    with (T.parallel if parallel else T.serial)(0, extent) as i:
        with T.sblock("chunk"):
            T.reads()
            T.writes()
            image = T.floordiv(i, count) if w.source[0] > 1 else T.int32(0)
            first = _clipped(T.floormod(i, count) if w.source[0] > 1 else i, chunk, height)
            _chunk(k, buffers, image, first)


def _clipped(index: Expr, step: int, extent: int) -> Expr:
    """``index * step``, moved back where ``step`` elements from there on would leave ``extent``."""
    return index * step if extent % step == 0 else T.min(index * step, extent - step)


def _chunk(k: Kernel, buffers: Buffers, image: Expr, first: Expr) -> None:
    """``chunk`` output rows from ``first`` on."""
    w, s, rows = k.window, k.source, k.config.rows
    source, base = buffers.x, image * (w.source[1] * s.pitch) + first * (w.strides[0] * s.pitch) + s.origin
    if k.config.stage:
        pad = buffers.constants.scalar("fill_in", k.dtype, INTEGER_RANGE[k.dtype][0] if k.maximum else 0)
        source, base = stage_rows(w, k.config, s, buffers.x, k.dtype, pad, image, first), T.int32(0)
    top, left = w.halo[:2]
    pitch = w.out[2] * w.channels
    out = (image * w.out[1] + first + top) * pitch + left * w.channels
    groups = -(-k.config.chunk // rows)

    def group(g: Index) -> None:
        row = g * rows if k.config.chunk % rows == 0 else T.min(g * rows, k.config.chunk - rows)
        _row(k, buffers, source, base + row * (w.strides[0] * s.pitch), out + row * pitch)

    _loop(groups, group)


def _loop(extent: int, body: Callable[[Index], None]) -> None:
    if extent == 1:
        body(T.int32(0))
    elif extent > 1:
        with T.serial(0, extent) as i:
            body(i)


def _row(k: Kernel, buffers: Buffers, source: Buffer, base: Expr, out: Expr) -> None:
    """All tiles of ``rows`` output rows."""
    b, w = k.blocks, k.window
    vector = k.isa.fanout * k.isa.lanes
    emit = emit_max_tile if k.maximum else emit_tile
    stride = b.period * k.source.step // w.channels

    def tile(group: Index, v: Index, turn: Index, columns: int) -> None:
        start = v * vector
        if k.config.mode == "block" and w.channels % vector:
            start = T.min(start, w.channels - vector)
        at, to = base + group * stride + start, out + group * b.period + start
        emit(k, buffers, Spot(source, at, to, turn if b.uniform else _unit(k, v) + turn, columns))

    done = 0
    for count, columns in balanced(b.groups, k.config.columns):
        _tiles(k, buffers, count, done, columns, tile)
        done += count * columns
    _loop(b.rest, lambda v: tile(b.groups, v, 0, 1))
    if b.tail:
        last = w.size[1] * w.channels - vector
        emit(k, buffers, Spot(source, base + last, out + last, T.int32(b.tail_unit), 1))


def _unit(k: Kernel, v: Index) -> Index:
    """The first unit of constants that vector ``v`` of a period reads: ``Blocks.where`` as a formula."""
    where, step = k.blocks.where, k.isa.fanout * k.isa.lanes // unit_size(k.isa)
    plain = [i * step for i in range(len(where))]
    if list(where) == plain:
        return v * step
    if list(where) == [min(i, where[-1]) for i in plain]:
        return T.min(v * step, T.int32(where[-1]))
    wrap = math.lcm(k.window.channels, unit_size(k.isa)) // unit_size(k.isa)
    assert list(where) == [i % wrap for i in plain]
    return T.floormod(v * step, wrap)


def _tiles(
    k: Kernel,
    buffers: Buffers,
    count: int,
    done: int,
    columns: int,
    tile: Callable[[Index, Index, Index, int], None],
) -> None:
    """All vectors of ``count`` x ``columns`` periods."""

    def at(x: Index, v: Index) -> None:
        turn = x * buffers.constants.word("nothing") if k.pinned else T.int32(0)
        tile(x * columns + done, v, turn, columns)

    if k.by_vector:
        _loop(k.blocks.per_period, lambda v: _loop(count, lambda x: at(x, v)))
    else:
        _loop(count, lambda x: _loop(k.blocks.per_period, lambda v: at(x, v)))


def balanced(extent: int, largest: int) -> list[tuple[int, int]]:
    """Cut ``extent`` in parts of at most ``largest`` that differ by at most one: (count, size).

    >>> balanced(17, 4)
    [(2, 4), (3, 3)]
    """
    if extent == 0:
        return []
    parts = -(-extent // largest)
    size, longer = divmod(extent, parts)
    return [(n, length) for n, length in ((longer, size + 1), (parts - longer, size)) if n]
