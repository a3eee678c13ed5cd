"""Average pooling on x86 that does not count the padding: ``qavgpool2d`` of uint8, exact division by n.

Output rows and columns whose windows hold equally many elements are walked together, so that taps and
divisor of every loop are constants: nine loops for a window of 3 x 3 with a border of 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.core.qparams import INTEGER_RANGE
from tvm_qplugin.schedules.primfunc import arguments, function
from tvm_qplugin.schedules.x86_border import PARALLEL_ELEMENTS, each_piece
from tvm_qplugin.schedules.x86_isa import (
    AVX2,
    VNNI512,
    Buffer,
    Expr,
    Index,
    T,
    intrinsic,
    load,
    splat,
    store,
    supports,
)
from tvm_qplugin.schedules.x86_tiles import balanced

MAX_TAPS = 25  # a window is written out in full
COLUMNS = 8  # whose vertical sums stay in registers

MULTIPLY_HIGH = {
    32: "llvm.x86.avx512.pmulhu.w.512",
    16: "llvm.x86.avx2.pmulhu.w",
    8: "llvm.x86.sse2.pmulhu.w",
}


@dataclass(frozen=True)
class Run:
    """``count`` outputs from ``first`` on; windows of ``taps`` elements from ``start`` on, a stride apart."""

    first: int
    count: int
    start: int
    taps: int


@dataclass(frozen=True)
class _Pool:
    """What the emitting functions share; a vector has ``lanes`` 16-bit sums."""

    call: KernelCall
    source: Buffer
    out: Buffer
    lanes: int

    def at(self, buffer: Buffer, image: Index, y: Index, x: Index) -> Index:
        """The first channel of a pixel."""
        shape = (self.call.args[0] if buffer is self.source else self.call.out).shape
        return ((image * shape[1] + y) * shape[2] + x) * shape[3]


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel; None for other pools, large windows, halos and windows of nothing but padding."""
    p, isa = call.params, next((isa for isa in (VNNI512, AVX2) if supports(isa, target)), None)
    if isa is None or call.name != "qavgpool2d" or p["count_include_pad"] or not any(p["padding"]):
        return None
    if call.args[0].dtype != "uint8" or any(any(p.get(f"{side}_halo") or ()) for side in ("in", "out")):
        return None
    rows, columns = ([*runs(call, axis)] for axis in (0, 1))
    counts = {row.taps * column.taps for row in rows for column in columns}
    if min(counts) < 1 or max(counts) > MAX_TAPS:
        return None
    return _implement(call, isa.bytes // 2, rows, columns)


def runs(call: KernelCall, axis: int) -> Iterator[Run]:
    """The outputs along rows (0) or columns (1), cut where windows begin to differ."""
    p, size = call.params, call.args[0].shape[1 + axis]
    pool, stride, pad = p["pool"][axis], p["strides"][axis], p["padding"][axis]
    run: Run | None = None
    for i in range(call.out.shape[1 + axis]):
        start = max(i * stride - pad, 0)
        taps = min(i * stride - pad + pool, size) - start
        if run and run.taps == taps and start == run.start + run.count * stride:
            run = Run(run.first, run.count + 1, run.start, taps)
            continue
        if run:
            yield run
        run = Run(i, 1, start, taps)
    if run:
        yield run


def divisor(n: int) -> tuple[int, int]:
    """(multiplier, shift): ``(u * multiplier >> 16) >> shift`` is ``u // n`` for all rounded sums of n bytes.

    >>> divisor(9)
    (7282, 0)
    """
    sums = np.arange(255 * n + n // 2 + 1, dtype="uint64")
    for shift in range(8):
        multiplier = -(-(1 << (16 + shift)) // n)
        if multiplier < 1 << 16 and np.array_equal(sums * multiplier >> 16 + shift, sums // n):
            return multiplier, shift
    raise ValueError(f"no 16-bit multiplier divides by {n}")


def _implement(call: KernelCall, lanes: int, rows: Sequence[Run], columns: Sequence[Run]) -> Implementation:
    with function(call) as builder:
        source, out = arguments([call.args[0], call.out])
        pool, images = _Pool(call, source, out, lanes), call.out.shape[0]
        for row in rows:
            big = row.count * call.out.size // call.out.shape[1] >= PARALLEL_ELEMENTS
            with (T.parallel if big else T.serial)(0, images * row.count) as i:
                for column in columns:
                    _columns(pool, T.floordiv(i, row.count), T.floormod(i, row.count), row, column)
    return Implementation(builder.get(), (0,))


def _columns(pool: _Pool, image: Index, i: Index, row: Run, column: Run) -> None:
    """Row ``i`` of a run of rows: the outputs of a run of columns, some columns at a time."""
    down, right = pool.call.params["strides"]
    tiles = 0
    for part in balanced(column.count, COLUMNS):
        with T.serial(0, part.count) as n:
            first = (n + tiles) * part.size + part.offset
            source = pool.at(pool.source, image, row.start + i * down, column.start + first * right)
            out = pool.at(pool.out, image, row.first + i, column.first + first)

            def write(
                at: Index, lanes: int, source: Index = source, out: Index = out, size: int = part.size
            ) -> None:
                with T.sblock("tile"):
                    T.reads()
                    T.writes()
                    _tile(pool, (source + at, out + at), (row.taps, column.taps), (size, right), lanes)

            each_piece(pool.call.out.shape[3], pool.lanes, write)
        tiles += part.count


def _tile(
    pool: _Pool, at: tuple[Index, Index], taps: tuple[int, int], columns: tuple[int, int], lanes: int
) -> None:
    """Some (``columns``: how many, their stride) outputs of a row, ``lanes`` channels of each."""
    (size, stride), channels = columns, pool.call.args[0].shape[3]
    pitch = channels * pool.call.args[0].shape[2]
    sums = []
    for x in range((size - 1) * stride + taps[1]):
        places = (at[0] + (y * pitch + x * channels) for y in range(taps[0]))
        total = _sum(T.Cast(_of("uint16", lanes), load(pool.source, place, lanes)) for place in places)
        sums.append(T.sblock_alloc_buffer((lanes,), "uint16"))
        store(sums[-1], 0, total, lanes)
    for x in range(size):
        total = _sum(load(cell, 0, lanes) for cell in sums[x * stride : x * stride + taps[1]])
        store(pool.out, at[1] + x * channels, _mean(pool, total, taps[0] * taps[1], lanes), lanes)


def _sum(terms: Iterable[Expr]) -> Expr:
    """Without the 0 that ``sum`` starts from, which would widen the terms to int32."""
    return reduce(add, terms)


def _mean(pool: _Pool, total: Expr, n: int, lanes: int) -> Expr:
    """The quotient of signed codes, half away from 0, from the sum of ``n`` bytes: code + 128."""
    p, half = pool.call.params, n // 2

    def word(value: int) -> Expr:
        return T.IntImm("uint16", value) if lanes == 1 else splat(T.IntImm("uint16", value), lanes)

    if n > 1:
        rounding = word(half) if n % 2 else T.Select(total < word(128 * n), word(half - 1), word(half))
        multiplier, shift = divisor(n)
        total = _multiply_high(total + rounding, word(multiplier), lanes)
        total = T.shift_right(total, word(shift)) if shift else total
    lo, hi = INTEGER_RANGE["uint8"]
    total = T.max(total, word(p["lo"])) if p["lo"] > lo else total
    total = T.min(total, word(p["hi"])) if p["hi"] < hi else total
    return T.Cast(_of("uint8", lanes), total)


def _multiply_high(a: Expr, b: Expr, lanes: int) -> Expr:
    """The upper 16 bits of the products."""
    if lanes in MULTIPLY_HIGH:
        return intrinsic(f"uint16x{lanes}", MULTIPLY_HIGH[lanes], a, b)
    wide, by = _of("uint32", lanes), T.IntImm("uint32", 16)
    product = T.Cast(wide, a) * T.Cast(wide, b)
    return T.Cast(_of("uint16", lanes), T.shift_right(product, by if lanes == 1 else splat(by, lanes)))


def _of(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
