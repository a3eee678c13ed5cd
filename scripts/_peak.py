"""The most that a machine can do: uint8 x int8 multiply-adds a second, by the instruction of our kernels."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder

from tvm_qplugin.schedules.x86_isa import (
    AVXVNNI256,
    VNNI512,
    Isa,
    T,
    accumulator,
    dot_uint8,
    load,
    store,
    supports,
)
from tvm_qplugin.targets import find_profile, tvm_target

CHAINS = 12  # independent accumulators: more than latency times instructions a cycle
REPEATS = 500_000  # a millisecond: the call itself takes some microseconds
SECONDS = 0.3


def peak(threads: int) -> float | None:
    """Multiply-adds a second of ``threads`` cores at work together; None for a CPU without VNNI."""
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    with multiprocessing.get_context("spawn").Pool(threads) as pool:
        found = pool.map(_of_core, cores, chunksize=1)
    return None if None in found else sum(found)


def host_isa(target: tvm.target.Target) -> Isa | None:
    """The widest set of instructions with ``vpdpbusd``."""
    return next((isa for isa in (VNNI512, AVXVNNI256) if supports(isa, target)), None)


def _of_core(core: int) -> float | None:
    """The median rate of this process on one core."""
    os.sched_setaffinity(0, {core})
    target = tvm_target(find_profile("host"))
    isa = host_isa(target)
    if isa is None:
        return None
    run, macs = compiled(isa, target)
    rates, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        rates.append(macs / (time.perf_counter() - start))
    return statistics.median(rates)


def compiled(isa: Isa, target: tvm.target.Target) -> tuple[Callable[[], Any], int]:
    """A loop of nothing but ``vpdpbusd``, whose sums wrap, and how many multiply-adds one call does."""
    library = tvm.tirx.build(tvm.IRModule({"main": _loop(isa)}), target=target)
    given = np.arange(isa.bytes, dtype="uint8"), np.arange(isa.bytes, dtype="int8")
    out = tvm.runtime.tensor(np.zeros(CHAINS * isa.lanes, "int32"))
    arguments = [*map(tvm.runtime.tensor, given), out]
    return lambda: library["main"](*arguments) or out, CHAINS * REPEATS * isa.lanes * isa.depth


def _loop(isa: Isa) -> Any:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"global_symbol": "main", "tirx.noalias": True, "tirx.is_scheduled": True})
        x = T.arg("x", T.buffer((isa.bytes,), "uint8"))
        w = T.arg("w", T.buffer((isa.bytes,), "int8"))
        out = T.arg("out", T.buffer((CHAINS * isa.lanes,), "int32"))
        with T.sblock("peak"):
            T.reads()
            T.writes()
            _chains(isa, x, w, out)
    return builder.get()


def _chains(isa: Isa, x: Any, w: Any, out: Any) -> None:
    sums = [accumulator(isa) for _ in range(CHAINS)]
    for i, acc in enumerate(sums):
        store(acc, 0, load(out, i * isa.lanes, isa.lanes), isa.lanes)
    with T.serial(0, REPEATS):
        for acc in sums:
            operands = load(x, 0, isa.bytes), load(w, 0, isa.bytes)
            store(acc, 0, dot_uint8(isa, load(acc, 0, isa.lanes), *operands), isa.lanes)
    for i, acc in enumerate(sums):
        store(out, i * isa.lanes, load(acc, 0, isa.lanes), isa.lanes)
