"""The x86 generator: register tiles of pixels x output channels, a reduction loop, an epilogue.

One parallel loop runs over all tiles; each kind of tile (sizes differ by one, the last block of channels
may be partial) is emitted once, under a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tvm.script.ir_builder import IRBuilder

from tvm_qplugin.core.attrs import KERNEL, PARAMS, Implementation, KernelCall, TensorSpec, encode_params
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.x86_border import fill_halo, padded_copy
from tvm_qplugin.schedules.x86_geometry import Axis, Geometry
from tvm_qplugin.schedules.x86_isa import (
    Buffer,
    Expr,
    Index,
    Isa,
    T,
    accumulator,
    dot_int16,
    dot_uint8,
    fma,
    load,
    splat,
    store,
)
from tvm_qplugin.schedules.x86_tiles import MIN_PARALLEL_INSTRUCTIONS, Part, Tile, balanced

UNROLLED_SPAN = 4


@dataclass(frozen=True)
class Block:
    """Tiles of ``part.size`` channel vectors; ``valid`` channels of the last vector exist."""

    part: Part
    valid: int


@dataclass(frozen=True)
class Spot:
    """One register tile: where it reads and writes."""

    source: Expr
    out: Expr
    block: Expr
    pixels: tuple[tuple[int, int], ...]
    vectors: int
    valid: int


@dataclass(frozen=True)
class Kernel:
    """What the emitting functions share."""

    isa: Isa
    tile: Tile
    geometry: Geometry
    source: Buffer
    source_dtype: str
    constant: Buffer
    out: Buffer

    def weights(self, at: Index) -> Expr:
        """The packed weights of one multiply, from element ``at``."""
        return load(self.constant, at, self.isa.lanes * self.isa.depth)

    def bias(self, block: Index) -> Expr:
        """What the accumulators of a vector of channels start from."""
        return self._channels(block, 0, self.isa.accumulator)

    def scale(self, block: Index) -> Expr:
        """Multipliers of a vector of channels."""
        return self._channels(block, 1, "float32")

    def _channels(self, block: Index, row: int, dtype: str) -> Expr:
        g, lanes = self.geometry, self.isa.lanes
        width = lanes if self.isa.depth == 1 else lanes * 4
        vectors = g.groups * g.blocks
        at = vectors * g.steps * lanes * g.depth + (block + row * vectors) * width
        value = load(self.constant, at, width)
        return value if self.isa.depth == 1 else T.reinterpret(f"{dtype}x{lanes}", value)


class Epilogue(Protocol):
    """Turns accumulators into stored results."""

    @property
    def zero_in(self) -> int:
        """Padding value of the input."""
        ...

    @property
    def zero_out(self) -> int:
        """Value of the output's halo."""
        ...

    def finish(self, kernel: Kernel, spot: Spot, acc: list[list[Buffer]]) -> None:
        """Store every accumulator of a tile."""
        ...


def implement(
    call: KernelCall, isa: Isa, geometry: Geometry, tile: Tile, epilogue: Epilogue, constant: Array
) -> Implementation:
    """The scheduled PrimFunc ``(activation, constant, output)`` and its arguments.

    ``constant`` is the packed weights, biases and multipliers (``x86_pack.join``).
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(call.name)
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        T.func_attr({KERNEL: call.name, PARAMS: encode_params(call.params)})
        _body(call, isa, geometry, tile, epilogue, constant)
    return Implementation(builder.get(), (0, constant))


def _body(
    call: KernelCall, isa: Isa, geometry: Geometry, tile: Tile, epilogue: Epilogue, constant: Array
) -> None:
    packed_spec = TensorSpec(tuple(constant.shape), str(constant.dtype))
    source, packed, out = _arguments([call.args[0], packed_spec, call.out])
    dtype = call.args[0].dtype
    if geometry.scratch:
        source = padded_copy(geometry.scratch, source, dtype, epilogue.zero_in)
        dtype = geometry.scratch.dtype
    if geometry.halo:
        fill_halo(geometry.halo, out, call.out.dtype, epilogue.zero_out)
    _walk(Kernel(isa, tile, geometry, source, dtype, packed, out), epilogue)


def _arguments(specs: Sequence[TensorSpec]) -> list[Buffer]:
    """Declare the arguments; returns flat views of them."""
    buffers = [T.arg(f"p{i}", T.buffer(spec.shape, spec.dtype)) for i, spec in enumerate(specs)]
    return [
        T.decl_buffer((spec.size,), spec.dtype, data=b.data) for b, spec in zip(buffers, specs, strict=True)
    ]


def _walk(k: Kernel, epilogue: Epilogue) -> None:
    """The loop over all tiles."""
    g = k.geometry
    images, rows, columns = (Axis(1, 0), Axis(1, 0), *g.pixels)[-3:]
    row_parts = balanced(rows.extent, k.tile.rows)
    column_parts = balanced(columns.extent, max(1, k.tile.mt // k.tile.rows))
    blocks = _blocks(g, k.tile.nt)
    n_rows, n_columns = _total(row_parts), _total(column_parts)
    n_blocks = _total([block.part for block in blocks])
    tiles, units = images.extent * n_rows * n_columns, g.groups * n_blocks
    parallel = g.instructions >= MIN_PARALLEL_INSTRUCTIONS and tiles * units > 1
    with (T.parallel if parallel else T.serial)(0, tiles * units) as t:
        unit, place = _decode(t, tiles, units, k.tile.order)
        row, column = T.floormod(T.floordiv(place, n_columns), n_rows), T.floormod(place, n_columns)
        image = T.floordiv(place, n_columns * n_rows)
        group, block_index = T.floordiv(unit, n_blocks), T.floormod(unit, n_blocks)

        def tile(block: Block, row_part: Part, column_part: Part) -> None:
            y, x = _start(row, row_part), _start(column, column_part)
            first = _start(block_index, block.part)
            spot = Spot(
                g.source_origin
                + group * g.group_step
                + (image * images.source + y * rows.source + x * columns.source),
                g.out_origin
                + (group * g.channels + first * g.lanes)
                + (image * images.out + y * rows.out + x * columns.out),
                group * g.blocks + first,
                _pixels(rows, columns, row_part.size, column_part.size),
                block.part.size,
                block.valid,
            )
            _tile(k, spot, epilogue)

        def with_block(block: Block) -> None:
            _branch(
                row,
                row_parts,
                [p.count for p in row_parts],
                lambda r: _branch(
                    column, column_parts, [p.count for p in column_parts], lambda c: tile(block, r, c)
                ),
            )

        _branch(block_index, blocks, [b.part.count for b in blocks], with_block)


def _decode(t: Expr, tiles: int, units: int, order: str) -> tuple[Expr, Expr]:
    """(unit of channels, tile of pixels) of iteration ``t``."""
    if order == "om":
        return T.floordiv(t, tiles), T.floormod(t, tiles)
    return T.floormod(t, units), T.floordiv(t, units)


def _blocks(g: Geometry, largest: int) -> list[Block]:
    """The parts of a group's channel vectors; a partial last vector gets a part of its own."""
    blocks = [Block(part, g.lanes) for part in balanced(g.blocks, largest)]
    valid = g.channels % g.lanes
    if valid:
        last = blocks.pop().part
        if last.count > 1:
            blocks.append(Block(Part(last.count - 1, last.size, last.offset), g.lanes))
        blocks.append(Block(Part(1, last.size, last.offset), valid))
    return blocks


def _total(parts: Sequence[Part]) -> int:
    return sum(part.count for part in parts)


def _start(index: Expr, part: Part) -> Expr:
    return index * part.size + part.offset


def _branch(index: Expr, parts: Sequence[Any], counts: Sequence[int], body: Callable[[Any], None]) -> None:
    """Emit ``body`` for every part, each under the condition that ``index`` lies in it."""

    def emit(i: int, stop: int) -> None:
        if i == len(parts) - 1:
            body(parts[i])
            return
        with T.If(index < stop):
            with T.Then():
                body(parts[i])
            with T.Else():
                emit(i + 1, stop + counts[i + 1])

    emit(0, counts[0])


def _pixels(rows: Axis, columns: Axis, height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Offsets (source, output) of the pixels of a tile."""
    places = [(y, x) for y in range(height) for x in range(width)]
    return tuple((y * rows.source + x * columns.source, y * rows.out + x * columns.out) for y, x in places)


def _tile(k: Kernel, spot: Spot, epilogue: Epilogue) -> None:
    with T.sblock("tile"):
        T.reads()
        T.writes()
        acc = [[accumulator(k.isa) for _ in range(spot.vectors)] for _ in spot.pixels]
        for j in range(spot.vectors):
            for row in acc:
                store(row[j], 0, k.bias(spot.block + j), k.isa.lanes)
        _reduce(k, spot, acc, k.geometry.taps, 0, 0, k.geometry.steps <= k.tile.unroll)
        if k.geometry.folds:
            _reduce_folded(k, spot, acc)
        epilogue.finish(k, spot, acc)


def _reduce(
    k: Kernel,
    spot: Spot,
    acc: list[list[Buffer]],
    taps: tuple[Axis, ...],
    offset: Index,
    step: Index,
    unroll: bool,
) -> None:
    """Loops over ``taps``, then over the span; ``step`` counts the weights' steps."""
    if taps:

        def body(i: Index) -> None:
            _reduce(k, spot, acc, taps[1:], offset + i * taps[0].source, step * taps[0].extent + i, unroll)

        _repeat(taps[0].extent, unroll, body)
        return
    g = k.geometry
    per_span = g.full_steps + g.has_tail
    short = unroll or g.full_steps <= UNROLLED_SPAN
    _repeat(g.full_steps, short, lambda i: _multiply(k, spot, acc, offset + i * g.depth, step * per_span + i))
    if g.has_tail:
        at = offset + max(g.span - g.depth, 0)
        _multiply(k, spot, acc, at, step * per_span + g.full_steps)


def _reduce_folded(k: Kernel, spot: Spot, acc: list[list[Buffer]]) -> None:
    """The last steps of a geometry that folds: one element of each tap, gathered in scalar registers."""
    g = k.geometry
    taps = range(g.outer)
    for n in range(0, g.outer, g.depth):
        offsets = [tap * g.taps[0].source + g.span - 1 for tap in taps[n : n + g.depth]]
        _multiply(k, spot, acc, offsets, g.outer * g.full_steps + n // g.depth)


def _repeat(extent: int, unroll: bool, body: Callable[[Index], None]) -> None:
    if unroll or extent <= 1:
        for i in range(extent):
            body(i)
        return
    with T.serial(0, extent) as i:
        body(i)


def _multiply(k: Kernel, spot: Spot, acc: list[list[Buffer]], offset: Index | list[int], step: Index) -> None:
    """One step of the reduction for a whole tile; ``offset`` as in ``_word``."""
    isa, width = k.isa, k.isa.lanes * k.isa.depth
    base = (spot.block * k.geometry.steps + step) * width
    for (place, _), row in zip(spot.pixels, acc, strict=True):
        activation = _broadcast(k, spot.source + place, offset)
        for j, cell in enumerate(row):
            weights = k.weights(base + j * (k.geometry.steps * width))
            store(cell, 0, _accumulate(isa, load(cell, 0, isa.lanes), activation, weights), isa.lanes)


def _broadcast(k: Kernel, at: Index, offset: Index | list[int]) -> Expr:
    """``depth`` activations in every lane."""
    isa = k.isa
    if isa.depth == 1:
        return splat(load(k.source, at + offset, 1), isa.lanes)
    word = _word(k, at, offset)
    return T.reinterpret(f"{k.source_dtype}x{isa.lanes * isa.depth}", splat(word, isa.lanes))


def _word(k: Kernel, at: Index, offset: Index | list[int]) -> Expr:
    """The activations from ``at + offset`` on as one int32, or one byte from each of several offsets."""
    if not isinstance(offset, list):
        return T.reinterpret("int32", load(k.source, at + offset, k.isa.depth))
    word = T.Cast("int32", load(k.source, at + offset[0], 1))
    for n, place in enumerate(offset[1:], 1):
        byte = T.Cast("int32", load(k.source, at + place, 1))
        word = T.bitwise_or(word, T.shift_left(byte, T.int32(8 * n)))
    return word


def _accumulate(isa: Isa, acc: Expr, activation: Expr, weights: Expr) -> Expr:
    if isa.depth == 4:
        return dot_uint8(isa, acc, activation, weights)
    if isa.depth == 2:
        return dot_int16(acc, activation, T.Cast(f"int16x{isa.lanes * 2}", weights))
    return fma(activation, weights, acc, isa.lanes)
