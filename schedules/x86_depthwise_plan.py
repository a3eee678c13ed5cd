"""Numbers of a depthwise kernel: where vectors lie, which weights they need, how constants are packed.

A row of the output is a flat run of ``width * channels`` elements, cut in vectors ("blocks"). In mode
``block`` they belong to one pixel each (the last one overlaps its neighbour where the channels do not
divide); in mode ``flat`` they run on over pixels and start at other channels, up to a common period.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """Shapes of a call. ``top``/``left``: padding that is not in memory (negative: rows to skip).

    ``repeat``: every channel of the input in memory is so many neighbours of ``source``.
    """

    source: tuple[int, int, int, int]
    out: tuple[int, int, int, int]
    halo: tuple[int, int, int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int
    repeat: int = 1

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
        return self.repeat == 1 and all(
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
    return window_of(call, (kh, kw), call.args[1].shape[0] // call.args[0].shape[3])


def window_of(call: KernelCall, kernel: tuple[int, int], repeat: int = 1) -> Window:
    """The shapes of a call with a window of ``kernel`` rows and columns."""
    p = call.params
    halo_in, halo_out = p.get("in_halo") or (0, 0, 0, 0), p.get("out_halo") or (0, 0, 0, 0)
    sh, sw = p["strides"]
    dh, dw = p.get("dilation") or (1, 1)
    n, height, width, channels = call.args[0].shape
    out_n, out_height, out_width, out_channels = call.out.shape
    return Window(
        (n, height, width, channels * repeat),
        (out_n, out_height, out_width, out_channels),
        (halo_out[0], halo_out[1], halo_out[2], halo_out[3]),
        kernel,
        (sh, sw),
        (dh, dw),
        p["padding"][0] - halo_in[0],
        p["padding"][1] - halo_in[1],
        repeat,
    )


@dataclass(frozen=True)
class Blocks:
    """How a row is cut in vectors, and which constants are stored.

    ``groups`` whole periods of ``period`` output elements and ``per_period`` vectors, then ``rest`` vectors
    of the next, then, if ``tail``, one that ends with the row. Constants lie in units of a few channels:
    ``units`` are the channels that the stored units start with, vector v of a period reads some in a row from
    unit ``where[v]`` on, the last vector of the row from ``tail_unit`` on.
    """

    period: int
    per_period: int
    groups: int
    rest: int
    tail: bool
    units: tuple[int, ...] = ()
    where: tuple[int, ...] = ()
    tail_unit: int = 0

    @property
    def uniform(self) -> bool:
        """Whether all channels have the same constants: then none are stored by unit."""
        return not self.units


def blocks(w: Window, mode: str, isa: Isa) -> Blocks:
    """Cut the rows of ``w`` in vectors, each of ``fanout`` registers of accumulators."""
    channels, width, vector = w.channels, w.size[1], isa.fanout * isa.lanes
    if mode == "block":
        starts = [min(i * vector, channels - vector) for i in range(-(-channels // vector))]
        return _with_units(Blocks(channels, len(starts), width, 0, False), starts, channels, isa)
    period, whole = math.lcm(channels, vector), width * channels // vector
    per_period = min(period // vector, whole)
    groups, rest = divmod(whole, period // vector)
    cut = Blocks(period, per_period, groups, rest, bool(width * channels % vector))
    starts = [i * vector % channels for i in range(per_period)]
    last = [(width * channels - vector) % channels] if cut.tail else []
    return _with_units(cut, [*starts, *last], channels, isa)


def uniform_blocks(w: Window, mode: str, vector: int) -> Blocks:
    """The same where constants do not depend on the channel."""
    if mode == "block":
        return Blocks(w.channels, -(-w.channels // vector), w.size[1], 0, False)
    groups, rest = divmod(w.size[1] * w.channels, vector)
    return Blocks(vector, 1, groups, 0, rest > 0)


def _with_units(b: Blocks, starts: Sequence[int], channels: int, isa: Isa) -> Blocks:
    """Lay out units so that each vector finds its own in a row.

    Vectors share units only where that saves some: a shared vector may straddle cache lines.
    """
    vector, step = isa.fanout * isa.lanes, unit_size(isa)
    per_vector = vector // step
    needed = [[(s + at) % channels for at in range(0, vector, step)] for s in starts]
    units, where = list[int](), list[int]()
    for run in needed:
        first = next(i for i in range(len(units) + 1) if units[i : i + len(run)] == run[: len(units) - i])
        units += run[len(units) - first :]
        where.append(first)
    units += [0] * (-len(units) % per_vector)
    if len(units) >= per_vector * len(starts):
        units = [unit for run in needed for unit in run]
        where = [i * per_vector for i in range(len(starts))]
    return replace(b, units=tuple(units), where=tuple(where[: b.per_period]), tail_unit=where[-1])


def unit_size(isa: Isa) -> int:
    """Channels of a unit: a register of floats, or what packing integers keeps together in 128 bits."""
    return isa.lanes if isa.accumulator == "float32" else 4 * isa.fanout


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
    """Taps of each multiply instruction on a group: of four bytes as int16 the even, then the odd ones."""
    return [found[0::2], found[1::2]] if isa.depth < group_depth(isa) else [found]


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
    """Input rows that are interleaved to one vector: 4 of bytes, 2 of int16, a single one of floats."""
    return 1 if isa.accumulator == "float32" else isa.fanout


def _unit_lanes(isa: Isa) -> Array:
    """``[vectors, lanes]`` channels of a unit: vectors of 4 where packing interleaves them."""
    size = unit_size(isa)
    return np.arange(size).reshape(1 if isa.accumulator == "float32" else isa.fanout, -1)


def _stored(b: Blocks, isa: Isa) -> Array:
    """``[vectors, units, lanes]``: the channel of every stored value."""
    lanes = _unit_lanes(isa)
    return np.asarray(np.asarray(b.units)[None, :, None] + lanes[:, None, :])


def slot(b: Blocks, isa: Isa, vector: int, column: int = 0) -> int:
    """Where the values of a kernel column for a vector lie, in channels from those of unit 0, vector 0."""
    if isa.accumulator == "float32":
        return (column * len(b.units) + vector) * isa.lanes
    return (column * isa.fanout + vector) * len(b.units) * 4


def unit_step(isa: Isa) -> int:
    """How far neighbouring units lie apart, in channels."""
    return isa.lanes if isa.accumulator == "float32" else 4


def pack_channels(values: Array, b: Blocks, isa: Isa) -> Array:
    """One value a channel to ``[vectors, units, lanes]``."""
    return values[_stored(b, isa) % len(values)]


def lead(isa: Isa, plan: WeightPlan) -> int:
    """Zeros before a plane, which shifted reads of its first vector need."""
    return isa.lanes * isa.depth if any(shift for _, shift in plan.where.values()) else 0


def plane_size(w: Window, b: Blocks, isa: Isa, plan: WeightPlan) -> int:
    """Elements of one plane of packed weights, with the zeros before it."""
    return lead(isa, plan) + w.kernel[1] * len(b.units) * unit_size(isa) * isa.depth


def pack_weights(weights: Array, w: Window, b: Blocks, isa: Isa, plan: WeightPlan) -> Array:
    """``[C, KH, KW]`` to planes of ``[KW, vectors, units, lanes, taps]``, each after ``lead`` zeros."""
    channels = _stored(b, isa) % w.channels
    parts = []
    for plane in plan.planes:
        dtype = weights.dtype if isa.depth == 1 else weight_dtype(isa)
        block = np.zeros((w.kernel[1], *channels.shape, isa.depth), dtype)
        for t, tap in enumerate(plane):
            if tap is not None:
                block[..., t] = np.moveaxis(weights[channels, tap], -1, 0)
        parts += [np.zeros(lead(isa, plan), block.dtype), block.reshape(-1)]
    return np.concatenate(parts)


def weight_dtype(isa: Isa) -> str:
    """What weights are stored as."""
    return {1: "float32", 2: "int16", 4: "int8"}[isa.depth]
