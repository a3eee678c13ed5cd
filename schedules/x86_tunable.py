"""The knobs of the x86 generators: what tuning may choose of a convolution, dense or depthwise kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.core.tunable import Knobs, Tunable, Value
from tvm_qplugin.schedules import x86_conv, x86_dense, x86_depthwise
from tvm_qplugin.schedules.x86_depthwise_plan import Config, Window, window
from tvm_qplugin.schedules.x86_isa import Isa
from tvm_qplugin.schedules.x86_kernel import Plan
from tvm_qplugin.schedules.x86_tiles import Part, Tile, balanced, estimate, fits

TUNED = ("qconv2d", "qconv2d_add", "qdense", "fconv2d", "fdense")
MOST_UNROLLED = 32
MOST_VECTORS = 8
MOST_KINDS = 8
MOST_DEPTHWISE_TILE = 8
STAGED_KIB = (192, 96, 48, 24)


def conv(call: KernelCall, target: tvm.target.Target) -> Tunable | None:
    """What ``x86_conv`` can be told."""
    found = x86_conv.fastest(call, target) if call.name in TUNED else None
    return None if found is None else TileKnobs(found)


def dense(call: KernelCall, target: tvm.target.Target) -> Tunable | None:
    """What ``x86_dense`` can be told."""
    found = x86_dense.fastest(call, target) if call.name in TUNED else None
    return None if found is None else TileKnobs(found)


def depthwise(call: KernelCall, target: tvm.target.Target) -> Tunable | None:
    """What ``x86_depthwise`` can be told."""
    isa = x86_depthwise.plan(call, target) if call.name in TUNED else None
    return None if isa is None else DepthwiseKnobs(call, target, isa)


@dataclass(frozen=True)
class TileKnobs:
    """``columns`` x ``rows`` pixels times ``nt`` vectors of channels, the order of tiles, unrolling."""

    plan: Plan

    @property
    def isa(self) -> str:
        """Name of the instruction set."""
        return self.plan.isa.name

    @cached_property
    def choices(self) -> dict[str, Sequence[Value]]:
        """Sizes that differ in what they cut, both orders; unrolling where the reduction is short."""
        shape, isa, registers = self.plan.geometry.shape, self.plan.isa, self.plan.isa.registers
        unroll = {4, shape.steps} if shape.steps <= MOST_UNROLLED and not isa.chain else {4}
        return {
            "columns": _sizes(shape.columns, registers),
            "rows": _sizes(shape.rows, registers),
            "nt": _sizes(shape.blocks, 1 if isa.chain else MOST_VECTORS),
            "order": ("om", "mo"),
            "unroll": sorted(unroll),
        }

    def default(self) -> Knobs:
        """The tile of least estimated cost, in the knobs' own terms."""
        return self._knobs(self.plan.default())

    def suggestions(self) -> list[Knobs]:
        """The tiles of least estimated cost."""
        return [self._knobs(tile) for tile in self.plan.candidates()]

    def valid(self, knobs: Knobs) -> bool:
        """Whether accumulators fit the registers, and code is not emitted for too many kinds of tiles."""
        tile, shape = _tile(knobs), self.plan.geometry.shape
        kinds = math.prod(len(cut) for cut in self._cuts(tile))
        return kinds <= MOST_KINDS and fits(self.plan.isa, tile.mt, tile.nt, shape.crowded)

    def features(self, knobs: Knobs) -> list[float]:
        """The shape, the tile, how many kinds and tiles there are, and the estimate per instruction."""
        tile, geometry = _tile(knobs), self.plan.geometry
        shape = geometry.shape
        cuts = self._cuts(tile)
        tiles = [sum(part.count for part in cut) for cut in cuts]
        size = [shape.rows, shape.columns, shape.blocks, shape.steps, geometry.weight_bytes]
        work = shape.rows * shape.columns * shape.blocks * shape.steps
        return [
            *(math.log2(extent) for extent in size),
            *(float(n) for n in (tile.mt // tile.rows, tile.rows, tile.nt, tile.mt * tile.nt)),
            *(math.log2(count) for count in tiles),
            float(tile.order == "om"),
            float(shape.steps <= tile.unroll),
            float(math.prod(len(cut) for cut in cuts)),
            estimate(self.plan.isa, shape, tile) / work,
            float(self.plan.isa.accumulator == "float32"),
        ]

    def implement(self, knobs: Knobs) -> Implementation | None:
        """The kernel; None when its numbers cannot be represented."""
        return self.plan.implement(_tile(knobs))

    def _cuts(self, tile: Tile) -> list[list[Part]]:
        shape = self.plan.geometry.shape
        sizes = ((shape.rows, tile.rows), (shape.columns, tile.mt // tile.rows), (shape.blocks, tile.nt))
        return [balanced(extent, largest) for extent, largest in sizes]

    def _knobs(self, tile: Tile) -> Knobs:
        shape = self.plan.geometry.shape
        largest = {"columns": max(1, tile.mt // tile.rows), "rows": tile.rows, "nt": tile.nt}
        extents = {"columns": shape.columns, "rows": shape.rows, "nt": shape.blocks}
        cut: dict[str, Value] = {
            name: balanced(extents[name], most)[0].size for name, most in largest.items()
        }
        whole = shape.steps <= tile.unroll and not self.plan.isa.chain
        return {**cut, "order": tile.order, "unroll": shape.steps if whole else 4}


def _tile(knobs: Knobs) -> Tile:
    columns, rows, nt, unroll = (int(knobs[name]) for name in ("columns", "rows", "nt", "unroll"))
    return Tile(columns * rows, nt, str(knobs["order"]), rows, unroll)


def _sizes(extent: int, largest: int) -> list[int]:
    """Sizes of tiles that cut ``extent`` in different ways."""
    return sorted({balanced(extent, most)[0].size for most in range(1, min(extent, largest) + 1)})


@dataclass(frozen=True)
class DepthwiseKnobs:
    """How rows are cut in vectors, ``rows`` x ``columns`` outputs a tile, and how much is staged at once."""

    call: KernelCall
    target: tvm.target.Target
    plan: Isa

    @property
    def isa(self) -> str:
        """Name of the instruction set."""
        return self.plan.name

    @cached_property
    def window(self) -> Window:
        """The shapes of the call."""
        return window(self.call)

    @cached_property
    def choices(self) -> dict[str, Sequence[Value]]:
        """Small tiles; one amount to stage where nothing is staged."""
        modes = x86_depthwise.cut_modes(self.window, self.plan)
        height, width = self.window.size
        staged = any(self._config({**self.default(), "mode": mode}).stage for mode in modes)
        return {
            "mode": modes,
            "rows": list(range(1, min(height, 4) + 1)),
            "columns": list(range(1, min(width, MOST_DEPTHWISE_TILE) + 1)),
            "staged_kib": STAGED_KIB if staged else STAGED_KIB[:1],
        }

    def default(self) -> Knobs:
        """What the rule chooses."""
        return self._knobs(x86_depthwise.candidates(self.call, self.target)[0])

    def suggestions(self) -> list[Knobs]:
        """What the rule would try."""
        return [self._knobs(config) for config in x86_depthwise.candidates(self.call, self.target)]

    def valid(self, knobs: Knobs) -> bool:
        """Whether the tile is small, and rows are shared only where that is possible."""
        rows, columns = int(knobs["rows"]), int(knobs["columns"])
        return rows * columns <= MOST_DEPTHWISE_TILE and (rows == 1 or self.window.dilation[0] == 1)

    def features(self, knobs: Knobs) -> list[float]:
        """The shape, the tile and the rows of a chunk."""
        w, config = self.window, self._config(knobs)
        extents = (*w.size, w.channels, *w.kernel, *w.strides, config.chunk)
        return [
            *(math.log2(extent) for extent in extents),
            *(float(n) for n in (config.rows, config.columns, config.rows * config.columns)),
            float(config.mode == "flat"),
            float(config.stage),
            float(self.plan.accumulator == "float32"),
            float(w.size[0] % config.rows),
            float(w.size[1] % config.columns),
            0.0,
        ]

    def implement(self, knobs: Knobs) -> Implementation | None:
        """The kernel; None when its numbers cannot be represented."""
        return x86_depthwise.with_config(self.call, self.target, self._config(knobs))

    def _config(self, knobs: Knobs) -> Config:
        cores, staged = x86_depthwise.cores_of(self.target), int(knobs["staged_kib"]) * 1024
        mode, rows, columns = str(knobs["mode"]), int(knobs["rows"]), int(knobs["columns"])
        return x86_depthwise.complete(self.window, self.plan, cores, mode, rows, columns, staged)

    def _knobs(self, config: Config) -> Knobs:
        return {
            "mode": config.mode,
            "rows": config.rows,
            "columns": min(config.columns, self.window.size[1]),
            "staged_kib": STAGED_KIB[0],
        }
