"""Products of two activations on x86: ``qmatmul`` and ``qmatmul16`` of integers, ``dmatmul`` of floats.

The second operand is packed at run time as weights are at compile time; dimensions in front are groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import tvm

from tvm_qplugin.core.attrs import INSTRUCTION, Implementation, KernelCall
from tvm_qplugin.core.qparams import centre
from tvm_qplugin.schedules.primfunc import arguments, function
from tvm_qplugin.schedules.x86_border import workspace
from tvm_qplugin.schedules.x86_constants import Reader
from tvm_qplugin.schedules.x86_dynamic_emit import DynamicEpilogue, quantized_rows
from tvm_qplugin.schedules.x86_emit import walk
from tvm_qplugin.schedules.x86_geometry import Axis, Geometry
from tvm_qplugin.schedules.x86_isa import (
    INSTRUCTIONS,
    Buffer,
    Expr,
    Index,
    Isa,
    T,
    load,
    prefetch,
    select_isa,
    splat,
)
from tvm_qplugin.schedules.x86_matmul_epilogue import (
    MatmulEpilogue,
    WordMatmulEpilogue,
    largest_row,
    row_terms,
)
from tvm_qplugin.schedules.x86_matmul_pack import (
    Operand,
    pack_words,
    packed_floats,
    packed_integers,
    with_slack,
)
from tvm_qplugin.schedules.x86_reduce import Kernel
from tvm_qplugin.schedules.x86_rescale16 import Cut
from tvm_qplugin.schedules.x86_tiles import (
    L1_BYTES,
    MOST_PIXELS,
    Tile,
    balanced,
    default_tile,
    estimate,
    fits,
)

MOST_FLOATS = 2**16
"""Terms whose sum stays in int32, as it has to where it becomes a float; others wrap as the oracle's do."""
MOST_WORDS = 511
"""Products of an int16 and a low or high part whose sum stays in int32."""
MOST_MAGNITUDE = 2**16 - 1
"""The sum of magnitudes of a row whose products with int16 stay in int32."""
DTYPES = {"qmatmul": "uint8", "qmatmul16": "int16", "dmatmul": "float32"}
"""The kernels, and what both operands are stored as."""


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel; None where the first operand broadcasts or has few rows, and for deep floats."""
    if call.name not in DTYPES:
        return None
    dtype = DTYPES[call.name]
    isa = select_isa("uint8" if dtype == "float32" else dtype, target)
    cut = _matrices(call)
    if isa is None or cut is None or {arg.dtype for arg in call.args} != {dtype}:
        return None
    if cut[1] < _least_rows(call, isa) or (dtype == "float32" and call.args[0].shape[-1] > MOST_FLOATS):
        return None
    emit = {"qmatmul": _integers, "qmatmul16": _words, "dmatmul": _floats}[call.name]
    with function(call) as builder:
        emit(call, isa, _geometry(call, isa, *cut), *arguments([*call.args, call.out]))
    return Implementation(builder.get().with_attr(INSTRUCTION, INSTRUCTIONS[isa.name]), (0, 1))


def _matrices(call: KernelCall) -> tuple[int, int] | None:
    """How many second operands there are, and the rows of the first for each, of one matrix or of several."""
    a, b = (arg.shape[:-2] for arg in call.args)
    depth = max(len(a), len(b))
    a, b = ((*[1] * (depth - len(lead)), *lead) for lead in (a, b))
    same = next((i for i in range(depth) if a[i] != b[i]), depth)
    if any(extent != 1 for extent in b[same:]):
        return None
    return math.prod(b[:same]), math.prod(a[same:]) * call.args[0].shape[-2]


def _least_rows(call: KernelCall, isa: Isa) -> int:
    """Of fewer, packing takes longer than the portable kernel, which reads the second operand as it lies."""
    return {"qmatmul": 2, "qmatmul16": isa.lanes // 4, "dmatmul": 1}[call.name]


def _geometry(call: KernelCall, isa: Isa, groups: int, rows: int) -> Geometry:
    """Every second operand is a group of its own, the rows are pixels."""
    depth, columns = call.args[0].shape[-1], call.out.shape[-1]
    pixels = (Axis(rows, depth, columns),)
    return Geometry(
        pixels, (), depth, isa.depth, isa.lanes, groups, columns, rows * depth, group_out=rows * columns
    )


def _integers(call: KernelCall, isa: Isa, g: Geometry, a: Buffer, b: Buffer, out: Buffer) -> None:
    p, zero = call.params, call.params["b_zp"] - centre("uint8")
    operand = packed_integers(Operand.of(isa, g, b), p["a_zp"])
    terms = row_terms(isa, g, a, p["a_zp"], zero) if zero else None
    tile = default_tile(isa, g.shape, g.weight_bytes)
    kernel = Kernel(isa, tile, g, *_readable(isa, g, a), _sections(operand), out)
    walk(kernel, MatmulEpilogue(p, call.out, terms))


def _words(call: KernelCall, isa: Isa, g: Geometry, a: Buffer, b: Buffer, out: Buffer) -> None:
    """Whole products where the rows at hand keep their sums in int32, as those of probabilities do."""
    operand, weights = Operand.of(isa, g, b), workspace(2 * g.weight_bytes, "int16")
    source, _ = _readable(isa, g, a)

    def emit(halved: bool) -> None:
        pack_words(operand, weights, halved)
        _walk_words(call, isa, g, halved, source, weights, out)

    if not _moderate(call, g):
        emit(True)
        return
    with T.If(largest_row(isa, g, source)[0] <= T.int32(MOST_MAGNITUDE)):
        with T.Then():
            emit(False)
        with T.Else():
            emit(True)


def _moderate(call: KernelCall, g: Geometry) -> bool:
    """Whether a sum beyond int32 would be clamped, so that hardly any is; magnitudes of a row fit int32."""
    return g.span < 2**16 and call.params["factor"] << 16 >= 1 << call.params["shift"]


def _walk_words(
    call: KernelCall, isa: Isa, g: Geometry, halved: bool, source: Buffer, weights: Buffer, out: Buffer
) -> None:
    """``halved``: sums of low and of high parts, side by side."""
    cut = Cut(False, -(-g.span // (MOST_WORDS - 1))) if halved and g.span > MOST_WORDS else None
    tile = default_tile(isa, g.shape, 2 * g.weight_bytes)
    if halved:
        (pixels,) = g.pixels
        g = replace(
            g,
            pixels=(replace(pixels, out=2 * pixels.out),),
            channels=2 * g.blocks * g.lanes - (-g.channels % g.lanes),
            group_out=2 * pixels.extent * pixels.out,
        )
        tile = _word_tile(isa, g)
    kernel = Kernel(isa, tile, g, source, "int16", _sections({"weights": weights}), out)
    walk(kernel, WordMatmulEpilogue(call.params, halved, cut))


def _word_tile(isa: Isa, twice: Geometry) -> Tile:
    """The tile of least estimated cost of those that keep both sums of a vector together."""
    shape = twice.shape
    order = "mo" if 2 * twice.weight_bytes <= L1_BYTES * twice.groups else "om"
    even = [n for n in range(2, 9, 2) if all(part.size % 2 == 0 for part in balanced(shape.blocks, n))]
    tiles = [Tile(m, n, order) for n in even for m in range(1, MOST_PIXELS + 1) if fits(isa, m, n)]
    return min(tiles, key=lambda tile: estimate(isa, shape, tile))


def _readable(isa: Isa, g: Geometry, a: Buffer) -> tuple[Buffer, str]:
    """The first operand as it is multiplied, with slack where its rows are short, and its dtype."""
    dtype = isa.source or str(a.dtype)
    if dtype == str(a.dtype) and g.span >= g.depth:
        return a, dtype
    return with_slack(a, g.groups * g.group_step, dtype), dtype


def _floats(call: KernelCall, isa: Isa, g: Geometry, a: Buffer, b: Buffer, out: Buffer) -> None:
    codes, grid = quantized_rows(isa, a, call.args[0])
    operand = packed_floats(Operand.of(isa, g, b))
    tile, epilogue = (
        default_tile(isa, g.shape, g.weight_bytes),
        DynamicEpilogue(None, None, grid, call.out, True),
    )
    walk(Kernel(isa, tile, g, *_readable(isa, g, codes), _sections(operand), out), epilogue)


def _sections(buffers: Mapping[str, Buffer]) -> Sections:
    return Sections(str(buffers["weights"].dtype), {}, buffers["weights"], buffers=buffers)


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
