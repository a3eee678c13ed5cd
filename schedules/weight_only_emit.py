"""One register tile of a dense layer whose weights are unpacked in registers, group by group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm_qplugin.schedules.x86_epilogue import FloatEpilogue
from tvm_qplugin.schedules.x86_isa import (
    F32_512,
    Buffer,
    Expr,
    Index,
    T,
    accumulator,
    fma,
    intrinsic,
    load,
    splat,
    store,
)
from tvm_qplugin.schedules.x86_reduce import CACHE_LINE, Cells, Kernel, Spot

STEP = 8
AHEAD = 8192
PREFETCHED_BYTES = 256 * 1024  # smaller weights stay in L2 from run to run
LATE_PIXELS = 2
"""Up to so many rows sums are scaled, not weights."""


@dataclass(frozen=True)
class WeightOnly(FloatEpilogue):
    """Multiplies with weights unpacked in registers; the end is that of float layers."""

    bits: int
    group: int
    scale_dtype: str

    def reduce(self, kernel: Kernel, spot: Spot, acc: Cells) -> Cells:
        """Start every accumulator ``acc[pixel][vector]`` from its bias and add all groups."""
        for j in range(spot.vectors):
            for row in acc:
                store(row[j], 0, kernel.bias(spot.block + j), kernel.isa.lanes)
        work = _Reduction(self, kernel, spot, acc)
        full, rest = divmod(kernel.geometry.span, self.group)
        _repeat(full, lambda g: work.add_group(g, self.group))
        if rest:
            work.add_group(full, rest)
        return acc


@dataclass(frozen=True)
class _Reduction:
    """The sums of one tile."""

    how: WeightOnly
    k: Kernel
    spot: Spot
    acc: Cells

    @property
    def steps(self) -> int:
        """Of a whole group."""
        return -(-self.how.group // STEP)

    @property
    def all_steps(self) -> int:
        """Of a row."""
        full, rest = divmod(self.k.geometry.span, self.how.group)
        return full * self.steps + -(-rest // STEP)

    def _prefetch(self, step: Index) -> None:
        """As many bytes as a step reads, a little ahead: the hardware stops at the end of every page."""
        lanes, bits = self.k.isa.lanes, self.how.bits
        start = self._at(self.all_steps, step, 0) * bits + AHEAD
        for offset in range(0, self.spot.vectors * lanes * bits, CACHE_LINE):
            self.k.constants.prefetch("weights", start + offset)

    def _at(self, extent: int, i: Index, j: int) -> Index:
        """Where entry ``i`` of ``extent`` of vector ``j`` begins: the vectors of a tile alternate."""
        return (self.spot.block * extent + i * self.spot.vectors + j) * self.k.isa.lanes

    def add_group(self, g: Index, size: int) -> None:
        """Add the products of group ``g`` of ``size`` weights."""
        lanes, late = self.k.isa.lanes, len(self.spot.pixels) <= LATE_PIXELS
        scales = [self._held(self._scale(g, j)) for j in range(self.spot.vectors)]
        sums = [[accumulator(self.k.isa) for _ in row] for row in self.acc] if late else self.acc
        if late:
            for cell in (cell for row in sums for cell in row):
                store(cell, 0, splat(T.float32(0), lanes), lanes)
        whole, rest = divmod(size, STEP)
        at = g * self.how.group
        _repeat(whole, lambda s: self._step(sums, scales, at + s * STEP, g * self.steps + s, STEP))
        if rest:
            self._step(sums, scales, at + whole * STEP, g * self.steps + whole, rest)
        if late:
            for row, totals in zip(sums, self.acc, strict=True):
                for cell, total, scale in zip(row, totals, scales, strict=True):
                    self._add(total, load(cell, 0, lanes), load(scale, 0, lanes))

    def _step(self, sums: Cells, scales: list[Buffer], at: Index, step: Index, count: int) -> None:
        """Add ``count`` products from weight ``at`` on."""
        lanes, late = self.k.isa.lanes, sums is not self.acc
        if late and self.k.geometry.weight_bytes * self.how.bits // 32 >= PREFETCHED_BYTES:
            self._prefetch(step)
        for e in range(count):
            weights = [self._weights(j, step, e) for j in range(self.spot.vectors)]
            if not late:
                scaled = zip(weights, scales, strict=True)
                weights = [load(self._held(w * load(scale, 0, lanes)), 0, lanes) for w, scale in scaled]
            for (place, _), row in zip(self.spot.pixels, sums, strict=True):
                x = splat(load(self.k.source, self.spot.source + place + at + e, 1), lanes)
                for cell, weight in zip(row, weights, strict=True):
                    self._add(cell, x, weight)

    def _weights(self, j: int, step: Index, e: int) -> Expr:
        """The codes of element ``e`` of a step for vector ``j`` of the tile, as float32."""
        lanes, constants = self.k.isa.lanes, self.k.constants
        if self.how.bits == 8:
            at = self._at(self.all_steps * STEP, step * STEP + e, j)
            return T.Cast(f"float32x{lanes}", constants.vector("weights", at, lanes, "int8"))
        word = constants.vector("weights", self._at(self.all_steps, step, j), lanes, "int32")
        if self.k.isa is F32_512:
            index = T.shift_right(word, splat(T.int32(4 * e), lanes)) if e else word
            table = constants.vector("table", 0, lanes, "float32")
            return intrinsic("float32x16", "llvm.x86.avx512.permvar.sf.512", table, index)
        high = T.shift_left(word, splat(T.int32(28 - 4 * e), lanes)) if e < STEP - 1 else word
        return T.Cast(f"float32x{lanes}", T.shift_right(high, splat(T.int32(28), lanes)))

    def _scale(self, g: Index, j: int) -> Expr:
        lanes, groups = self.k.isa.lanes, -(-self.k.geometry.span // self.how.group)
        scale = self.k.constants.vector("scale", self._at(groups, g, j), lanes, self.how.scale_dtype)
        return T.Cast(f"float32x{lanes}", scale)

    def _held(self, value: Expr) -> Buffer:
        """A vector in a register."""
        cell = accumulator(self.k.isa)
        store(cell, 0, value, self.k.isa.lanes)
        return cell

    def _add(self, cell: Buffer, a: Expr, b: Expr) -> None:
        lanes, isa = self.k.isa.lanes, self.k.isa
        total = load(cell, 0, lanes)
        store(cell, 0, fma(a, b, total, lanes) if isa.features else a * b + total, lanes)


def _repeat(extent: int, body: Callable[[Index], None]) -> None:
    if extent <= 1:
        for i in range(extent):
            body(i)
        return
    with T.serial(0, extent) as i:
        body(i)
