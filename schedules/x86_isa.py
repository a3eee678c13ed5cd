"""x86 instruction sets as a table, and the vector instructions that the generators are written in.

Every function that returns an expression must be called inside a ``tvm.script.ir_builder`` frame or on
expressions made there; buffers are flat, an index counts elements.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm.target.codegen import target_has_features
from tvm.tirx.script import builder

T: Any = builder
Expr = Any
Buffer = Any
Index = Any


@dataclass(frozen=True)
class Isa:
    """One way to multiply and accumulate.

    ``lanes`` accumulators (int32 or float32) a vector, each adding ``depth`` products an instruction;
    ``registers`` vector registers, of which ``scratch`` are needed besides accumulators and weights.
    ``source`` is the dtype that activations must be stored in, None for that of the tensor; ``weights`` the
    one that weights are packed as; ``fused`` LLVM's name of an instruction that adds products of int16, if
    there is one. ``chain``: up to so many steps are added in int16 before int32, in an order that
    ``x86_pairs`` finds.
    """

    name: str
    features: tuple[tuple[str, ...], ...]
    lanes: int
    depth: int
    registers: int
    scratch: int
    accumulator: str = "int32"
    source: str | None = None
    weights: str = "int8"
    fused: str | None = None
    chain: int = 0

    @property
    def bytes(self) -> int:
        """Size of a vector register."""
        return self.lanes * 4

    @property
    def fanout(self) -> int:
        """Accumulators that belong together: those of a register of stored activations; four of floats."""
        return 2 if self.weights == "int16" else 4


VNNI512 = Isa("vnni512", (("avx512vnni", "avx512bw"),), 16, 4, 32, 1)
AVXVNNI256 = Isa("avxvnni256", (("avxvnni",), ("avx512vl", "avx512vnni")), 8, 4, 16, 1)
AVX2 = Isa("avx2", (("avx2", "fma"),), 8, 2, 16, 2, source="int16")
PAIRS = replace(AVX2, name="avx2_pairs", depth=4, scratch=6, source=None, chain=4)
F32_512 = Isa("f32_512", (("avx512f",),), 16, 1, 32, 1, "float32", weights="float32")
F32_256 = Isa("f32_256", (("avx2", "fma"),), 8, 1, 16, 1, "float32", weights="float32")
I16_512 = replace(VNNI512, name="i16_512", depth=2, weights="int16", fused="llvm.x86.avx512.vpdpwssd.512")
I16_256 = replace(AVXVNNI256, name="i16_256", depth=2, weights="int16", fused="llvm.x86.avx512.vpdpwssd.256")
I16_AVX2 = replace(AVX2, name="i16_avx2", source=None, weights="int16")

INTEGER16 = (I16_512, I16_256, I16_AVX2)
TABLE = {isa.name: isa for isa in (VNNI512, AVXVNNI256, AVX2, PAIRS, F32_512, F32_256, *INTEGER16)}

INSTRUCTIONS = {
    "vnni512": "vpdpbusd, 512 bits",
    "avxvnni256": "vpdpbusd, 256 bits",
    "avx2": "vpmaddwd, 256 bits",
    "avx2_pairs": "vpmaddubsw, 256 bits",
    "f32_512": "FMA, 512 bits",
    "f32_256": "FMA, 256 bits",
    "i16_512": "vpdpwssd, 512 bits",
    "i16_256": "vpdpwssd, 256 bits",
    "i16_avx2": "vpmaddwd, 256 bits",
}


def supports(isa: Isa, target: tvm.target.Target) -> bool:
    """Whether the target has one of the sets of features that ``isa`` needs."""
    if target.kind.name != "llvm":
        return False
    return any(bool(target_has_features(list(needed), target)) for needed in isa.features)


def select_isa(dtype: str, target: tvm.target.Target) -> Isa | None:
    """The fastest table entry for activations of ``dtype``; None: leave it to the portable kernel.

    Targets with VNNI store activations as uint8; there is no kernel for int8 on them.
    """
    if dtype == "float32":
        return next((isa for isa in (F32_512, F32_256) if supports(isa, target)), None)
    if dtype == "int16":
        return next((isa for isa in INTEGER16 if supports(isa, target)), None)
    if dtype not in ("int8", "uint8"):
        return None
    vnni = next((isa for isa in (VNNI512, AVXVNNI256) if supports(isa, target)), None)
    if vnni is not None:
        return vnni if dtype == "uint8" else None
    return AVX2 if supports(AVX2, target) else None


def load(buffer: Buffer, index: Index, lanes: int) -> Expr:
    """``lanes`` elements from ``index`` on."""
    return buffer[index] if lanes == 1 else buffer[T.ramp(index, 1, lanes)]


def store(buffer: Buffer, index: Index, value: Expr, lanes: int) -> None:
    """Write a vector of ``lanes`` elements from ``index`` on."""
    T.buffer_store(buffer, value, [index if lanes == 1 else T.ramp(index, 1, lanes)])


def prefetch(buffer: Buffer, index: Index) -> None:
    """``prefetcht0`` of the line that holds an element; beyond the buffer it does nothing."""
    identifier = T.llvm_lookup_intrinsic_id("llvm.prefetch")
    arguments = (T.address_of(buffer[index]), T.int32(0), T.int32(3), T.int32(1))
    T.evaluate(T.call_llvm_intrin("void", identifier, *arguments))


def splat(value: Expr, lanes: int) -> Expr:
    """``value`` in every lane."""
    return T.broadcast(value, lanes)


def select_lanes(vector: Expr, lanes: Sequence[int]) -> Expr:
    """The named lanes of a vector, in that order."""
    if len(lanes) == 1:
        return T.Shuffle([vector], [T.int32(lanes[0])])
    return T.Shuffle([vector], [T.int32(lane) for lane in lanes])


def intrinsic(dtype: str, name: str, *args: Expr) -> Expr:
    """A pure LLVM intrinsic by name."""
    return T.call_llvm_pure_intrin(dtype, T.llvm_lookup_intrinsic_id(name), *args)


def dot_uint8(isa: Isa, acc: Expr, activations: Expr, weights: Expr) -> Expr:
    """``vpdpbusd``: add four products uint8 x int8 to each int32 lane."""
    name = f"llvm.x86.avx512.vpdpbusd.{isa.bytes * 8}"
    return intrinsic(f"int32x{isa.lanes}", name, acc, activations, weights)


def pairs_uint8(activations: Expr, weights: Expr) -> Expr:
    """``vpmaddubsw``: int16 sums of two products uint8 x int8; saturates beyond what int16 holds."""
    return intrinsic("int16x16", "llvm.x86.avx2.pmadd.ub.sw", activations, weights)


def dot_int16(isa: Isa, acc: Expr, activations: Expr, weights: Expr) -> Expr:
    """``vpdpwssd``, or ``vpmaddwd`` and add: two products int16 x int16 to each int32 lane."""
    if isa.fused:
        return intrinsic(f"int32x{isa.lanes}", isa.fused, acc, activations, weights)
    return acc + intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", activations, weights)


def dot_pairs(isa: Isa, acc: Expr, activations: Sequence[Expr], weights: Sequence[Expr]) -> Expr:
    """Add the products uint8 x int8 of several vectors to each int32 lane, their sums first in int16."""
    sums = functools.reduce(operator.add, map(pairs_uint8, activations, weights))
    return dot_int16(isa, acc, sums, splat(T.int16(1), isa.lanes * 2))


def high_uint16(a: Expr, b: Expr, isa: Isa) -> Expr:
    """``vpmulhuw``: the upper halves of products uint16 x uint16."""
    name = "llvm.x86.avx512.pmulhu.w.512" if isa.bytes == 64 else "llvm.x86.avx2.pmulhu.w"
    return intrinsic(f"int16x{isa.bytes // 2}", name, a, b)


def fma(a: Expr, b: Expr, acc: Expr, lanes: int) -> Expr:
    """Fused ``a * b + acc`` in float32."""
    return intrinsic(f"float32x{lanes}", "llvm.fma", a, b, acc)


def round_to_int32(value: Expr, isa: Isa) -> Expr:
    """``cvtps2dq``: float32 to int32, half to even; -2^31 where the value does not fit."""
    if isa.bytes == 32:
        return intrinsic("int32x8", "llvm.x86.avx.cvt.ps2dq.256", value)
    none, every, rounding = splat(T.int32(0), 16), T.int16(-1), T.int32(4)
    return intrinsic("int32x16", "llvm.x86.avx512.mask.cvtps2dq.512", value, none, every, rounding)


def pack_int16(a: Expr, b: Expr, isa: Isa) -> Expr:
    """``packssdw``: two int32 vectors to one of int16, saturating, within 128-bit lanes."""
    name = "llvm.x86.avx512.packssdw.512" if isa.bytes == 64 else "llvm.x86.avx2.packssdw"
    return intrinsic(f"int16x{isa.bytes // 2}", name, a, b)


def pack_bytes(a: Expr, b: Expr, dtype: str, isa: Isa) -> Expr:
    """``packuswb`` or ``packsswb``: two int16 vectors to one of bytes, saturating, within 128-bit lanes."""
    operation = "packuswb" if dtype == "uint8" else "packsswb"
    name = f"llvm.x86.avx512.{operation}.512" if isa.bytes == 64 else f"llvm.x86.avx2.{operation}"
    return intrinsic(f"{dtype}x{isa.bytes}", name, a, b)


def packed_lane(vector: int, element: int) -> int:
    """Where element ``element`` of vector ``vector`` lies after packing four int32 vectors to bytes."""
    return element // 4 * 16 + vector * 4 + element % 4


def add_saturating_int16(a: Expr, b: Expr, isa: Isa) -> Expr:
    """``paddsw``."""
    return intrinsic(f"int16x{isa.bytes // 2}", "llvm.sadd.sat", a, b)


def accumulator(isa: Isa) -> Buffer:
    """A buffer of one vector, which LLVM keeps in a register; several in one buffer go to memory."""
    return T.sblock_alloc_buffer((isa.lanes,), isa.accumulator)
