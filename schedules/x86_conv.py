"""Convolutions (not depthwise) on x86: ``qconv2d`` with int8 instructions, ``fconv2d`` with FMA.

Beside the parameters of ``core/oracle.py`` a call may carry ``in_halo`` and ``out_halo`` (t, l, b, r): the
physical tensors have that many rows and columns of zero points around the logical ones.
"""

from __future__ import annotations

import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.schedules.x86_geometry import conv_geometry
from tvm_qplugin.schedules.x86_isa import select_isa
from tvm_qplugin.schedules.x86_kernel import Plan, computable
from tvm_qplugin.schedules.x86_tiles import Tile

KERNELS = ("qconv2d", "fconv2d")


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel with the default tile; None when another rule or the portable kernel must serve."""
    found = plan(call, target)
    return None if found is None else found.implement(found.default())


def with_tile(call: KernelCall, target: tvm.target.Target, tile: Tile) -> Implementation | None:
    """The kernel with a given tile; None as ``rule``."""
    found = plan(call, target)
    return None if found is None else found.implement(tile)


def candidates(call: KernelCall, target: tvm.target.Target) -> list[Tile]:
    """Tiles worth measuring, the default first; empty when the rule does not apply."""
    found = plan(call, target)
    return [] if found is None else found.candidates()


def plan(call: KernelCall, target: tvm.target.Target) -> Plan | None:
    """Instruction set and geometry, if this file serves the call."""
    if not computable(call, KERNELS):
        return None
    groups = call.params.get("groups", 1)
    if groups > 1 and groups == call.args[0].shape[3] and call.args[1].shape[3] == 1:
        return None
    isa = select_isa(call.args[0].dtype, target)
    return None if isa is None else Plan(call, isa, conv_geometry(call, isa))
