"""``core/fixed_point.py`` and ``core/interpolated.py`` on vectors of int32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm_qplugin.core.attrs import Params
from tvm_qplugin.core.interpolated import distance_factor
from tvm_qplugin.core.oracle16 import ADD_BITS
from tvm_qplugin.schedules.x86_isa import Buffer, Expr, T, load, splat, store

INT32 = 2**31
WORD = 2**15
LAST = 254
"""The last segment of the table of gates."""


@dataclass(frozen=True)
class Value:
    """Lanes of int32, none beyond ``bound`` in magnitude."""

    lanes: Expr
    bound: int


@dataclass(frozen=True)
class Lanes:
    """Writes expressions of ``count`` lanes; what is used more than once is kept in a register."""

    count: int

    def requantized(self, p: Params, q: Value) -> Value:
        """``requantize16``."""
        moved = Value(q.lanes - self._i32(p["in_zp"]), q.bound + abs(p["in_zp"]))
        return self._clipped(self._multiplied(moved, p["multiplier"]), p)

    def product(self, p: Params, a: Value, b: Value) -> Value:
        """``qmul16``."""
        return self._clipped(self._multiplied(Value(a.lanes * b.lanes, WORD * WORD), p["multiplier"]), p)

    def total(self, p: Params, front: bool | Expr, a: Value, b: Value) -> Value:
        """``qadd16``; ``front``: where operands are shifted and scaled with one rounding."""
        left, right = (self._summand(x, p[f"{side}_multiplier"], front) for x, side in ((a, "a"), (b, "b")))
        both = left.lanes - right.lanes if p["subtract"] else left.lanes + right.lanes
        total = Value(both, min(left.bound + right.bound, INT32))
        return self._clipped(self._multiplied(total, p["out_multiplier"]), p)

    def looked_up(self, q: Value, table: Buffer) -> Value:
        """``qlut`` of int16."""
        index = q.lanes + self._i32(WORD)
        return Value(self._cast("int32", table[index]), WORD)

    def gate(self, name: str, scale: float, q: Value, table: Buffer) -> Value:
        """``logistic16`` or ``tanh16``: a segment of ``gate_table``, a position in it, the sign."""
        factor, shift = distance_factor(scale)
        bits = 9 if name == "logistic16" else 8
        distance = q.lanes * self._i32(factor) + self._i32((1 << shift) >> 1)
        distance = self.kept(T.shift_right(distance, self._i32(shift)))
        positive = distance >= self._i32(0)
        size = self.kept(T.Select(positive, distance, self._i32(0) - distance))
        segment = self.kept(T.shift_right(size, self._i32(bits)))
        entry = self.kept(table[T.min(segment, self._i32(LAST))])
        left = T.bitwise_and(entry, self._i32(0xFFFF))
        part = T.bitwise_and(size, self._i32((1 << bits) - 1)) * T.shift_right(entry, self._i32(16))
        most = 0x7FFF << 10 if bits == 9 else 0xFFFF << 8
        inside = T.shift_left(left, self._i32(bits)) + part
        inside = self.kept(T.Select(segment > self._i32(LAST), self._i32(most), inside))
        if bits == 9:
            codes = T.Select(
                positive, inside + self._i32(1 << 9), self._i32((1 << 25) + (1 << 9) - 1) - inside
            )
            codes = T.shift_right(codes, self._i32(10))
        else:
            centred = inside - self._i32(1 << 23)
            codes = T.Select(positive, centred + self._i32(128), self._i32(127) - centred)
            codes = T.shift_right(codes, self._i32(8))
        return Value(T.min(codes, self._i32(WORD - 1)), WORD)

    def _summand(self, x: Value, multiplier: Sequence[int], front: bool | Expr) -> Value:
        fixed, exponent = multiplier
        raised = Value(T.shift_left(x.lanes, self._i32(ADD_BITS)), x.bound << ADD_BITS)
        if front is False:
            return self._multiplied(raised, multiplier)
        once = self._multiplied(x, (fixed, exponent + ADD_BITS))
        if front is True:
            return once
        twice = self._multiplied(raised, multiplier)
        return Value(T.Select(front, once.lanes, twice.lanes), max(once.bound, twice.bound))

    def _multiplied(self, x: Value, multiplier: Sequence[int]) -> Value:
        """``fixed_point.multiply``; the shift behind is done in int32 where that holds its sum."""
        fixed, exponent = multiplier
        up, down = max(exponent, 0), max(-exponent, 0)
        half = (1 << down) >> 1
        bound = min(min(x.bound << up, INT32) * abs(fixed) // INT32 + 1, INT32)
        if x.bound <= WORD and fixed >= 0 and up <= ADD_BITS:
            return self._divided(self._short(x.lanes, fixed, up), bound, down)
        if bound + half < INT32:
            return self._divided(self._narrow(x, fixed, up), bound, down)
        wide = self.kept(self._wide(x.lanes, fixed, up), "int64")
        rounded = wide + (self._i64(half) + T.shift_right(wide, self._i64(63)))
        return Value(self._cast("int32", T.shift_right(rounded, self._i64(down))), (bound >> down) + 1)

    def _short(self, x: Expr, fixed: int, up: int) -> Expr:
        """``_wide`` of int16 in int32: ``fixed`` in halves, of which the lower only carries."""
        x = self.kept(x)
        high, low = x * self._i32(fixed >> 16), x * self._i32(fixed & 0xFFFF)
        if up == ADD_BITS:
            return high + T.shift_right(low + self._i32(1 << 15), self._i32(16))
        carried = high + T.shift_right(low, self._i32(16)) + self._i32(1 << (14 - up))
        return T.shift_right(carried, self._i32(15 - up))

    def _narrow(self, x: Value, fixed: int, up: int) -> Expr:
        """``_wide`` where it fits int32: a shift where that serves, else even and odd lanes apart."""
        shift = 31 - up - (fixed.bit_length() - 1)
        if fixed & (fixed - 1) == 0 and shift > 0 and x.bound + (1 << (shift - 1)) < INT32:
            return T.shift_right(x.lanes + self._i32(1 << (shift - 1)), self._i32(shift))
        if self.count <= 2:
            return self._cast("int32", self._wide(x.lanes, fixed, up))
        shifted = T.shift_left(x.lanes, self._i32(up)) if up else x.lanes
        return rescaled([self.kept(shifted)], [fixed], 1 << 30, 31, self.count)

    def _wide(self, x: Expr, fixed: int, up: int) -> Expr:
        """``x << up``, as int32, times ``fixed`` by 2 ** 31, half up, in int64."""
        shifted = T.shift_left(x, self._i32(up)) if up else x
        return T.shift_right(
            self._cast("int64", shifted) * self._i64(fixed) + self._i64(1 << 30), self._i64(31)
        )

    def _divided(self, x: Expr, bound: int, down: int) -> Value:
        """By 2 ** ``down``, half away from zero, where no sum leaves int32."""
        if not down:
            return Value(x, bound)
        x = self.kept(x)
        rounded = x + (self._i32((1 << down) >> 1) + T.shift_right(x, self._i32(31)))
        return Value(T.shift_right(rounded, self._i32(down)), (bound >> down) + 1)

    def _clipped(self, x: Value, p: Params) -> Value:
        zero = int(p["out_zp"])
        inside = T.max(T.min(x.lanes, self._i32(p["hi"] - zero)), self._i32(p["lo"] - zero))
        return Value(inside + self._i32(zero) if zero else inside, max(abs(p["lo"]), abs(p["hi"])))

    def kept(self, value: Expr, dtype: str = "int32") -> Expr:
        """The value, computed once: TVM would substitute what is bound to a variable."""
        buffer = T.sblock_alloc_buffer((self.count,), dtype)
        store(buffer, 0, value, self.count)
        return load(buffer, 0, self.count)

    def _cast(self, dtype: str, value: Expr) -> Expr:
        return T.Cast(dtype if self.count == 1 else f"{dtype}x{self.count}", value)

    def _i32(self, value: int) -> Expr:
        return T.int32(value) if self.count == 1 else splat(T.int32(value), self.count)

    def _i64(self, value: int) -> Expr:
        return T.int64(value) if self.count == 1 else splat(T.int64(value), self.count)


def rescaled(sums: list[Expr], factors: list[int], term: int, shift: int, lanes: int) -> Expr:
    """``(sum(sums * factors) + term) >> shift`` in int64, the low half of it; all are int32.

    Even and odd lanes apart, as ``vpmuldq`` multiplies them.
    """

    def every(value: int) -> Expr:
        return splat(T.int64(value), lanes // 2)

    def total(odd: bool) -> Expr:
        found = every(term)
        for part, factor in zip(sums, factors, strict=True):
            two = T.reinterpret(f"int64x{lanes // 2}", part)
            two = two if odd else T.shift_left(two, every(32))
            found = found + T.shift_right(two, every(32)) * every(factor)
        return found

    even, odd = T.shift_right(total(False), every(shift)), total(True)
    odd = T.shift_left(odd, every(32 - shift)) if shift <= 32 else T.shift_right(odd, every(shift - 32))
    low = T.bitwise_and(even, every(2**32 - 1))
    return T.reinterpret(f"int32x{lanes}", T.bitwise_or(low, T.bitwise_and(odd, every(-(2**32)))))
