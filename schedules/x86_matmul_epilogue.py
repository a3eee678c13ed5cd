"""Sums of products of two activations: corrected for both zero points, rescaled in fixed point."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.schedules.x86_border import PARALLEL_ELEMENTS, workspace
from tvm_qplugin.schedules.x86_dynamic_emit import across
from tvm_qplugin.schedules.x86_epilogue import store_lanes
from tvm_qplugin.schedules.x86_geometry import Geometry
from tvm_qplugin.schedules.x86_isa import Buffer, Expr, Isa, T, dot_int16, load, splat, store
from tvm_qplugin.schedules.x86_lanes16 import rescaled
from tvm_qplugin.schedules.x86_reduce import Cells, Kernel, Spot, products
from tvm_qplugin.schedules.x86_reduce16 import reduce_in_parts
from tvm_qplugin.schedules.x86_rescale16 import Cut


def row_terms(isa: Isa, g: Geometry, a: Buffer, zero: int, other: int) -> Buffer:
    """For every row of ``a``: what the zero point ``other`` of the second operand takes away."""
    rows, lanes = g.groups * g.pixels[0].extent, isa.lanes
    terms = workspace(rows, "int32")
    with T.serial(0, rows) as r, T.sblock("row_sum"):
        T.reads()
        T.writes()
        sums = T.sblock_alloc_buffer((lanes,), "int32")
        store(sums, 0, splat(T.int32(0), lanes), lanes)
        whole = g.span // lanes
        with T.serial(0, whole) as i:
            value = T.Cast(f"int32x{lanes}", load(a, r * g.span + i * lanes, lanes))
            store(sums, 0, load(sums, 0, lanes) + value, lanes)
        with T.serial(whole * lanes, g.span) as k:
            store(sums, 0, sums[0] + T.Cast("int32", a[r * g.span + k]), 1)
        total = across(lambda x, y: x + y, [sums], lanes)
        store(terms, r, (T.int32(g.span * zero) - total) * T.int32(other), 1)
    return terms


def largest_row(isa: Isa, g: Geometry, a: Buffer) -> Buffer:
    """One element: the largest sum of magnitudes of a row of int16; rows are shorter than 2 ** 16."""
    rows, lanes = g.pixels[0].extent, isa.lanes
    largest = workspace(g.groups, "int32")
    parallel = g.groups > 1 and g.groups * rows * g.span >= PARALLEL_ELEMENTS
    with (T.parallel if parallel else T.serial)(0, g.groups) as group, T.sblock("magnitudes"):
        T.reads()
        T.writes()
        store(largest, group, T.int32(0), 1)
        sums = T.sblock_alloc_buffer((lanes,), "int32")
        with T.serial(0, rows) as r:
            start, whole = (group * rows + r) * g.span, g.span // (2 * lanes)
            store(sums, 0, splat(T.int32(0), lanes), lanes)
            with T.serial(0, whole) as i:
                value = load(a, start + i * (2 * lanes), 2 * lanes)
                store(sums, 0, dot_int16(isa, load(sums, 0, lanes), value, _signs(value, 2 * lanes)), lanes)
            with T.serial(whole * 2 * lanes, g.span) as k:
                store(sums, 0, sums[0] + T.abs(T.Cast("int32", a[start + k])), 1)
            total = across(lambda x, y: x + y, [sums], lanes)
            store(largest, group, T.max(largest[group], total), 1)
    with T.serial(1, g.groups) as group:
        store(largest, 0, T.max(largest[0], largest[group]), 1)
    return largest


def _signs(value: Expr, lanes: int) -> Expr:
    """-1 where a value is negative, else 1."""
    negative = T.shift_right(value, splat(T.int16(15), lanes))
    return T.bitwise_or(negative, splat(T.int16(1), lanes))


@dataclass(frozen=True)
class MatmulEpilogue:
    """``fixed_point.multiply`` of the sums, clamped; ``terms``: one of every row, or None."""

    params: Params
    out: TensorSpec
    terms: Buffer | None

    def reduce(self, kernel: Kernel, spot: Spot, acc: Cells) -> Cells:
        """Start every sum with its corrections, and add all products."""
        lanes, columns = kernel.isa.lanes, self.out.shape[-1]
        for i, row in enumerate(acc):
            for j, cell in enumerate(row):
                start = kernel.bias(spot.block + j)
                if self.terms is not None:
                    at = T.floordiv(spot.out, columns) + spot.pixels[i][1] // columns
                    start = start + splat(self.terms[at], lanes)
                store(cell, 0, start, lanes)
        return products(kernel, spot, acc)

    def finish(self, kernel: Kernel, spot: Spot, acc: Cells) -> None:
        """Store every accumulator of a tile."""
        lanes = kernel.isa.lanes
        for i, row in enumerate(acc):
            for j, cell in enumerate(row):
                valid = spot.valid if j == spot.vectors - 1 else lanes
                at = spot.out + spot.pixels[i][1] + j * lanes
                _store(kernel, at, self._code(load(cell, 0, lanes), lanes), self.out.dtype, valid)

    def _code(self, acc: Expr, lanes: int) -> Expr:
        scaled = _scaled(acc, self.params["multiplier"], lanes)
        return _clamped(scaled, self.params, lanes) + splat(T.int32(self.params["out_zp"]), lanes)


@dataclass(frozen=True)
class WordMatmulEpilogue:
    """``fixed_point.multiply_reduced`` of sums. ``cut``: where they may leave int32.

    ``halved``: those of low and of high parts stand side by side; offsets into the output count both.
    """

    params: Params
    halved: bool
    cut: Cut | None

    def reduce(self, kernel: Kernel, spot: Spot, acc: Cells) -> Cells:
        """Add all products, in ``acc`` or in int64."""
        if self.cut is not None:
            return reduce_in_parts(kernel, spot, acc, self.cut)
        lanes = kernel.isa.lanes
        for row in acc:
            for cell in row:
                store(cell, 0, splat(T.int32(0), lanes), lanes)
        return products(kernel, spot, acc)

    def finish(self, kernel: Kernel, spot: Spot, acc: Cells) -> None:
        """Store every accumulator of a tile, or one for every two."""
        lanes, parts = kernel.isa.lanes, 2 if self.halved else 1
        for i, row in enumerate(acc):
            for j in range(0, len(row), parts):
                sums = [load(cell, 0, lanes) for cell in row[j : j + parts]]
                at = T.floordiv(spot.out + spot.pixels[i][1] + j * lanes, parts)
                code = _clamped(self._scaled(sums, lanes), self.params, lanes)
                _store(kernel, at, code, "int16", spot.valid if j == len(row) - parts else lanes)

    def _scaled(self, sums: list[Expr], lanes: int) -> Expr:
        """``sums``: whole ones, or low and high."""
        factor, shift = self.params["factor"], self.params["shift"]
        factors = [factor << 8 * n for n in range(len(sums))]
        if self.cut is None:
            return rescaled(sums, factors, 1 << (shift - 1), shift, lanes)
        total = splat(T.int64(1 << (shift - 1)), lanes)
        for part, each in zip(sums, factors, strict=True):
            total = total + part * splat(T.int64(each), lanes)
        return T.Cast(f"int32x{lanes}", T.shift_right(total, splat(T.int64(shift), lanes)))


def _clamped(value: Expr, p: Params, lanes: int) -> Expr:
    """A distance to the zero point of the output within its bounds."""
    low, high = (splat(T.int32(p[key] - p["out_zp"]), lanes) for key in ("lo", "hi"))
    return T.max(T.min(value, high), low)


def _store(kernel: Kernel, at: Expr, code: Expr, dtype: str, valid: int) -> None:
    lanes = kernel.isa.lanes
    buffer = T.sblock_alloc_buffer((lanes,), dtype)
    store(buffer, 0, T.Cast(f"{dtype}x{lanes}", code), lanes)
    store_lanes(kernel, at, buffer, list(range(valid)))


def _scaled(acc: Expr, multiplier: tuple[int, int], lanes: int) -> Expr:
    """``fixed_point.multiply`` of int32: the product in int64, what is rounded after it in int32.

    A product is beyond -2**31, so that nothing overflows: half is added after all but one bit are gone.
    """
    fixed, exponent = multiplier
    if exponent > 0:
        acc = T.shift_left(acc, splat(T.int32(exponent), lanes))
    value = rescaled([acc], [fixed], 1 << 30, 31, lanes)
    if exponent >= 0:
        return value
    signed = value + T.shift_right(value, splat(T.int32(31), lanes))
    twice = T.shift_right(signed, splat(T.int32(-exponent - 1), lanes))
    return T.shift_right(twice + splat(T.int32(1), lanes), splat(T.int32(1), lanes))
