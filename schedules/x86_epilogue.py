"""What happens to accumulators: requantization to bytes, or a clamp in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm_qplugin.schedules.x86_border import powers_of_two
from tvm_qplugin.schedules.x86_isa import (
    Buffer,
    Expr,
    T,
    add_saturating_int16,
    load,
    pack_bytes,
    pack_int16,
    packed_lane,
    round_to_int32,
    select_lanes,
    splat,
    store,
)
from tvm_qplugin.schedules.x86_reduce import Cells, Kernel, Spot, reduce

Cell = tuple[int, int]


class Plain:
    """One accumulator takes up the whole sum."""

    def reduce(self, kernel: Kernel, spot: Spot, acc: Cells) -> Cells:
        """Add all products, in ``acc``."""
        return reduce(kernel, spot, acc)


@dataclass(frozen=True)
class IntegerEpilogue(Plain):
    """Four vectors at a time: scale, round, pack with saturation, undo the lane order in the store."""

    dtype: str

    def finish(self, kernel: Kernel, spot: Spot, acc: Cells) -> None:
        """Store every accumulator of a tile."""
        for cells in quads(len(spot.pixels), spot.vectors):
            four = (cells + [cells[-1]] * 3)[:4]
            packed = self._pack(kernel, [self.rounded(kernel, spot, acc, i, j) for i, j in four])
            buffer = T.sblock_alloc_buffer((kernel.isa.bytes,), self.dtype)
            store(buffer, 0, packed, kernel.isa.bytes)
            for start, lanes in runs(kernel, spot, cells, packed_lane):
                store_lanes(kernel, spot.out + start, buffer, lanes)

    def rounded(self, k: Kernel, spot: Spot, acc: Cells, i: int, j: int) -> Expr:
        """The scaled accumulator of pixel ``i``, vector ``j`` as int32, zero point not added."""
        lanes = k.isa.lanes
        value = T.Cast(f"float32x{lanes}", load(acc[i][j], 0, lanes)) * k.scale(spot.block + j)
        if k.constants.has("limit"):
            value = T.min(value, k.constants.repeated("limit", "float32", lanes))
        return round_to_int32(value, k.isa)

    def _pack(self, k: Kernel, four: list[Expr]) -> Expr:
        isa = k.isa
        halves = [pack_int16(four[0], four[1], isa), pack_int16(four[2], four[3], isa)]
        if k.constants.has("shift"):
            zero = k.constants.repeated("shift", "int16", isa.bytes // 2)
            halves = [add_saturating_int16(half, zero, isa) for half in halves]
        packed = pack_bytes(halves[0], halves[1], self.dtype, isa)
        return k.constants.clamped(packed, self.dtype, isa.bytes)


@dataclass(frozen=True)
class FloatEpilogue(Plain):
    """Clamp to ``[lo, hi]`` (None: unbounded) and store."""

    lo: float | None
    hi: float | None

    def finish(self, kernel: Kernel, spot: Spot, acc: Cells) -> None:
        """Store every accumulator of a tile."""
        lanes = kernel.isa.lanes
        for (_, out), row in zip(spot.pixels, acc, strict=True):
            for j, cell in enumerate(row):
                store(cell, 0, self._clamp(load(cell, 0, lanes), lanes), lanes)
                valid = spot.valid if j == spot.vectors - 1 else lanes
                store_lanes(kernel, spot.out + out + j * lanes, cell, list(range(valid)))

    def _clamp(self, value: Expr, lanes: int) -> Expr:
        if self.hi is not None:
            value = T.min(value, splat(T.float32(self.hi), lanes))
        return value if self.lo is None else T.max(value, splat(T.float32(self.lo), lanes))


def quads(pixels: int, vectors: int) -> list[list[Cell]]:
    """Group the cells (pixel, vector) of a tile by four, neighbours in memory together."""
    groups: list[list[Cell]] = []
    whole = vectors // 4 * 4
    for i in range(pixels):
        groups += [[(i, j + v) for v in range(4)] for j in range(0, whole, 4)]
    rest = range(whole, vectors)
    pair = [j for j in rest[: len(rest) // 2 * 2]]
    if pair:
        flat = [(i, j) for i in range(pixels) for j in pair]
        groups += [flat[n : n + 4] for n in range(0, len(flat), 4)]
    if len(rest) % 2:
        flat = [(i, vectors - 1) for i in range(pixels)]
        groups += [flat[n : n + 4] for n in range(0, len(flat), 4)]
    return groups


def runs(
    k: Kernel, spot: Spot, cells: list[Cell], lane: Callable[[int, int], int]
) -> list[tuple[int, list[int]]]:
    """Contiguous pieces of output that a packed vector holds: (offset from the tile, its lanes).

    ``lane(vector, element)``: where packing puts an element.
    """
    found: list[tuple[int, list[int]]] = []
    for v, (i, j) in enumerate(cells):
        valid = spot.valid if j == spot.vectors - 1 else k.isa.lanes
        lanes = [lane(v, e) for e in range(valid)]
        start = spot.pixels[i][1] + j * k.isa.lanes
        if found and found[-1][0] + len(found[-1][1]) == start:
            found[-1][1].extend(lanes)
        else:
            found.append((start, lanes))
    return found


def store_lanes(k: Kernel, at: Expr, vector: Buffer, lanes: list[int]) -> None:
    """Write the named lanes of a one-vector buffer, in pieces of a power of two."""
    width = vector.shape[0]
    for offset, length in powers_of_two(0, len(lanes)):
        piece = lanes[offset : offset + length]
        whole = load(vector, 0, int(width))
        if piece == list(range(int(width))):
            store(k.out, at + offset, whole, length)
        elif length == 1:
            store(k.out, at + offset, load(vector, piece[0], 1), 1)
        else:
            store(k.out, at + offset, select_lanes(whole, piece), length)
