"""One register tile of the x86 generator: the reduction over kernel taps and input channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm_qplugin.schedules.x86_constants import Reader
from tvm_qplugin.schedules.x86_geometry import Axis, Geometry
from tvm_qplugin.schedules.x86_isa import (
    Buffer,
    Expr,
    Index,
    Isa,
    T,
    dot_int16,
    dot_pairs,
    dot_uint8,
    fma,
    load,
    splat,
    store,
)
from tvm_qplugin.schedules.x86_tiles import Tile

UNROLLED_SPAN = 4
CACHE_LINE = 64

Cells = list[list[Buffer]]


@dataclass(frozen=True)
class Spot:
    """One register tile: where it reads and writes.

    ``ahead``: the element of the weights from which it prefetches, and how many each step.
    """

    source: Expr
    out: Expr
    block: Expr
    pixels: tuple[tuple[int, int], ...]
    vectors: int
    valid: int
    ahead: tuple[Expr, int] | None = None


@dataclass(frozen=True)
class Kernel:
    """What the emitting functions share; ``residual``: a tensor in the layout of ``out`` that is added."""

    isa: Isa
    tile: Tile
    geometry: Geometry
    source: Buffer
    source_dtype: str
    constants: Reader
    out: Buffer
    residual: Buffer | None = None

    def weights(self, at: Index) -> Expr:
        """The packed weights of one multiply, from element ``at``; they stand first among the constants."""
        dtype = "float32" if self.constants.dtype == "float16" else self.constants.dtype
        return self.constants.vector("weights", at, self.isa.lanes * self.isa.depth, dtype)

    def bias(self, block: Index) -> Expr:
        """What the accumulators of a vector of channels start from."""
        return self.constants.vector("bias", block * self.isa.lanes, self.isa.lanes, self.isa.accumulator)

    def scale(self, block: Index) -> Expr:
        """Multipliers of a vector of channels."""
        return self.constants.vector("scale", block * self.isa.lanes, self.isa.lanes, "float32")


@dataclass(frozen=True)
class Part:
    """A step of groups that share a vector (``Geometry.spread``), whose inputs begin at ``offset``."""

    offset: Index
    step: int


Offset = Index | list[int] | Part
"""Where a step reads, or each single element of it."""


def reduce(k: Kernel, spot: Spot, acc: Cells) -> Cells:
    """Start every accumulator ``acc[pixel][vector]`` from its bias and add all products."""
    for j in range(spot.vectors):
        for row in acc:
            store(row[j], 0, k.bias(spot.block + j), k.isa.lanes)
    return products(k, spot, acc)


def products(k: Kernel, spot: Spot, acc: Cells) -> Cells:
    """Add all products to every accumulator."""
    if k.isa.chain:
        _chains(k, spot, acc)
        return acc
    loops(k, spot, acc, k.geometry.taps, 0, 0, k.geometry.steps <= k.tile.unroll)
    if k.geometry.folds:
        _folded_steps(k, spot, acc)
    return acc


def _chains(k: Kernel, spot: Spot, acc: Cells) -> None:
    """Steps in the order that ``x86_pairs`` proved exact: sums of a chain in int16, then in int32."""
    for j in range(spot.vectors):
        for length in range(1, k.isa.chain + 1):
            at = (spot.block + j) * k.isa.chain + (length - 1)
            start, count = (k.constants.vector(name, at, 1, "int32") for name in ("starts", "counts"))
            with T.serial(0, count) as i:
                _chain(k, spot, [row[j] for row in acc], [start + i * length + n for n in range(length)])


def _chain(k: Kernel, spot: Spot, cells: list[Buffer], steps: list[Index]) -> None:
    isa, width = k.isa, k.isa.lanes * k.isa.depth
    offsets = [k.constants.vector("offsets", step, 1, "int32") for step in steps]
    weights = [k.weights(step * width) for step in steps]
    for (place, _), cell in zip(spot.pixels, cells, strict=True):
        words = [_broadcast(k, spot.source + place, offset) for offset in offsets]
        store(cell, 0, dot_pairs(isa, load(cell, 0, isa.lanes), words, weights), isa.lanes)


def loops(
    k: Kernel,
    spot: Spot,
    acc: Cells,
    taps: tuple[Axis, ...],
    offset: Index,
    step: Index,
    unroll: bool,
) -> None:
    """Loops over ``taps``, then over the span; ``step`` counts the weights' steps."""
    if taps:

        def body(i: Index) -> None:
            loops(k, spot, acc, taps[1:], offset + i * taps[0].source, step * taps[0].extent + i, unroll)

        _repeat(taps[0].extent, unroll, body)
        return
    g = k.geometry
    per_span = g.full_steps + g.has_tail
    short = unroll or g.full_steps <= UNROLLED_SPAN
    span_steps(k, spot, acc, offset, step * per_span, g.full_steps, short)
    if g.has_tail:
        at = offset + max(g.span - g.depth, 0)
        multiply(k, spot, acc, at, step * per_span + g.full_steps)


def span_steps(
    k: Kernel, spot: Spot, acc: Cells, offset: Index, step: Index, count: int, unroll: bool
) -> None:
    """``count`` steps of a span from ``offset`` on, the first of which is the weights' ``step``."""

    def body(i: Index) -> None:
        at = Part(offset, i) if k.geometry.spread > 1 else offset + i * k.geometry.depth
        multiply(k, spot, acc, at, step + i)

    _repeat(count, unroll or k.geometry.spread > 1, body)


def _folded_steps(k: Kernel, spot: Spot, acc: Cells) -> None:
    """The last steps of a geometry that folds: one element of each tap, gathered in scalar registers."""
    g = k.geometry
    taps = range(g.outer)
    for n in range(0, g.outer, g.depth):
        offsets = [tap * g.taps[0].source + g.span - 1 for tap in taps[n : n + g.depth]]
        multiply(k, spot, acc, offsets, g.outer * g.full_steps + n // g.depth)


def _repeat(extent: int, unroll: bool, body: Callable[[Index], None]) -> None:
    if unroll or extent <= 1:
        for i in range(extent):
            body(i)
        return
    with T.serial(0, extent) as i:
        body(i)


def multiply(k: Kernel, spot: Spot, acc: Cells, offset: Offset, step: Index) -> None:
    """One step of the reduction for a whole tile."""
    isa, width = k.isa, k.isa.lanes * k.isa.depth
    base, size = spot.block * (k.geometry.steps * width), k.geometry.steps * width
    _prefetch(k, spot, step)
    last = k.geometry.last_lanes if spot.valid < isa.lanes else isa.lanes
    for (place, _), row in zip(spot.pixels, acc, strict=True):
        activation = _broadcast(k, spot.source + place, offset)
        for j, cell in enumerate(row):
            lanes = last if j == spot.vectors - 1 else isa.lanes
            weights = k.weights(base + step * (lanes * isa.depth) + j * size)
            store(cell, 0, _accumulate(isa, load(cell, 0, isa.lanes), activation, weights), isa.lanes)


def _prefetch(k: Kernel, spot: Spot, step: Index) -> None:
    """The share of one step: a hardware prefetcher does not see where the next channels' weights begin."""
    if spot.ahead is None:
        return
    start, stride = spot.ahead
    for element in range(0, stride, CACHE_LINE // k.constants.item):
        k.constants.prefetch("weights", start + step * stride + element)


def _broadcast(k: Kernel, at: Index, offset: Offset) -> Expr:
    """``depth`` activations in every lane, of each lane's group."""
    isa = k.isa
    if isinstance(offset, Part):
        return _spread(k, at + offset.offset, offset.step)
    if isa.depth == 1:
        return splat(load(k.source, at + offset, 1), isa.lanes)
    word = _word(k, at, offset)
    return T.reinterpret(f"{k.source_dtype}x{isa.lanes * isa.depth}", splat(word, isa.lanes))


def _spread(k: Kernel, at: Index, step: int) -> Expr:
    """Those of one step of the groups from ``at`` on."""
    isa, g = k.isa, k.geometry
    words, count = load(k.source, at, g.spread * g.span), g.spread * g.full_steps
    if isa.depth > 1:
        words = T.reinterpret(f"int32x{count}", words)
    outputs = g.channels // g.spread
    order = [min(lane // outputs, g.spread - 1) * g.full_steps + step for lane in range(isa.lanes)]
    chosen = T.Shuffle([words] * -(-isa.lanes // count), [T.int32(i) for i in order])
    return chosen if isa.depth == 1 else T.reinterpret(f"{k.source_dtype}x{isa.lanes * isa.depth}", chosen)


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
        return dot_int16(isa, acc, activation, T.Cast(f"int16x{isa.lanes * 2}", weights))
    return fma(activation, weights, acc, isa.lanes)
