"""A planned call: its instruction set and geometry, the tiles that suit it, its implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tvm_qplugin.core.attrs import INSTRUCTION, Implementation, KernelCall
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.x86_constants import Constants, fills, words
from tvm_qplugin.schedules.x86_emit import implement
from tvm_qplugin.schedules.x86_epilogue import FloatEpilogue, IntegerEpilogue
from tvm_qplugin.schedules.x86_epilogue16 import WideEpilogue
from tvm_qplugin.schedules.x86_geometry import Geometry
from tvm_qplugin.schedules.x86_int16 import implement16
from tvm_qplugin.schedules.x86_isa import AVX2, INSTRUCTIONS, PAIRS, Isa
from tvm_qplugin.schedules.x86_pack import (
    Requantization,
    fold_zero_point,
    pack_channels,
    pack_weights,
    requantization,
)
from tvm_qplugin.schedules.x86_pairs import chained, multiplies
from tvm_qplugin.schedules.x86_residual import ResidualEpilogue, residual_sections
from tvm_qplugin.schedules.x86_tiles import Tile, candidate_tiles, default_tile

TOO_LARGE = ": its weights are too large for vpmaddubsw"
WIDENED = 1.2  # what a multiplication of int16 costs, beside one of bytes


@dataclass(frozen=True)
class Plan:
    """How a call will be computed, up to the choice of a tile."""

    call: KernelCall
    isa: Isa
    geometry: Geometry

    def default(self) -> Tile:
        """The tile of least estimated cost."""
        return default_tile(self.isa, self.geometry.shape, self._weight_bytes)

    def candidates(self) -> list[Tile]:
        """Tiles worth measuring, the default first."""
        return candidate_tiles(self.isa, self.geometry.shape, self._weight_bytes)

    @property
    def _weight_bytes(self) -> int:
        return self.geometry.weight_bytes * (2 if self.isa.weights == "int16" else 1)

    def implement(self, tile: Tile) -> Implementation | None:
        """Pack the constants and generate; None when the folded bias does not fit int32."""
        found = self._implemented(tile)
        return found and replace(found, func=found.func.with_attr(INSTRUCTION, self.instruction))

    @property
    def instruction(self) -> str:
        """What it multiplies with, and whether weights forbid a faster one."""
        large = self.isa is AVX2 and self.call.args[0].dtype == "uint8"
        return INSTRUCTIONS[self.isa.name] + large * TOO_LARGE

    def _implemented(self, tile: Tile) -> Implementation | None:
        if self.isa.accumulator == "float32":
            return self._implement_float(tile)
        if self.isa.weights == "int16":
            return implement16(self.call, self.isa, self.geometry, tile)
        return self._implement_integer(tile)

    def _implement_integer(self, tile: Tile) -> Implementation | None:
        call, geometry = self.call, self.geometry
        weights = np.asarray(call.constants[1])
        factor = np.broadcast_to(np.asarray(call.constants[3], "float32"), (weights.shape[0],))
        zero = int(call.params["in_zp"])
        bias = fold_zero_point(weights, np.asarray(call.constants[2]), zero)
        if bias is None:
            return None
        finish = requantization(call.params, call.out.dtype, weights, bias, factor)
        constants = Constants.join(
            **self._packed(weights),
            bias=pack_channels(bias, geometry),
            scale=pack_channels(factor, geometry),
            **self._finishing(finish),
            **fills(
                fill_in=zero if geometry.scratch else 0, fill_out=finish.zero_point if geometry.halo else 0
            ),
        )
        return implement(call, self.isa, geometry, tile, self._epilogue(), constants)

    def _epilogue(self) -> IntegerEpilogue:
        if self.call.out.dtype == "int16":
            return WideEpilogue("int16")
        return (ResidualEpilogue if "add" in self.call.params else IntegerEpilogue)(self.call.out.dtype)

    def _packed(self, weights: Array) -> dict[str, Array]:
        if self.isa.chain:
            return chained(weights, self.geometry, self.isa.chain).sections()
        return {"weights": pack_weights(weights, self.geometry)}

    def _finishing(self, finish: Requantization) -> dict[str, Array]:
        """The sections that the epilogue reads beside ``scale``."""
        add = self.call.params.get("add")
        return words(finish) if add is None else residual_sections(finish, add)

    def _implement_float(self, tile: Tile) -> Implementation:
        call, geometry = self.call, self.geometry
        weights = np.asarray(call.constants[1])
        bias = np.broadcast_to(np.asarray(call.constants[2]), (weights.shape[0],))
        epilogue = FloatEpilogue(call.params.get("lo"), call.params.get("hi"))
        constants = Constants.join(
            weights=pack_weights(weights, geometry), bias=pack_channels(bias, geometry)
        )
        return implement(call, self.isa, geometry, tile, epilogue, constants)


def with_pairs(plan: Plan, geometry: Callable[[KernelCall, Isa], Geometry]) -> Plan:
    """A plan for AVX2, or that with chains of byte pairs where it takes less time for multiplications."""
    call = plan.call
    if plan.isa is not AVX2 or call.args[0].dtype != "uint8":
        return plan
    pairs = Plan(call, PAIRS, geometry(call, PAIRS))
    each = multiplies(np.asarray(call.constants[1]), pairs.geometry, PAIRS.chain)
    return pairs if pairs.geometry.instructions * each < WIDENED * plan.geometry.instructions else plan


def computable(call: KernelCall, kernels: tuple[str, ...]) -> bool:
    """Whether it is one of the named kernels, of served dtypes, constant but for its activation."""
    weighted = range(1, 4 if "add" in call.params else len(call.args))
    if call.name not in kernels or any(i not in call.constants for i in weighted):
        return False
    if call.args[0].dtype == "int16" and call.out.dtype != "int16":
        return False
    if "add" in call.params and call.out.dtype == "int16":
        return False
    dtypes = (call.args[1].dtype, call.out.dtype)
    return dtypes in (
        ("int8", "uint8"),
        ("int8", "int8"),
        ("int8", "int16"),
        ("float32", "float32"),
        ("float16", "float32"),
    )
