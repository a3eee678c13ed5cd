"""One register tile of a depthwise kernel: rows interleaved, one dot product for vertical taps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tvm_qplugin.core.qparams import INTEGER_RANGE
from tvm_qplugin.schedules.x86_border import constant
from tvm_qplugin.schedules.x86_constants import Reader
from tvm_qplugin.schedules.x86_depthwise_lanes import in_order, pack, unpack, widen
from tvm_qplugin.schedules.x86_depthwise_plan import (
    Blocks,
    Config,
    Source,
    Taps,
    WeightPlan,
    Window,
    group_depth,
    lead,
    operand_taps,
    plane_size,
    row_groups,
    slot,
    taps,
    unit_step,
    weight_dtype,
)
from tvm_qplugin.schedules.x86_epilogue16 import Section, pack_words, rescaled
from tvm_qplugin.schedules.x86_isa import (
    Buffer,
    Expr,
    Isa,
    T,
    accumulator,
    dot_int16,
    dot_uint8,
    fma,
    load,
    pack_int16,
    round_to_int32,
    splat,
    store,
)

INNER_BYTES = 16 * 1024


@dataclass(frozen=True)
class FloatClamp:
    """Clamp to ``[lo, hi]``; None: unbounded."""

    lo: float | None
    hi: float | None


class Ends(Protocol):
    """How sums start and what becomes of them, where that is not requantization or a clamp."""

    def start(self, section: Section) -> Expr:
        """What a vector of sums starts from."""

    def finish(self, sections: list[Section], acc: list[Buffer], out: Buffer, at: Expr) -> None:
        """Store the vectors of sums that belong together from element ``at`` on."""


@dataclass(frozen=True)
class Kernel:
    """What the emitting functions share; buffers are flat."""

    isa: Isa
    window: Window
    config: Config
    blocks: Blocks
    source: Source
    plan: WeightPlan
    dtype: str
    cores: int
    clamp: FloatClamp | None = None
    ends: Ends | None = None
    maximum: bool = False

    @property
    def pinned(self) -> bool:
        """Whether constants are read at a run-time offset of zero.

        Where all vectors of a loop need the same, LLVM would hoist them out of it and then spill them.
        """
        return (self.blocks.per_period == 1 or self.by_vector) and not self.blocks.uniform

    @property
    def by_vector(self) -> bool:
        """Whether a row is walked along for one vector of a period after the other: its weights stay near."""
        size = plane_size(self.window, self.blocks, self.isa, self.plan) * len(self.plan.planes)
        return size * np.dtype(weight_dtype(self.isa)).itemsize > INNER_BYTES


@dataclass(frozen=True)
class Buffers:
    """Flat views of the arguments."""

    x: Buffer
    constants: Reader
    y: Buffer


@dataclass(frozen=True)
class Spot:
    """One tile: first element read, first element written, first unit of constants."""

    source: Buffer
    at: Expr
    out: Expr
    unit: Expr
    columns: int


def emit_tile(k: Kernel, buffers: Buffers, spot: Spot) -> None:
    """``rows`` x ``columns`` output vectors: walk over the input columns, finish outputs as they complete."""
    w, isa, b = k.window, k.isa, k.blocks
    places = _places(k, spot.columns)
    with T.sblock("tile"):
        T.reads()
        T.writes()
        acc = [
            [[accumulator(isa) for _ in range(isa.fanout)] for _ in range(spot.columns)]
            for _ in range(k.config.rows)
        ]
        operands = _operand_buffers(k)
        started: set[tuple[int, int]] = set()
        left = [w.kernel[1]] * spot.columns
        for at in sorted(places):
            for group in row_groups(w, k.config.rows, group_depth(isa)):
                _interleave(k, spot, operands, at, group)
                for m, kw in places[at]:
                    for row in range(k.config.rows):
                        _accumulate(
                            k, buffers, spot, acc[row][m], operands, group, row, kw, (row, m) not in started
                        )
                        started.add((row, m)) if _meets(k, group, row) else None
            for m, _ in places[at]:
                left[m] -= 1
                if left[m] == 0:
                    for row in range(k.config.rows):
                        out = spot.out + row * (w.out[2] * w.channels) + m * b.period
                        _finish(k, buffers, spot, acc[row][m], out)


def _places(k: Kernel, columns: int) -> dict[int, list[tuple[int, int]]]:
    """For every input column of a tile (an offset): which (output column, kernel column) meet there."""
    stride = k.blocks.period * k.source.step // k.window.channels
    places: dict[int, list[tuple[int, int]]] = {}
    for m in range(columns):
        for kw in range(k.window.kernel[1]):
            at = m * stride + k.source.column(kw * k.window.dilation[1], k.window.channels)
            places.setdefault(at, []).append((m, kw))
    return places


def emit_max_tile(k: Kernel, buffers: Buffers, spot: Spot) -> None:
    """``rows`` x ``columns`` vectors of bytes, each the maximum of its window."""
    w, width, q = k.window, k.isa.bytes, buffers.constants
    outputs = [(row, m) for row in range(k.config.rows) for m in range(spot.columns)]
    with T.sblock("tile"):
        T.reads()
        T.writes()
        acc = {output: T.sblock_alloc_buffer((width,), k.dtype) for output in outputs}
        for cell in acc.values():
            store(cell, 0, splat(constant(k.dtype, INTEGER_RANGE[k.dtype][0]), width), width)
        for at, meeting in sorted(_places(k, spot.columns).items()):
            for group in row_groups(w, k.config.rows, 1):
                value = load(spot.source, spot.at + (at + group[0] * k.source.pitch), width)
                for row, cell in [(row, acc[row, m]) for row in range(k.config.rows) for m, _ in meeting]:
                    if taps(w, group, row, 1) != (None,):
                        store(cell, 0, T.max(load(cell, 0, width), value), width)
        for (row, m), cell in acc.items():
            out = spot.out + row * (w.out[2] * w.channels) + m * k.blocks.period
            store(buffers.y, out, q.clamped(load(cell, 0, width), k.dtype, width), width)


def _meets(k: Kernel, group: list[int], row: int) -> bool:
    return any(tap is not None for tap in taps(k.window, group, row, group_depth(k.isa)))


def _operand_buffers(k: Kernel) -> list[list[Buffer]]:
    """``[fanout][instructions a group]`` buffers of one vector each."""
    isa = k.isa
    width = isa.lanes * isa.depth
    dtype = {1: "float32", 2: "int16", 4: "uint8"}[isa.depth]
    parts = max(1, group_depth(isa) // isa.depth)
    return [[T.sblock_alloc_buffer((width,), dtype) for _ in range(parts)] for _ in range(isa.fanout)]


def _interleave(k: Kernel, spot: Spot, operands: list[list[Buffer]], at: int, group: list[int]) -> None:
    """Load a group of input rows at one column and bring the values of each channel together."""
    isa = k.isa
    lanes = isa.lanes
    rows = [spot.at + (at + row * k.source.pitch) for row in group]
    if isa.depth == 1:
        for g in range(isa.fanout):
            store(operands[g][0], 0, load(spot.source, rows[0] + g * lanes, lanes), lanes)
        return
    rows += [rows[-1]] * (group_depth(isa) - len(rows))
    if isa.weights == "int16":
        pair = [load(spot.source, row, isa.bytes // 2) for row in rows]
        for g in range(isa.fanout):
            store(operands[g][0], 0, unpack(pair[0], pair[1], isa.bytes // 2, 8, g), isa.bytes // 2)
        return
    loaded = [load(spot.source, row, isa.bytes) for row in rows]
    for g in range(isa.fanout):
        upper = unpack(loaded[0], loaded[1], isa.bytes, 16, g // 2)
        lower = unpack(loaded[2], loaded[3], isa.bytes, 16, g // 2)
        pairs = [T.reinterpret(f"int16x{isa.bytes // 2}", v) for v in (upper, lower)]
        words = unpack(pairs[0], pairs[1], isa.bytes // 2, 8, g % 2)
        if isa.depth == 4:
            store(operands[g][0], 0, T.reinterpret(f"uint8x{isa.bytes}", words), isa.bytes)
        else:
            widen(words, operands[g], k.dtype, isa.bytes // 2)


def _accumulate(
    k: Kernel,
    buffers: Buffers,
    spot: Spot,
    acc: list[Buffer],
    operands: list[list[Buffer]],
    group: list[int],
    row: int,
    kw: int,
    first: bool,
) -> None:
    """Add one input column times the taps of one output row; the first addition starts from the bias."""
    isa, depth = k.isa, group_depth(k.isa)
    width = isa.lanes * isa.depth
    for part, needed in enumerate(operand_taps(isa, taps(k.window, group, row, depth))):
        if needed not in k.plan.where:
            continue
        for g in range(isa.fanout):
            weights = _weights(k, buffers, spot, needed, g, kw)
            start = _start(k, buffers, spot, g) if first else load(acc[g], 0, isa.lanes)
            store(acc[g], 0, _multiply(isa, start, load(operands[g][part], 0, width), weights), isa.lanes)
        first = False


def _start(k: Kernel, buffers: Buffers, spot: Spot, g: int) -> Expr:
    section = _section(k, buffers, spot, g)
    return k.ends.start(section) if k.ends else section("bias", k.isa.accumulator)


def _weights(k: Kernel, buffers: Buffers, spot: Spot, needed: Taps, g: int, kw: int) -> Expr:
    """The weights of one multiply instruction; ones where all channels have the same."""
    isa, dtype = k.isa, weight_dtype(k.isa)
    width = isa.lanes * isa.depth
    if k.blocks.uniform:
        bits = 32 // isa.depth
        ones = sum(1 << bits * t for t, tap in enumerate(needed) if tap is not None)
        return T.reinterpret(f"{dtype}x{width}", splat(T.int32(ones), isa.lanes))
    plane, shift = k.plan.where[needed]
    start = plane * plane_size(k.window, k.blocks, isa, k.plan) + lead(isa, k.plan) - shift
    at = spot.unit * (unit_step(isa) * isa.depth) + (slot(k.blocks, isa, g, kw) * isa.depth + start)
    return buffers.constants.vector("weights", at, width, dtype)


def _section(k: Kernel, buffers: Buffers, spot: Spot, g: int) -> Section:
    """The values for vector ``g`` by section."""
    return lambda name, dtype: _channels(k, buffers, spot, name, g, dtype)


def _channels(k: Kernel, buffers: Buffers, spot: Spot, name: str, g: int, dtype: str) -> Expr:
    """One value a channel: biases or multipliers."""
    if k.blocks.uniform:
        return buffers.constants.repeated(name, dtype, k.isa.lanes)
    at = spot.unit * unit_step(k.isa) + slot(k.blocks, k.isa, g)
    return buffers.constants.vector(name, at, k.isa.lanes, dtype)


def _multiply(isa: Isa, acc: Expr, activations: Expr, weights: Expr) -> Expr:
    if isa.depth == 4:
        return dot_uint8(isa, acc, activations, weights)
    if isa.depth == 2:
        return dot_int16(isa, acc, activations, weights)
    return fma(activations, weights, acc, isa.lanes)


def _finish(k: Kernel, buffers: Buffers, spot: Spot, acc: list[Buffer], out: Expr) -> None:
    """Requantize or clamp one block and store it."""
    isa, constants = k.isa, buffers.constants
    if k.ends:
        sections = [_section(k, buffers, spot, g) for g in range(isa.fanout)]
        k.ends.finish(sections, acc, buffers.y, out)
        return
    if isa.weights == "int16":
        two = [rescaled(isa, constants, _section(k, buffers, spot, g), acc[g]) for g in range(isa.fanout)]
        store(buffers.y, out, pack_words(constants, two, isa), isa.bytes // 2)
        return
    if k.clamp:
        for g in range(isa.fanout):
            value = _clamp(k.clamp, load(acc[g], 0, isa.lanes), isa.lanes)
            store(buffers.y, out + g * isa.lanes, value, isa.lanes)
        return
    rounded = []
    for g in range(isa.fanout):
        scale = _channels(k, buffers, spot, "scale", g, "float32")
        value = T.Cast(f"float32x{isa.lanes}", load(acc[g], 0, isa.lanes)) * scale
        if constants.has("limit"):
            value = T.min(value, constants.repeated("limit", "float32", isa.lanes))
        if constants.has("offset"):
            value = value + constants.repeated("offset", "float32", isa.lanes)
        rounded.append(round_to_int32(value, isa))
    halves = [pack_int16(rounded[0], rounded[1], isa), pack_int16(rounded[2], rounded[3], isa)]
    if str(buffers.y.dtype) == "int16":
        for n, words in enumerate(in_order(halves, isa.bytes // 2)):
            at = out + n * (isa.bytes // 2)
            store(buffers.y, at, constants.clamped(words, "int16", isa.bytes // 2), isa.bytes // 2)
        return
    store(buffers.y, out, pack(constants, halves, str(buffers.y.dtype), isa), isa.bytes)


def _clamp(q: FloatClamp, value: Expr, lanes: int) -> Expr:
    if q.hi is not None:
        value = T.min(value, splat(T.float32(q.hi), lanes))
    return value if q.lo is None else T.max(value, splat(T.float32(q.lo), lanes))
