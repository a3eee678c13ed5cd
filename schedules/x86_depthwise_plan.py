"""Numbers of a depthwise kernel: where vectors lie, which weights they need, how constants are packed.

A row of the output is a flat run of ``width * channels`` elements, cut in vectors ("blocks"). In mode
``block`` they belong to one pixel each (the last one overlaps its neighbour where the channels do not
divide); in mode ``flat`` they run on over pixels, with weights repeated to a common period.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvm_qplugin.core.attrs import KernelCall
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.x86_isa import Isa

Taps = tuple[int | None, ...]


@dataclass(frozen=True)
class Config:
    """Knobs: how rows are cut (``mode``), output ``rows`` and ``columns`` of a tile.

    ``stage`` copies the input of ``chunk`` output rows into a padded scratch; it is needed where the border
    is not in memory.
    """

    mode: str
    rows: int
    columns: int
    chunk: int
    stage: bool


@dataclass(frozen=True)
class Window:
    """Shapes of a call. ``top``/``left``: padding that is not in memory (negative: rows to skip)."""

    source: tuple[int, int, int, int]
    out: tuple[int, int, int, int]
    halo: tuple[int, int, int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int

    @property
    def channels(self) -> int:
        """Channels of input and output."""
        return self.source[3]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output without its halo."""
        top, left, bottom, right = self.halo
        return self.out[1] - top - bottom, self.out[2] - left - right

    def span(self, axis: int, outputs: int) -> int:
        """Input rows (axis 0) or columns (axis 1) under so many outputs."""
        reach = (self.kernel[axis] - 1) * self.dilation[axis]
        return (outputs - 1) * self.strides[axis] + reach + 1

    @property
    def bordered(self) -> bool:
        """Whether all input that is read lies in memory."""
        offsets, extents = (self.top, self.left), self.source[1:3]
        return all(
            o <= 0 and self.span(a, self.size[a]) - o <= extents[a]
            for a, o in ((0, offsets[0]), (1, offsets[1]))
        )

    @property
    def macs(self) -> int:
        """Products of the whole call."""
        return self.source[0] * math.prod(self.size) * self.channels * math.prod(self.kernel)


def window(call: KernelCall) -> Window:
    """The shapes of a convolution."""
    kh, kw = call.args[1].shape[1:3]
    return window_of(call, (kh, kw))


def window_of(call: KernelCall, kernel: tuple[int, int]) -> Window:
    """The shapes of a call with a window of ``kernel`` rows and columns."""
    p = call.params
    halo_in, halo_out = p.get("in_halo") or (0, 0, 0, 0), p.get("out_halo") or (0, 0, 0, 0)
    sh, sw = p["strides"]
    dh, dw = p.get("dilation") or (1, 1)
    n, height, width, channels = call.args[0].shape
    out_n, out_height, out_width, out_channels = call.out.shape
    return Window(
        (n, height, width, channels),
        (out_n, out_height, out_width, out_channels),
        (halo_out[0], halo_out[1], halo_out[2], halo_out[3]),
        kernel,
        (sh, sw),
        (dh, dw),
        p["padding"][0] - halo_in[0],
        p["padding"][1] - halo_in[1],
    )


@dataclass(frozen=True)
class Blocks:
    """How a row is cut: ``phases[v]`` is the first channel of block v of a period.

    ``groups`` whole periods of ``period`` output elements, then ``rest`` vectors of the next, then, if
    ``tail``, one that ends with the row and has the last phase. Constants of the only vector of a period are
    stored twice and used in turn: LLVM would hoist them out of the loop and then spill them. ``uniform``: all
    channels have the same constants, stored twice for the same reason.
    """

    phases: tuple[int, ...]
    per_period: int
    period: int
    groups: int
    rest: int
    tail: bool
    uniform: bool = False

    @property
    def copies(self) -> int:
        """How often the constants of a period are stored."""
        return 2 if self.per_period == 1 else 1


def blocks(w: Window, mode: str, vector: int) -> Blocks:
    """Cut the rows of ``w`` in vectors of so many elements."""
    channels, width = w.channels, w.size[1]
    if mode == "block":
        starts = [min(i * vector, channels - vector) for i in range(-(-channels // vector))]
        return _with_copies(starts, channels, width, 0, None)
    period = math.lcm(channels, vector)
    row = width * channels
    whole = row // vector
    per_period = min(period // vector, whole)
    starts = [i * vector % channels for i in range(per_period)]
    groups = whole // (period // vector)
    tail = (row - vector) % channels if row % vector else None
    return _with_copies(starts, period, groups, whole - groups * (period // vector), tail)


def uniform_blocks(w: Window, mode: str, vector: int) -> Blocks:
    """The same where constants do not depend on the channel: any two vectors are alike."""
    if mode == "block":
        return Blocks((0, 0), -(-w.channels // vector), w.channels, w.size[1], 0, False, True)
    groups, rest = divmod(w.size[1] * w.channels, vector)
    return Blocks((0, 0), 1, vector, groups, 0, rest > 0, True)


def _with_copies(starts: list[int], period: int, groups: int, rest: int, tail: int | None) -> Blocks:
    phases = starts * 2 if len(starts) == 1 else starts
    if tail is not None:
        phases = [*phases, tail]
    return Blocks(tuple(phases), len(starts), period, groups, rest, tail is not None)


@dataclass(frozen=True)
class Source:
    """The rows that a kernel reads: the argument itself, or a scratch of ``rows`` rows.

    In units of elements: ``pitch`` of a row, ``step`` between the inputs of neighbouring output pixels.
    With several ``planes`` column x lies in plane ``x % planes``.
    """

    pitch: int
    step: int
    planes: int
    plane: int
    rows: int
    origin: int

    def column(self, tap: int, channels: int) -> int:
        """Offset of a tap, given in columns."""
        return tap % self.planes * self.plane + tap // self.planes * channels


def source(w: Window, c: Config) -> Source:
    """Where the input lies for a configuration."""
    channels, (height, width) = w.channels, w.size
    if not c.stage:
        pitch = w.source[2] * channels
        return Source(pitch, w.strides[1] * channels, 1, 0, w.source[1], -w.top * pitch - w.left * channels)
    rows = w.span(0, min(c.chunk, height))
    if c.mode == "block":
        return Source(w.span(1, width) * channels, w.strides[1] * channels, 1, 0, rows, 0)
    planes = w.strides[1]
    plane = (width + (w.kernel[1] - 1) * w.dilation[1] // planes) * channels
    return Source(plane * planes, channels, planes, plane, rows, 0)


def row_groups(w: Window, rows: int, depth: int) -> list[list[int]]:
    """Input rows under ``rows`` output rows, in groups of ``depth``."""
    needed = sorted({o * w.strides[0] + k * w.dilation[0] for o in range(rows) for k in range(w.kernel[0])})
    return [needed[i : i + depth] for i in range(0, len(needed), depth)]


def taps(w: Window, group: Sequence[int], row: int, depth: int) -> Taps:
    """Which kernel row each input row of a group meets for output row ``row``; None: none."""
    found: list[int | None] = []
    for at in group:
        k, remainder = divmod(at - row * w.strides[0], w.dilation[0])
        found.append(k if remainder == 0 and 0 <= k < w.kernel[0] else None)
    return tuple(found + [None] * (depth - len(found)))


def operand_taps(isa: Isa, found: Taps) -> list[Taps]:
    """Taps of each multiply instruction on a group: int16 pairs take the even, then the odd bytes."""
    return [found[0::2], found[1::2]] if isa.depth == 2 else [found]


@dataclass(frozen=True)
class WeightPlan:
    """Distinct weight vectors, and for every set of taps (plane, elements to shift).

    A vector (w0, w1, w2, 0) read one element earlier is (0, w0, w1, w2): it is stored once.
    """

    planes: tuple[Taps, ...]
    where: dict[Taps, tuple[int, int]]


def weight_plan(w: Window, isa: Isa, rows: int) -> WeightPlan:
    """The weight vectors that a tile of ``rows`` output rows needs."""
    depth = group_depth(isa)
    needed: dict[Taps, None] = {}
    for group in row_groups(w, rows, depth):
        for row in range(rows):
            for operand in operand_taps(isa, taps(w, group, row, depth)):
                if any(tap is not None for tap in operand):
                    needed[operand] = None
    planes: list[Taps] = []
    where: dict[Taps, tuple[int, int]] = {}
    for operand in sorted(needed, key=lambda t: [tap is None for tap in t]):
        shifts = [
            (i, s)
            for i, plane in enumerate(planes)
            for s in range(1, len(operand))
            if _shifted(plane, s) == operand
        ]
        if not shifts:
            planes.append(operand)
        where[operand] = shifts[0] if shifts else (len(planes) - 1, 0)
    return WeightPlan(tuple(planes), where)


def _shifted(plane: Taps, by: int) -> Taps | None:
    if any(tap is not None for tap in plane[-by:]):
        return None
    return (*[None] * by, *plane[:-by])


def group_depth(isa: Isa) -> int:
    """Input rows that are interleaved to one vector: 4 bytes, or a single row of floats."""
    return 1 if isa.accumulator == "float32" else 4


def lane_order(isa: Isa) -> Array:
    """Channel of each accumulator lane of a block, ``[4 vectors, lanes]``: what packing to bytes undoes."""
    vector, lane = np.arange(4)[:, None], np.arange(isa.lanes)[None, :]
    if isa.accumulator == "float32":
        return np.asarray(vector * isa.lanes + lane)
    return np.asarray(lane // 4 * 16 + vector * 4 + lane % 4)


def pack_channels(values: Array, b: Blocks, isa: Isa) -> Array:
    """One value a channel to ``[phases * 4 * lanes]`` in the order of the lanes."""
    order = lane_order(isa).reshape(-1)
    return np.concatenate([values[(phase + order) % len(values)] for phase in b.phases])


def plane_size(w: Window, b: Blocks, isa: Isa) -> int:
    """Elements of one plane of packed weights, with the zeros before it."""
    vector = isa.lanes * isa.depth
    return vector * (1 + len(b.phases) * w.kernel[1] * 4)


def pack_weights(weights: Array, w: Window, b: Blocks, isa: Isa, plan: WeightPlan) -> Array:
    """``[C, KH, KW]`` to planes of ``[phases, KW, 4, lanes, taps]``, each after one vector of zeros."""
    dtype = {1: "float32", 2: "int16", 4: "int8"}[isa.depth]
    parts = []
    for plane in plan.planes:
        block = np.zeros((len(b.phases), w.kernel[1], 4, isa.lanes, isa.depth), dtype)
        for v, phase in enumerate(b.phases):
            channels = (phase + lane_order(isa)) % w.channels
            for t, tap in enumerate(plane):
                if tap is not None:
                    block[v, ..., t] = weights[channels, tap].transpose(2, 0, 1)
        parts += [np.zeros(isa.lanes * isa.depth, dtype), block.reshape(-1)]
    return np.concatenate(parts)
