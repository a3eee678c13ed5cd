"""Dense layers on x86: ``qdense``, ``qdense16`` with integer instructions, ``fdense`` with FMA."""

from __future__ import annotations

import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.schedules.x86_geometry import Axis, Geometry, Scratch
from tvm_qplugin.schedules.x86_isa import Isa, select_isa
from tvm_qplugin.schedules.x86_kernel import Plan, computable, with_pairs
from tvm_qplugin.schedules.x86_tiles import Tile

KERNELS = ("qdense", "qdense16", "fdense")


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel with the default tile; None when another rule or the portable kernel must serve."""
    found = fastest(call, target)
    return None if found is None else found.implement(found.default())


def with_tile(call: KernelCall, target: tvm.target.Target, tile: Tile) -> Implementation | None:
    """The kernel with a given tile; None as ``rule``."""
    found = fastest(call, target)
    return None if found is None else found.implement(tile)


def candidates(call: KernelCall, target: tvm.target.Target) -> list[Tile]:
    """Tiles worth measuring, the default first; empty when the rule does not apply."""
    found = fastest(call, target)
    return [] if found is None else found.candidates()


def plan(call: KernelCall, target: tvm.target.Target) -> Plan | None:
    """Instruction set and geometry, if this file serves the call."""
    if not computable(call, KERNELS):
        return None
    isa = select_isa(call.args[0].dtype, target)
    return None if isa is None else Plan(call, isa, dense_geometry(call, isa))


def fastest(call: KernelCall, target: tvm.target.Target) -> Plan | None:
    """``plan``, with bytes in pairs where the weights make that faster."""
    found = plan(call, target)
    return None if found is None else with_pairs(found, dense_geometry)


def dense_geometry(call: KernelCall, isa: Isa) -> Geometry:
    """``x [..., K]`` times ``weight [N, K]``: every row is a pixel."""
    depth, features = call.args[0].shape[-1], call.out.shape[-1]
    rows = call.args[0].size // depth
    scratch = None
    if isa.source or depth < isa.depth:
        scratch = Scratch((1, 1, rows, depth), (1, rows), 0, 0, isa.source or call.args[0].dtype)
    return Geometry(
        (Axis(rows, depth, features),), (), depth, isa.depth, isa.lanes, 1, features, 0, scratch=scratch
    )
