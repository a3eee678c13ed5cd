"""Register tiles: the knobs of the x86 generators, and how they are chosen from a shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tvm_qplugin.schedules.x86_isa import Isa

L1_BYTES = 32 * 1024
STREAMED = 3.0  # multiply slots that a vector of weights costs from L2; 1.1 from L1
MIN_PARALLEL_INSTRUCTIONS = 12_000
LATENCY = 10.0  # two multiply units, five cycles each; short reductions overlap with the next tile
MOST_PIXELS = 16
SINGLE_UNROLL = 32  # steps of a single pixel written out: nothing but loads of weights decides there
TILE_OVERHEAD = 4.0
EPILOGUE = 4.0
KIND_PENALTY = 0.015  # every kind of tile is emitted once more: a little slower is better than much larger


@dataclass(frozen=True)
class Tile:
    """Knobs of one kernel.

    At most ``mt`` pixels (of ``rows`` rows) x ``nt`` vectors of output channels are accumulated in
    registers. ``order``: "om" walks the pixels for each block of channels, "mo" the blocks for each tile
    of pixels. A reduction of at most ``unroll`` steps is written out in full.
    """

    mt: int
    nt: int
    order: str = "om"
    rows: int = 1
    unroll: int = 4


@dataclass(frozen=True)
class Shape:
    """What the choice of a tile depends on: pixels as (rows, columns), blocks a group, steps of K.

    ``crowded``: the loop body is long enough for LLVM to want a third of the registers for itself.
    """

    rows: int
    columns: int
    blocks: int
    steps: int
    crowded: bool = False


@dataclass(frozen=True)
class Part:
    """``count`` tiles of ``size``; tile number t of the whole starts at ``t * size + offset``.

    ``valid``: of a tile of channel vectors, how many channels of the last vector exist; 0: all.
    """

    count: int
    size: int
    offset: int
    valid: int = 0


def balanced(extent: int, largest: int) -> list[Part]:
    """Cut ``extent`` into tiles of at most ``largest`` whose sizes differ by at most one.

    >>> [(part.count, part.size, part.offset) for part in balanced(35, 14)]
    [(2, 12, 0), (1, 11, 2)]
    """
    tiles = -(-extent // largest)
    small, bigger = divmod(extent, tiles)
    parts = [Part(bigger, small + 1, 0), Part(tiles - bigger, small, bigger)]
    return [part for part in parts if part.count]


def fits(isa: Isa, mt: int, nt: int, crowded: bool = False) -> bool:
    """Whether accumulators, weights and temporaries of a tile stay in registers."""
    return mt * nt + nt + isa.scratch + crowded * isa.registers // 3 <= isa.registers


def estimate(isa: Isa, shape: Shape, tile: Tile) -> float:
    """Multiply slots of the whole kernel, by a model of the multiply units and load ports.

    The epilogue of a small tile overlaps better with the next tile's multiplications.
    """
    total, kinds = 0.0, 0
    for rows in balanced(shape.rows, tile.rows):
        for columns in balanced(shape.columns, max(1, tile.mt // tile.rows)):
            for blocks in balanced(shape.blocks, tile.nt):
                count = rows.count * columns.count * blocks.count
                kinds += 1
                total += count * _tile_cycles(isa, shape.steps, rows.size * columns.size, blocks.size)
    return total * (1 + KIND_PENALTY * kinds)


def _tile_cycles(isa: Isa, steps: int, mt: int, nt: int) -> float:
    work = mt * nt
    load = 1.1 if nt * steps * isa.bytes <= 2 * L1_BYTES else STREAMED
    step = max(float(work), 0.6 * mt + load * nt, min(LATENCY, steps / 2)) + 0.05 * (mt + nt)
    return steps * step + EPILOGUE * work * (1 + 0.01 * work) + TILE_OVERHEAD


def default_tile(isa: Isa, shape: Shape, weight_bytes: int) -> Tile:
    """The tile of least estimated cost."""
    order = "mo" if weight_bytes <= L1_BYTES else "om"
    best = min(_tiles(isa, shape, order), key=lambda tile: (estimate(isa, shape, tile), -tile.nt))
    return replace(best, unroll=SINGLE_UNROLL) if shape.rows * shape.columns == 1 else best


def candidate_tiles(isa: Isa, shape: Shape, weight_bytes: int, limit: int = 24) -> list[Tile]:
    """The default first, then others by increasing estimated cost, in both orders."""
    first = default_tile(isa, shape, weight_bytes)
    other = "om" if first.order == "mo" else "mo"
    tiles = [tile for order in (first.order, other) for tile in _tiles(isa, shape, order)]
    ranked = sorted(tiles, key=lambda tile: (estimate(isa, shape, tile), tile.order != first.order))
    return [first, *[tile for tile in ranked if tile != first]][:limit]


def _tiles(isa: Isa, shape: Shape, order: str) -> Iterator[Tile]:
    vectors = 1 if isa.chain else min(shape.blocks, 8)  # each vector has chains of its own
    for nt in (n for n in range(1, vectors + 1) if fits(isa, 1, n, shape.crowded)):
        largest = next(m for m in range(MOST_PIXELS, 0, -1) if fits(isa, m, nt, shape.crowded))
        for mt, rows in _pixel_tiles(shape, largest):
            yield Tile(mt, nt, order, rows)


def _pixel_tiles(shape: Shape, largest: int) -> Sequence[tuple[int, int]]:
    """Useful (pixels, rows): those that change how many tiles are needed, and whole rows at once."""
    sizes = {balanced(shape.columns, m)[0].size for m in range(1, largest + 1)}
    single = [(m, 1) for m in sorted(sizes)]
    whole = [(rows * shape.columns, rows) for rows in range(2, min(shape.rows, largest // shape.columns) + 1)]
    return single + whole
