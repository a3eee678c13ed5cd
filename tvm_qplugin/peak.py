"""What one core of this machine can multiply and add at most, measured with its fastest instruction."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules import x86_isa
from tvm_qplugin.schedules.x86_isa import AVX2, INSTRUCTIONS, PAIRS, Buffer, Expr, Isa, T
from tvm_qplugin.targets import find_profile, tvm_target

STEPS = 100_000
RUNS = 20
VECTORS = 2
ROWS = 4


@dataclass(frozen=True)
class Peak:
    """10^9 multiply-adds a second of one core with ``instruction``; None: see ``reason``."""

    gmacs: float | None
    instruction: str | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


@cache
def peak_of(dtype: str) -> Peak:
    """The peak for operands of ``dtype``, measured once a process (in less than a second).

    ``dtype``: float32, int16, or the 8-bit integers, for which it does not matter how they are stored.
    """
    if dtype not in ("float32", "int8", "uint8", "int16"):
        return Peak(None, None, f"the peak of {dtype} is not measured")
    isa = PAIRS if host_isa(dtype) is AVX2 else host_isa(dtype)
    if isa is None:
        return Peak(None, None, f"this CPU has no instruction for {dtype} whose peak could be measured")
    return Peak(round(measured(isa), 3), INSTRUCTIONS[isa.name])


def host_isa(dtype: str) -> Isa | None:
    """This machine's fastest instruction set for operands of ``dtype``; None where there is none."""
    return isa_of(dtype, tvm_target(find_profile("host")))


def isa_of(dtype: str, target: tvm.target.Target) -> Isa | None:
    """The fastest instruction set of a target for operands of ``dtype``, in whatever way they are stored."""
    return x86_isa.select_isa("uint8" if dtype == "int8" else dtype, target)


def measured(isa: Isa) -> float:
    """10^9 multiply-adds a second of one core: the fastest of a few runs from registers and L1."""
    target = tvm_target(find_profile("host"))
    with target:
        function = tvm.compile(tvm.IRModule({"peak": peak_kernel(isa, STEPS)}), target)["peak"]
    arrays = [tvm.runtime.tensor(array) for array in operands(isa)]
    best = min(_seconds(function, arrays) for _ in range(RUNS))
    return STEPS * max(isa.chain, 1) * _tile(isa) * VECTORS * isa.lanes * isa.depth / best / 1e9


def _seconds(function: Any, arrays: list[Any]) -> float:
    start = time.perf_counter()
    function(*arrays)
    return time.perf_counter() - start


def operands(isa: Isa) -> list[Array]:
    """Activations, weights, and accumulators as they start and as they end."""
    rng = np.random.default_rng(0)
    wide, (left, right) = isa.lanes * isa.depth, _dtypes(isa)
    cells = _tile(isa) * VECTORS * isa.lanes
    start = rng.integers(0, 100, cells).astype(isa.accumulator)
    return [
        rng.integers(0, 9, ROWS * _tile(isa) * wide).astype(left),
        rng.integers(0, 9, VECTORS * wide).astype(right),
        start,
        np.zeros_like(start),
    ]


def peak_kernel(isa: Isa, steps: int) -> tvm.tirx.PrimFunc:
    """The PrimFunc: ``steps`` times a tile of accumulators, all in registers, each fed from L1.

    Step ``t`` adds to each accumulator the products of row ``t % ROWS`` of its activations with its weights,
    of a chain those of the rows behind it as well.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("peak")
        T.func_attr({"global_symbol": "peak", "tirx.noalias": True, "tirx.is_scheduled": True})
        dtypes = (*_dtypes(isa), isa.accumulator, isa.accumulator)
        buffers = [
            T.arg(f"p{i}", T.buffer(array.shape, dtype))
            for i, (array, dtype) in enumerate(zip(operands(isa), dtypes, strict=True))
        ]
        with T.sblock("peak"):
            T.reads()
            T.writes()
            _emit(isa, steps, buffers)
    return builder.get()


def _emit(isa: Isa, steps: int, buffers: list[Buffer]) -> None:
    left, right, start, end = buffers
    tile, lanes, wide = _tile(isa), isa.lanes, isa.lanes * isa.depth
    acc = [x86_isa.accumulator(isa) for _ in range(tile * VECTORS)]
    for i, cell in enumerate(acc):
        x86_isa.store(cell, 0, x86_isa.load(start, i * lanes, lanes), lanes)
    with T.serial(0, steps) as t:
        for i, cell in enumerate(acc):
            rows = [T.floormod(t + n, ROWS) * tile + i // VECTORS for n in range(max(isa.chain, 1))]
            a = [x86_isa.load(left, row * wide, wide) for row in rows]
            b = x86_isa.load(right, i % VECTORS * wide, wide)
            x86_isa.store(cell, 0, _product(isa, x86_isa.load(cell, 0, lanes), a, b), lanes)
    for i, cell in enumerate(acc):
        x86_isa.store(end, i * lanes, x86_isa.load(cell, 0, lanes), lanes)


def _product(isa: Isa, acc: Expr, rows: list[Expr], weights: Expr) -> Expr:
    if isa.chain:
        return x86_isa.dot_pairs(isa, acc, rows, [weights] * len(rows))
    if isa.accumulator == "float32":
        return x86_isa.fma(rows[0], weights, acc, isa.lanes)
    dot = x86_isa.dot_int16 if isa.depth == 2 else x86_isa.dot_uint8
    return dot(isa, acc, rows[0], weights)


def _tile(isa: Isa) -> int:
    """Pixels whose accumulators fit the registers beside the weights."""
    return (isa.registers - isa.scratch - VECTORS - 2) // VECTORS


def _dtypes(isa: Isa) -> tuple[str, str]:
    if isa.accumulator == "float32":
        return "float32", "float32"
    return ("int16", "int16") if isa.depth == 2 else ("uint8", "int8")
