"""``qsoftmax16`` on x86 with AVX512BW: 32 elements of a row at a time, tables in registers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall, TensorSpec
from tvm_qplugin.core.interpolated import SEGMENTS
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.primfunc import arguments, function
from tvm_qplugin.schedules.x86_border import each_piece
from tvm_qplugin.schedules.x86_dynamic_emit import across
from tvm_qplugin.schedules.x86_isa import (
    I16_512,
    Buffer,
    Expr,
    Index,
    T,
    dot_int16,
    intrinsic,
    load,
    splat,
    store,
    supports,
)
from tvm_qplugin.schedules.x86_lanes16 import Lanes, Value

LANES = 32
VECTOR = f"int16x{LANES}"
WORDS = Lanes(LANES)
PARALLEL_ELEMENTS = 16 * 1024
MOST = 2**16
"""Elements of a row: the sum of their exponentials fits int32."""
WORD = np.iinfo("int16")


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel; None for other axes than the last, short rows, and CPUs without 512-bit registers."""
    if call.name != "qsoftmax16" or not supports(I16_512, target) or not {1, 2} <= set(call.constants):
        return None
    shape = call.args[0].shape
    tables = _tables(call)
    if call.params["axis"] != len(shape) - 1 or not LANES <= shape[-1] <= MOST or tables is None:
        return None
    with function(call) as builder:
        _rows(call, *arguments([call.args[0], TensorSpec(tables.shape, "int16"), call.out]))
    return Implementation(builder.get(), (0, tables))


def _tables(call: KernelCall) -> Array | None:
    """Exponentials, how far each lies below the next, and reciprocals; None where that is no int16."""
    exponentials, reciprocals = (np.asarray(call.constants[i]) for i in (1, 2))
    steps = np.diff(exponentials.astype("int32"))
    if steps.min() < WORD.min or steps.max() > WORD.max:
        return None
    return np.concatenate([exponentials[:SEGMENTS], steps.astype("int16"), reciprocals])


def _rows(call: KernelCall, q: Buffer, tables: Buffer, out: Buffer) -> None:
    width = call.out.shape[-1]
    rows = math.prod(call.out.shape[:-1])
    parallel = rows > 1 and rows * width >= PARALLEL_ELEMENTS
    with (T.parallel if parallel else T.serial)(0, rows) as r, T.sblock("row"):
        T.reads()
        T.writes()
        row = _Row(call, q, tables, out, r * width, width)
        row.scale(row.exponentials(row.largest()))


@dataclass(frozen=True)
class _Row:
    """``width`` elements from ``start`` on; exponentials lie in the output until they are scaled."""

    call: KernelCall
    q: Buffer
    tables: Buffer
    out: Buffer
    start: Expr
    width: int

    def largest(self) -> Expr:
        """The largest element, in int32."""
        top = T.sblock_alloc_buffer((LANES,), "int16")
        store(top, 0, splat(T.int16(WORD.min), LANES), LANES)

        def take(at: Index, _fresh: int) -> None:
            store(top, 0, T.max(load(top, 0, LANES), load(self.q, at, LANES)), LANES)

        self._each(take)
        return T.Cast("int32", across(T.max, [top], LANES))

    def exponentials(self, top: Expr) -> Buffer:
        """Write them; gives one element, their sum."""
        sums = T.sblock_alloc_buffer((LANES // 2,), "int32")
        store(sums, 0, splat(T.int32(0), LANES // 2), LANES // 2)

        def take(at: Index, fresh: int) -> None:
            halves = [self._distance(at + n, top) for n in (0, LANES // 2)]
            codes = T.Shuffle(halves, [T.int32(i) for i in range(LANES)])
            e = WORDS.kept(self._exponential(codes), "int16")
            store(self.out, at, e, LANES)
            store(sums, 0, dot_int16(I16_512, load(sums, 0, LANES // 2), e, _last(fresh)), LANES // 2)

        self._each(take)
        across(lambda x, y: x + y, [sums], LANES // 2)
        return sums

    def scale(self, sums: Buffer) -> None:
        """Multiply every exponential with the reciprocal of the sum."""
        scalars = T.sblock_alloc_buffer((2,), "int32")
        bits, inverse = scalars[0], scalars[1]
        store(scalars, 0, T.int32(31) - T.Cast("int32", T.clz(sums[0])), 1)
        store(scalars, 1, self._reciprocal(sums[0], bits), 1)

        def write(offset: Index, lanes: int) -> None:
            def every(value: Expr) -> Expr:
                return value if lanes == 1 else splat(value, lanes)

            suffix = "" if lanes == 1 else f"x{lanes}"
            e = T.Cast(f"int32{suffix}", load(self.out, self.start + offset, lanes))
            half = T.shift_left(T.int32(1), bits - T.int32(1))
            code = T.shift_right(e * every(inverse) + every(half), every(bits))
            low, high = (T.int32(self.call.params[key]) for key in ("lo", "hi"))
            code = T.max(T.min(code, every(high)), every(low))
            store(self.out, self.start + offset, T.Cast(f"int16{suffix}", code), lanes)

        each_piece(self.width, LANES // 2, write)

    def _each(self, take: Callable[[Index, int], None]) -> None:
        """All vectors, and how many of their last elements no vector before has."""
        whole, rest = divmod(self.width, LANES)
        with T.serial(0, whole) as i:
            take(self.start + i * LANES, LANES)
        if rest:
            take(self.start + (self.width - LANES), rest)

    def _distance(self, at: Index, top: Expr) -> Expr:
        """Codes of what 16 elements lie below the largest: 32767 where it is nothing."""
        lanes = LANES // 2
        below = T.Cast(f"int32x{lanes}", load(self.q, at, lanes)) - splat(top, lanes)
        p = {"in_zp": 0, "multiplier": self.call.params["multiplier"]}
        p |= {"out_zp": WORD.max, "lo": WORD.min, "hi": WORD.max}
        return T.Cast(f"int16x{lanes}", Lanes(lanes).requantized(p, Value(below, 2**16 - 1)).lanes)

    def _exponential(self, code: Expr) -> Expr:
        """``interpolate``: ``(step * part + 64) >> 7`` is a rounded product with 256 times the part."""
        code = WORDS.kept(code, "int16")
        segment = WORDS.kept(_shifted(code, 7) + splat(T.int16(SEGMENTS // 2), LANES), "int16")
        left, step = (self._entry(segment, table * SEGMENTS) for table in (0, 1))
        part = T.shift_left(T.bitwise_and(code, splat(T.int16(127), LANES)), splat(T.int16(8), LANES))
        return left + intrinsic(VECTOR, "llvm.x86.avx512.pmul.hr.sw.512", step, part)

    def _entry(self, segment: Expr, start: int) -> Expr:
        """Elements of a table of 512: those of each 64 by permutation, one of the results by three bits."""
        found = []
        for n in range(start, start + SEGMENTS, 2 * LANES):
            two = [load(self.tables, n + side, LANES) for side in (0, LANES)]
            found.append(intrinsic(VECTOR, "llvm.x86.avx512.vpermi2var.hi.512", two[0], segment, two[1]))
        for bit in (64, 128, 256):
            none = T.bitwise_and(segment, splat(T.int16(bit), LANES)) == splat(T.int16(0), LANES)
            found = [T.Select(none, found[i], found[i + 1]) for i in range(0, len(found), 2)]
        return found[0]

    def _reciprocal(self, total: Expr, bits: Expr) -> Expr:
        """Of a sum that is normalized to [1, 2)."""
        raised = T.shift_left(T.Cast("int64", total), T.Cast("int64", T.int32(30) - bits))
        normal = T.Cast("int32", T.shift_right(raised + T.int64(1 << 13), T.int64(14)))
        code = T.max(T.min(normal - T.int32(3 << 15), T.int32(WORD.max)), T.int32(WORD.min))
        place = T.shift_right(code, T.int32(7)) + T.int32(2 * SEGMENTS + SEGMENTS // 2)
        left, right = (T.Cast("int32", self.tables[place + n]) for n in (0, 1))
        part = (right - left) * T.bitwise_and(code, T.int32(127)) + T.int32(64)
        return left + T.shift_right(part, T.int32(7))


def _shifted(value: Expr, bits: int) -> Expr:
    return T.shift_right(value, splat(T.int16(bits), LANES))


def _last(count: int) -> Expr:
    """1 in the last lanes, 0 in the others."""
    if count == LANES:
        return splat(T.int16(1), LANES)
    return T.Cast(VECTOR, T.ramp(T.int32(0), 1, LANES) >= splat(T.int32(LANES - count), LANES))
