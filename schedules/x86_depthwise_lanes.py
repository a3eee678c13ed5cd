"""Lanes of a depthwise kernel: how elements are interleaved, widened and packed again."""

from __future__ import annotations

from tvm_qplugin.schedules.x86_constants import Reader
from tvm_qplugin.schedules.x86_isa import (
    Buffer,
    Expr,
    Isa,
    T,
    add_saturating_int16,
    pack_bytes,
    splat,
    store,
)


def unpack(a: Expr, b: Expr, lanes: int, per: int, high: int) -> Expr:
    """``punpckl``/``punpckh`` of two vectors within 128-bit lanes of ``per`` elements."""
    half = range(high * per // 2, high * per // 2 + per // 2)
    order = [base + i + side for base in range(0, lanes, per) for i in half for side in (0, lanes)]
    return T.Shuffle([a, b], [T.int32(i) for i in order])


def widen(words: Expr, operands: list[Buffer], dtype: str, lanes: int) -> None:
    """Even and odd bytes of int16 elements as two vectors of int16."""
    if dtype == "uint8":
        even = T.bitwise_and(words, splat(T.int16(255), lanes))
        odd = T.reinterpret(
            f"int16x{lanes}",
            T.shift_right(T.reinterpret(f"uint16x{lanes}", words), splat(T.uint16(8), lanes)),
        )
    else:
        eight = splat(T.int16(8), lanes)
        even, odd = T.shift_right(T.shift_left(words, eight), eight), T.shift_right(words, eight)
    store(operands[0], 0, even, lanes)
    store(operands[1], 0, odd, lanes)


def pack(constants: Reader, halves: list[Expr], dtype: str, isa: Isa) -> Expr:
    """Two vectors of int16 as one of bytes, shifted and within the bounds."""
    if constants.has("shift"):
        zero = constants.repeated("shift", "int16", isa.bytes // 2)
        halves = [add_saturating_int16(half, zero, isa) for half in halves]
    return constants.clamped(pack_bytes(halves[0], halves[1], dtype, isa), dtype, isa.bytes)


def in_order(halves: list[Expr], lanes: int) -> list[Expr]:
    """Vectors of int16 that hold the 128-bit lanes of two others in turn."""
    order = [i + side + lane for lane in range(0, lanes, 8) for side in (0, lanes) for i in range(8)]
    return [T.Shuffle(halves, [T.int32(i) for i in order[n : n + lanes]]) for n in (0, lanes)]
