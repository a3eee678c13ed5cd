"""Dense layers on x86: ``qdense`` with int8 instructions, ``fdense`` with FMA."""

from __future__ import annotations

import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.schedules.x86_geometry import Geometry, dense_geometry
from tvm_qplugin.schedules.x86_isa import Isa, select_isa
from tvm_qplugin.schedules.x86_kernel import implement_float, implement_integer
from tvm_qplugin.schedules.x86_tiles import Tile, candidate_tiles, default_tile

KERNELS = ("qdense", "fdense")


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel with the default tile; None when the portable kernel must serve."""
    found = plan(call, target)
    if found is None:
        return None
    isa, geometry = found
    return with_tile(call, isa, default_tile(isa, geometry.shape, geometry.weight_bytes))


def with_tile(call: KernelCall, isa: Isa, tile: Tile) -> Implementation | None:
    """The kernel with a given tile; None when its numbers cannot be represented."""
    geometry = dense_geometry(call, isa)
    build = implement_integer if call.name == "qdense" else implement_float
    return build(call, isa, geometry, tile)


def candidates(call: KernelCall, target: tvm.target.Target) -> list[Tile]:
    """Tiles worth measuring, the default first; empty when the rule does not apply."""
    found = plan(call, target)
    return [] if found is None else candidate_tiles(found[0], found[1].shape, found[1].weight_bytes)


def plan(call: KernelCall, target: tvm.target.Target) -> tuple[Isa, Geometry] | None:
    """Instruction set and geometry, if this file serves the call."""
    if call.name not in KERNELS or any(i not in call.constants for i in range(1, len(call.args))):
        return None
    isa = select_isa(call.args[0].dtype, target)
    return None if isa is None else (isa, dense_geometry(call, isa))
