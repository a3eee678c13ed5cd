"""Dense layers of float inputs and stored weights of 8 or 4 bits (``wdense``): unpacked in registers.

The generator of ``x86_emit`` walks the tiles; on CPUs without AVX2 nothing is an intrinsic, so it serves any.
Steps are of eight weights: with 4 bits a vector of int32, one word for each output, the first weight in the
lowest bits; with 8 bits eight vectors of int8. A group begins with a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm.target.codegen import target_has_features

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.core.grouped import Grouped
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.cpu_blocks import vector_bytes
from tvm_qplugin.schedules.x86_constants import Constants
from tvm_qplugin.schedules.x86_dense import dense_geometry
from tvm_qplugin.schedules.x86_emit import implement
from tvm_qplugin.schedules.x86_epilogue import FloatEpilogue
from tvm_qplugin.schedules.x86_geometry import Geometry
from tvm_qplugin.schedules.x86_isa import (
    F32_512,
    Buffer,
    Expr,
    Index,
    Isa,
    T,
    accumulator,
    fma,
    intrinsic,
    load,
    select_isa,
    splat,
    store,
)
from tvm_qplugin.schedules.x86_pack import pack_channels
from tvm_qplugin.schedules.x86_reduce import Cells, Kernel, Spot
from tvm_qplugin.schedules.x86_tiles import Tile

STEP = 8
SINGLE_VECTORS = {8: 4, 4: 6}  # of one row, by bits: sums side by side to hide the latency of FMA
LATE_PIXELS = 2  # up to so many rows sums are scaled, not weights
HELD = 6  # registers for weights, scales and temporaries of two vectors
NIBBLES = np.array([*range(8), *range(-8, 0)], "float32")


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel; None for anything but ``wdense`` of constants."""
    if call.name != "wdense" or set(call.constants) != {1, 2, 3} or target.kind.name != "llvm":
        return None
    isa = select_isa("float32", target) or _portable(target)
    geometry = dense_geometry(call, isa)
    epilogue = WeightOnly(
        call.params.get("lo"),
        call.params.get("hi"),
        call.params["bits"],
        min(call.params["group"], call.params["depth"]),
        "float16" if _halves(call, target) else "float32",
    )
    return implement(
        call,
        isa,
        geometry,
        _tile(isa, geometry, epilogue.bits),
        epilogue,
        _constants(call, geometry, epilogue),
    )


def _portable(target: tvm.target.Target) -> Isa:
    lanes = vector_bytes(target) // 4
    return Isa("portable", (), lanes, 1, 16, 1, "float32", weights="float32")


def _halves(call: KernelCall, target: tvm.target.Target) -> bool:
    """Whether scales stay float16: where converting them is an instruction."""
    return call.args[2].dtype == "float16" and bool(target_has_features(["f16c"], target))


def _tile(isa: Isa, g: Geometry, bits: int) -> Tile:
    """Of few rows many vectors, of many rows two, so that a weight is unpacked for as many rows as can be."""
    rows, wide = g.shape.columns, isa.registers > 16
    if rows == 1:
        return Tile(1, min(SINGLE_VECTORS[bits if wide else 8], g.blocks))
    if rows <= LATE_PIXELS:
        return Tile(rows, min(4 if wide else 2, g.blocks))
    return Tile((isa.registers - HELD) // 2, min(2, g.blocks))


def _constants(call: KernelCall, g: Geometry, epilogue: WeightOnly) -> Constants:
    codes, scale = (np.asarray(call.constants[i]) for i in (1, 2))
    stored = Grouped(codes, scale, call.params["depth"], epilogue.group)
    return Constants.join(
        weights=pack(stored, g.lanes).view("int8"),
        scale=_by_vector(scale.astype(epilogue.scale_dtype), g.lanes),
        bias=pack_channels(np.asarray(call.constants[3], "float32"), g),
        table=NIBBLES,
    )


def pack(stored: Grouped, lanes: int) -> Array:
    """Codes as the kernel reads them: words [vectors, steps, lanes], or bytes [vectors, steps, 8, lanes]."""
    codes, group = stored.values(), stored.group
    parts = [codes[:, start : start + group] for start in range(0, stored.depth, group)]
    steps = np.concatenate([np.pad(p, ((0, 0), (0, -p.shape[1] % STEP))) for p in parts], axis=1)
    by_step = _by_vector(steps, lanes).reshape(-1, steps.shape[1] // STEP, STEP, lanes)
    if stored.bits == 8:
        return by_step
    nibbles = (by_step.view("uint8") & 15).astype("uint32")
    shifts = (4 * np.arange(STEP, dtype="uint32"))[:, None]
    return np.bitwise_or.reduce(nibbles << shifts, axis=2)


def _by_vector(values: Array, lanes: int) -> Array:
    """[N, C] as [vectors of channels, C, lanes], zeros behind the last channel."""
    padded = np.pad(values, ((0, -len(values) % lanes), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, lanes, values.shape[1]).transpose(0, 2, 1))


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
        at = (self.spot.block + j) * self.all_steps + step
        if self.how.bits == 8:
            return T.Cast(
                f"float32x{lanes}", constants.vector("weights", (at * STEP + e) * lanes, lanes, "int8")
            )
        word = constants.vector("weights", at * lanes, lanes, "int32")
        if self.k.isa is F32_512:
            index = T.shift_right(word, splat(T.int32(4 * e), lanes)) if e else word
            table = constants.vector("table", 0, lanes, "float32")
            return intrinsic("float32x16", "llvm.x86.avx512.permvar.sf.512", table, index)
        high = T.shift_left(word, splat(T.int32(28 - 4 * e), lanes)) if e < STEP - 1 else word
        return T.Cast(f"float32x{lanes}", T.shift_right(high, splat(T.int32(28), lanes)))

    def _scale(self, g: Index, j: int) -> Expr:
        lanes, groups = self.k.isa.lanes, -(-self.k.geometry.span // self.how.group)
        at = ((self.spot.block + j) * groups + g) * lanes
        return T.Cast(f"float32x{lanes}", self.k.constants.vector("scale", at, lanes, self.how.scale_dtype))

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
