"""Inputs quantized at run time: the range of an image or of each row, codes, and the way back to float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.schedules.x86_border import SLACK, each_piece, padded_copy, workspace
from tvm_qplugin.schedules.x86_epilogue import store_lanes
from tvm_qplugin.schedules.x86_geometry import Scratch
from tvm_qplugin.schedules.x86_isa import (
    Buffer,
    Expr,
    Index,
    Isa,
    T,
    fma,
    load,
    round_to_int32,
    select_lanes,
    splat,
    store,
)
from tvm_qplugin.schedules.x86_reduce import Cells, Kernel, Spot, products

PARALLEL_ELEMENTS = 64 * 1024
SIDE_BY_SIDE = 4
BEYOND = 2.0**24


@dataclass(frozen=True)
class Grid:
    """Buffers of one element a row (or one for the image): zero point of the uint8 codes, and step."""

    zero: Buffer
    step: Buffer


def quantized_rows(isa: Isa, x: Buffer, spec: TensorSpec) -> tuple[Buffer, Grid]:
    """Every row of the last axis on a grid of its own: codes uint8, as they lie in ``x``."""
    depth = spec.shape[-1]
    rows = spec.size // depth
    codes, grid = workspace(spec.size + SLACK, "uint8"), _grid(rows)
    with (T.parallel if spec.size >= PARALLEL_ELEMENTS and rows > 1 else T.serial)(0, rows) as r:
        with T.sblock("row"):
            T.reads()
            T.writes()
            inverse = workspace(1, "float32")
            _find_grid(isa, x, r * depth, depth, grid, r, inverse)
            _quantizer(isa, inverse, grid.zero, r)(x, r * depth, codes, r * depth, depth)
    return codes, grid


def quantized_image(
    isa: Isa, scratch: Scratch, x: Buffer, spec: TensorSpec, builtin: bool = False
) -> tuple[Buffer, Grid]:
    """One image on one grid: codes uint8 of the part that is read, surrounded by zero points.

    ``builtin``: in the arithmetic of LiteRT's own kernels, not in XNNPACK's.
    """
    grid, inverse = _grid(1), workspace(1, "float32")
    with T.sblock("range"):
        T.reads()
        T.writes()
        if builtin:
            _find_builtin_grid(isa, x, spec.size, grid, inverse)
        else:
            _find_grid(isa, x, 0, spec.size, grid, 0, inverse)
    move = _quantizer(isa, inverse, grid.zero, 0, builtin)
    return padded_copy(scratch, x, spec.dtype, T.Cast("uint8", grid.zero[0]), move), grid


def _grid(rows: int) -> Grid:
    return Grid(workspace(rows, "int32"), workspace(rows, "float32"))


def _find_grid(
    isa: Isa, x: Buffer, start: Index, count: int, grid: Grid, row: Index, inverse: Buffer
) -> None:
    """Write zero point, step and codes per unit (``inverse``) of ``count`` elements.

    XNNPACK's arithmetic: products go through a minimum, so that no compiler contracts them with sums.
    """
    low, high = _extremes(isa, x, start, count)
    span, one = high - low, T.float32(1)
    flat = low == high
    store(inverse, 0, T.Select(flat, one, T.float32(255) / T.Select(flat, one, span)), 1)
    below, above = (T.min(bound * inverse[0], T.float32(BEYOND)) for bound in (low, high))
    bottom, top = T.float32(-128), T.float32(127)
    nearer = (bottom + below) + (top + above) > T.float32(0)
    zero = T.max(T.min(T.Select(nearer, bottom - below, top - above), top), bottom)
    store(grid.zero, row, T.Cast("int32", T.nearbyint(zero)) + T.int32(128), 1)
    store(grid.step, row, one / inverse[0], 1)


def _find_builtin_grid(isa: Isa, x: Buffer, count: int, grid: Grid, inverse: Buffer) -> None:
    """The same by ``AsymmetricQuantizeFloats``: zero point half away from 0, in float64."""
    low, high = _extremes(isa, x, 0, count)
    flat, one = low == high, T.float64(1)
    step = workspace(1, "float64")
    store(step, 0, T.Select(flat, one, T.Cast("float64", high - low) / T.float64(255)), 1)
    below, above = (T.Cast("float64", bound) / step[0] for bound in (low, high))
    bottom, top = T.float64(-128) - below, T.float64(127) - above
    nearer = T.float64(128) - below < T.float64(127) + above
    zero = workspace(1, "float64")
    store(zero, 0, T.max(T.min(T.Select(nearer, bottom, top), T.float64(127)), T.float64(-128)), 1)
    half = T.Select(zero[0] < T.float64(0), T.float64(-0.5), T.float64(0.5))
    store(grid.zero, 0, T.Cast("int32", zero[0] + half) + T.int32(128), 1)
    store(grid.step, 0, T.Cast("float32", step[0]), 1)
    store(inverse, 0, T.Select(flat, T.float32(0), T.float32(1) / grid.step[0]), 1)


def _codes_away(value: Expr, inverse: Expr, zero: Expr, lanes: int) -> Expr:
    """``clip(trunc(value * inverse +- 0.5) + zero, 0, 255)``."""

    def every(scalar: Expr) -> Expr:
        return scalar if lanes == 1 else splat(scalar, lanes)

    suffix = "" if lanes == 1 else f"x{lanes}"
    scaled = T.min(value * every(inverse), every(T.float32(BEYOND)))
    half = T.Select(scaled < every(T.float32(0)), every(T.float32(-0.5)), every(T.float32(0.5)))
    code = T.max(T.Cast(f"int32{suffix}", scaled + half) + every(zero), every(T.int32(0)))
    return T.Cast(f"uint8{suffix}", T.min(code, every(T.int32(255))))


def _extremes(isa: Isa, x: Buffer, start: Index, count: int) -> tuple[Expr, Expr]:
    """The least and the largest of ``count`` elements and 0."""
    found = []
    lanes = min(isa.lanes, 1 << (count.bit_length() - 1))
    vectors = count // lanes
    side = min(SIDE_BY_SIDE, vectors)
    for choose in (T.min, T.max):
        cells = [T.sblock_alloc_buffer((lanes,), "float32") for _ in range(side)]
        for cell in cells:
            store(cell, 0, T.float32(0) if lanes == 1 else splat(T.float32(0), lanes), lanes)
        found.append((choose, cells))

    def take(at: Index, n: int) -> None:
        value = load(x, start + at, lanes)
        for choose, cells in found:
            store(cells[n], 0, choose(load(cells[n], 0, lanes), value), lanes)

    with T.serial(0, vectors // side) as i:
        for n in range(side):
            take((i * side + n) * lanes, n)
    for n in range(vectors % side):
        take((vectors // side * side + n) * lanes, n)
    if count % lanes:
        take(count - lanes, 0)
    low, high = (across(choose, cells, lanes) for choose, cells in found)
    return low, high


def across(choose: Callable[[Expr, Expr], Expr], cells: list[Buffer], lanes: int) -> Expr:
    """One number from all lanes of all cells."""
    value = load(cells[0], 0, lanes)
    for cell in cells[1:]:
        value = choose(value, load(cell, 0, lanes))
    store(cells[0], 0, value, lanes)
    while lanes > 1:
        value, lanes = load(cells[0], 0, lanes), lanes // 2
        halves = (select_lanes(value, range(first, first + lanes)) for first in (0, lanes))
        store(cells[0], 0, choose(*halves), lanes)
    return cells[0][0]


def _quantizer(
    isa: Isa, inverse: Buffer, zero: Buffer, row: Index, away: bool = False
) -> Callable[[Buffer, Index, Buffer, Index, int], None]:
    """Writes the codes of ``count`` floats: arguments as ``x86_border.copy``."""

    def move(source: Buffer, at: Index, codes: Buffer, start: Index, count: int) -> None:
        def write(offset: Index, lanes: int) -> None:
            code = _codes(isa, load(source, at + offset, lanes), inverse[0], zero[row], lanes, away)
            store(codes, start + offset, code, lanes)

        each_piece(count, isa.lanes, write)

    return move


def _codes(isa: Isa, value: Expr, inverse: Expr, zero: Expr, lanes: int, away: bool) -> Expr:
    """``clip(rint(value * inverse) + zero, 0, 255)``; of less than a register without intrinsic."""
    if away:
        return _codes_away(value, inverse, zero, lanes)
    if lanes == 1:
        code = T.Cast("int32", T.nearbyint(value * inverse)) + zero
        return T.Cast("uint8", T.max(T.min(code, T.int32(255)), T.int32(0)))
    scaled = value * splat(inverse, lanes)
    rounded = (
        round_to_int32(scaled, isa) if lanes == isa.lanes else T.Cast(f"int32x{lanes}", T.nearbyint(scaled))
    )
    code = T.max(rounded + splat(zero, lanes), splat(T.int32(0), lanes))
    return T.Cast(f"uint8x{lanes}", T.min(code, splat(T.int32(255), lanes)))


@dataclass(frozen=True)
class DynamicEpilogue:
    """``fma(float32(acc) * step, scale, bias)``, clamped; ``rows``: every pixel has its own grid."""

    lo: float | None
    hi: float | None
    grid: Grid
    out: TensorSpec
    rows: bool

    def reduce(self, kernel: Kernel, spot: Spot, acc: Cells) -> Cells:
        """Start every sum with what its zero point adds too much, and add all products."""
        lanes = kernel.isa.lanes
        for i, row in enumerate(acc):
            zero = splat(T.int32(0) - self.grid.zero[self._row(spot, i)], lanes)
            for j, cell in enumerate(row):
                sums = kernel.constants.vector("sums", (spot.block + j) * lanes, lanes, "int32")
                store(cell, 0, sums * zero, lanes)
        return products(kernel, spot, acc)

    def finish(self, kernel: Kernel, spot: Spot, acc: Cells) -> None:
        """Store every accumulator of a tile."""
        lanes = kernel.isa.lanes
        for i, row in enumerate(acc):
            step = splat(self.grid.step[self._row(spot, i)], lanes)
            for j, cell in enumerate(row):
                at = (spot.block + j) * lanes
                scale, bias = (
                    kernel.constants.vector(name, at, lanes, "float32") for name in ("scale", "bias")
                )
                real = fma(T.Cast(f"float32x{lanes}", load(cell, 0, lanes)) * step, scale, bias, lanes)
                buffer = T.sblock_alloc_buffer((lanes,), "float32")
                store(buffer, 0, self._clamped(real, lanes), lanes)
                valid = spot.valid if j == spot.vectors - 1 else lanes
                store_lanes(kernel, spot.out + spot.pixels[i][1] + j * lanes, buffer, list(range(valid)))

    def _row(self, spot: Spot, pixel: int) -> Index:
        """The grid of a pixel, by where it is written to."""
        channels = self.out.shape[-1]
        return T.floordiv(spot.out, channels) + spot.pixels[pixel][1] // channels if self.rows else 0

    def _clamped(self, value: Expr, lanes: int) -> Expr:
        if self.lo is not None:
            value = T.max(value, splat(T.float32(self.lo), lanes))
        return value if self.hi is None else T.min(value, splat(T.float32(self.hi), lanes))
