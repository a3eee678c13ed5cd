"""Table lookup by byte permutation: the 256 results stay in registers (AVX-512 VBMI, NEON)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.target.codegen import target_has_features
from tvm.tirx.script import builder

from tvm_qplugin.core.attrs import KERNEL, PARAMS, Implementation, KernelCall, encode_params
from tvm_qplugin.schedules.cpu_blocks import architecture, cores

T: Any = builder
Expr = Any
PARALLEL_BYTES = 1 << 18


@dataclass(frozen=True)
class Permutation:
    """A way to look ``lanes`` bytes up at once in a table of ``256 / lanes`` vectors."""

    lanes: int
    lookup: Callable[[Sequence[Expr], Expr], Expr]


def rule(call: KernelCall, target: Target) -> Implementation | None:
    """A kernel without gathers; None for small tensors, wide results, or other instruction sets."""
    permutation = _select(target)
    narrow = call.out.dtype in ("int8", "uint8") and call.args[-1].dtype in ("int8", "uint8")
    if call.name != "qlut" or permutation is None or not narrow or call.out.size < permutation.lanes:
        return None
    parallel = call.out.size >= PARALLEL_BYTES and cores(target) > 1
    with IRBuilder() as frame, T.prim_func(s_tir=True):
        T.func_name(call.name)
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        T.func_attr({KERNEL: call.name, PARAMS: encode_params(call.params)})
        _emit(call, permutation, parallel)
    return Implementation(frame.get(), (0, 1))


def _select(target: Target) -> Permutation | None:
    if target.kind.name != "llvm":
        return None
    if architecture(target) == "aarch64":
        return Permutation(16, _lookup_neon)
    if target_has_features(["avx512vbmi", "avx512bw"], target):
        return Permutation(64, _lookup_vbmi)
    return None


def _emit(call: KernelCall, permutation: Permutation, parallel: bool) -> None:
    lanes = permutation.lanes
    specs = (*call.args, call.out)
    arguments = [T.arg(f"p{i}", T.buffer(s.shape, s.dtype)) for i, s in enumerate(specs)]
    q, table, out = (
        T.decl_buffer((s.size,), s.dtype, data=b.data) for b, s in zip(arguments, specs, strict=True)
    )
    # The index is the code as an unsigned byte; a signed dtype's table starts at code -128.
    first = 128 if call.args[0].dtype == "int8" else 0
    with T.sblock("root"):
        T.reads()
        T.writes()
        vectors = [_bytes(table, (first + k) % 256, lanes) for k in range(0, 256, lanes)]
        loop = T.parallel if parallel else T.serial
        with loop(0, -(-call.out.size // lanes)) as i:
            # The last vector overlaps the one before it instead of ending in a scalar tail.
            at = T.min(i * lanes, call.out.size - lanes)
            result = permutation.lookup(vectors, _bytes(q, at, lanes))
            typed = T.reinterpret(f"{call.out.dtype}x{lanes}", result)
            T.buffer_store(out, typed, [T.ramp(at, 1, lanes)])


def _bytes(buffer: Any, at: Any, lanes: int) -> Expr:
    return T.reinterpret(f"uint8x{lanes}", buffer[T.ramp(at, 1, lanes)])


def _intrinsic(name: str, lanes: int, *args: Expr) -> Expr:
    return T.call_llvm_pure_intrin(f"uint8x{lanes}", T.llvm_lookup_intrinsic_id(name), *args)


def _lookup_vbmi(table: Sequence[Expr], index: Expr) -> Expr:
    """``vpermi2b`` twice: the low seven bits choose in each half, the sign bit chooses the half."""
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    low = _intrinsic(name, 64, table[0], index, table[1])
    high = _intrinsic(name, 64, table[2], index, table[3])
    negative = T.reinterpret("int8x64", index) < T.broadcast(T.int8(0), 64)
    return T.Select(negative, high, low)


def _lookup_neon(table: Sequence[Expr], index: Expr) -> Expr:
    """``tbl`` and three ``tbx`` of four registers each; ``tbx`` leaves lanes out of range alone."""
    result = _intrinsic("llvm.aarch64.neon.tbl4", 16, *table[:4], index)
    for k in range(4, 16, 4):
        shifted = index - T.broadcast(T.uint8(16 * k), 16)
        result = _intrinsic("llvm.aarch64.neon.tbx4", 16, result, *table[k : k + 4], shifted)
    return result
