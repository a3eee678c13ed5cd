"""Products of two activations on x86 with VNNI: ``qmatmul`` of integers, ``dmatmul`` of floats.

The second operand is packed at run time as weights are at compile time; dimensions in front are groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.core.qparams import centre
from tvm_qplugin.schedules.primfunc import arguments, function
from tvm_qplugin.schedules.x86_constants import Reader
from tvm_qplugin.schedules.x86_dynamic_emit import DynamicEpilogue, quantized_rows
from tvm_qplugin.schedules.x86_emit import walk
from tvm_qplugin.schedules.x86_geometry import Axis, Geometry
from tvm_qplugin.schedules.x86_isa import Buffer, Expr, Index, Isa, T, load, prefetch, select_isa, splat
from tvm_qplugin.schedules.x86_matmul_epilogue import MatmulEpilogue, row_terms
from tvm_qplugin.schedules.x86_matmul_pack import Operand, packed_floats, packed_integers
from tvm_qplugin.schedules.x86_reduce import Kernel
from tvm_qplugin.schedules.x86_tiles import default_tile

MOST_DEEP = 8192  # sums with all corrections, and halves to round them by, stay in int32


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel; None where operands broadcast, are smaller than a vector, or of other dtypes."""
    isa = select_isa("uint8", target)
    if call.name not in ("qmatmul", "dmatmul") or isa is None or isa.depth != 4 or not _served(call, isa):
        return None
    geometry = _geometry(call, isa)
    with function(call) as builder:
        a, b, out = arguments([*call.args, call.out])
        if call.name == "qmatmul":
            _integers(call, isa, geometry, a, b, out)
        else:
            _floats(call, isa, geometry, a, b, out)
    return Implementation(builder.get(), (0, 1))


def _served(call: KernelCall, isa: Isa) -> bool:
    a, b = call.args
    dtype = "uint8" if call.name == "qmatmul" else "float32"
    depth, columns = b.shape[-2:]
    return (
        (a.dtype, b.dtype) == (dtype, dtype)
        and a.shape[:-2] == b.shape[:-2]
        and isa.depth <= depth <= MOST_DEEP
        and columns >= isa.lanes
    )


def _geometry(call: KernelCall, isa: Isa) -> Geometry:
    """Every matrix is a group of its own, its rows are pixels."""
    rows, depth = call.args[0].shape[-2:]
    columns, groups = call.out.shape[-1], math.prod(call.out.shape[:-2])
    pixels = (Axis(rows, depth, columns),)
    return Geometry(
        pixels, (), depth, isa.depth, isa.lanes, groups, columns, rows * depth, group_out=rows * columns
    )


def _integers(call: KernelCall, isa: Isa, g: Geometry, a: Buffer, b: Buffer, out: Buffer) -> None:
    p, zero = call.params, call.params["b_zp"] - centre("uint8")
    operand = packed_integers(Operand(isa, g, b), p["a_zp"])
    terms = row_terms(isa, g, a, p["a_zp"], zero) if zero else None
    walk(_kernel(isa, g, a, operand, out), MatmulEpilogue(p, call.out, terms))


def _floats(call: KernelCall, isa: Isa, g: Geometry, a: Buffer, b: Buffer, out: Buffer) -> None:
    codes, grid = quantized_rows(isa, a, call.args[0])
    operand = packed_floats(Operand(isa, g, b))
    walk(_kernel(isa, g, codes, operand, out), DynamicEpilogue(None, None, grid, call.out, True))


def _kernel(isa: Isa, g: Geometry, a: Buffer, sections: Mapping[str, Buffer], out: Buffer) -> Kernel:
    tile = default_tile(isa, g.shape, g.weight_bytes)
    reader = Sections("int8", {}, sections["weights"], sections)
    return Kernel(isa, tile, g, a, "uint8", reader, out)


@dataclass(frozen=True)
class Sections(Reader):
    """What a kernel reads from buffers that it fills itself; sections that there are none of are zeros."""

    buffers: Mapping[str, Buffer] = field(default_factory=dict)

    def vector(self, name: str, index: Index, lanes: int, dtype: str) -> Expr:
        """``lanes`` elements of a section from element ``index`` on."""
        if name in self.buffers:
            return load(self.buffers[name], index, lanes)
        return splat(T.Cast(dtype, T.int32(0)), lanes)

    def prefetch(self, name: str, index: Index) -> None:
        """Prefetch the line of an element."""
        prefetch(self.buffers[name], index)
