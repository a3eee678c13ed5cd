"""Products of two activations on x86: ``qmatmul`` and ``qmatmul16`` of integers, ``dmatmul`` of floats.

The second operand is packed at run time as weights are at compile time; dimensions in front are groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.core.qparams import centre
from tvm_qplugin.schedules.primfunc import arguments, function
from tvm_qplugin.schedules.x86_constants import Reader
from tvm_qplugin.schedules.x86_dynamic_emit import DynamicEpilogue, quantized_rows
from tvm_qplugin.schedules.x86_emit import walk
from tvm_qplugin.schedules.x86_geometry import Axis, Geometry
from tvm_qplugin.schedules.x86_isa import Buffer, Expr, Index, Isa, T, load, prefetch, select_isa, splat
from tvm_qplugin.schedules.x86_matmul_epilogue import MatmulEpilogue, WordMatmulEpilogue, row_terms
from tvm_qplugin.schedules.x86_matmul_pack import Operand, packed_floats, packed_integers, packed_words
from tvm_qplugin.schedules.x86_reduce import Kernel
from tvm_qplugin.schedules.x86_tiles import MOST_PIXELS, Tile, default_tile, fits

MOST_BYTES = 8192  # terms of a sum with all corrections, and halves to round it by, stay in int32
MOST_WORDS = 256  # so do as many products of int16 and a byte
DTYPES = {"qmatmul": "uint8", "qmatmul16": "int16", "dmatmul": "float32"}
"""The kernels, and what both operands are stored as."""


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel; None where operands broadcast, are smaller than a vector, too deep or of other dtypes."""
    if call.name not in DTYPES:
        return None
    dtype = DTYPES[call.name]
    isa = select_isa("uint8" if dtype == "float32" else dtype, target)
    if isa is None or isa.source or not _served(call, isa):
        return None
    emit = {"qmatmul": _integers, "qmatmul16": _words, "dmatmul": _floats}[call.name]
    with function(call) as builder:
        emit(call, isa, _geometry(call, isa), *arguments([*call.args, call.out]))
    return Implementation(builder.get(), (0, 1))


def _served(call: KernelCall, isa: Isa) -> bool:
    a, b = call.args
    depth, columns = b.shape[-2:]
    words = call.name == "qmatmul16"
    return (
        {a.dtype, b.dtype} == {DTYPES[call.name]}
        and a.shape[:-2] == b.shape[:-2]
        and isa.depth <= depth <= (MOST_WORDS if words else MOST_BYTES)
        and columns >= isa.lanes
        and not (words and columns % isa.lanes)
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
    tile = default_tile(isa, g.shape, g.weight_bytes)
    walk(Kernel(isa, tile, g, a, "uint8", _sections(operand), out), MatmulEpilogue(p, call.out, terms))


def _words(call: KernelCall, isa: Isa, g: Geometry, a: Buffer, b: Buffer, out: Buffer) -> None:
    """Sums of low and of high bytes apart: of whole products they would leave int32."""
    operand = packed_words(Operand(isa, g, b))
    rows = next(n for n in range(MOST_PIXELS, 0, -1) if fits(isa, n, 2))
    (pixels,) = g.pixels
    twice = replace(
        g,
        pixels=(replace(pixels, out=2 * pixels.out),),
        channels=2 * g.channels,
        group_out=2 * call.out.shape[-2] * call.out.shape[-1],
    )
    kernel = Kernel(isa, Tile(rows, 2, "mo"), twice, a, "int16", _sections(operand, "int16"), out)
    walk(kernel, WordMatmulEpilogue(call.params))


def _floats(call: KernelCall, isa: Isa, g: Geometry, a: Buffer, b: Buffer, out: Buffer) -> None:
    codes, grid = quantized_rows(isa, a, call.args[0])
    operand = packed_floats(Operand(isa, g, b))
    tile, epilogue = (
        default_tile(isa, g.shape, g.weight_bytes),
        DynamicEpilogue(None, None, grid, call.out, True),
    )
    walk(Kernel(isa, tile, g, codes, "uint8", _sections(operand), out), epilogue)


def _sections(buffers: Mapping[str, Buffer], dtype: str = "int8") -> Sections:
    return Sections(dtype, {}, buffers["weights"], buffers=buffers)


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
