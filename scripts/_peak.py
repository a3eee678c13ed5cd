"""The most int8 multiply-adds that several cores of this machine do together."""

from __future__ import annotations

import multiprocessing
import os

from tvm_qplugin.peak import peak_of


def peak(threads: int) -> float | None:
    """Multiply-adds a second of ``threads`` cores at work together; None where no instruction is known."""
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    with multiprocessing.get_context("spawn").Pool(threads) as pool:
        found = pool.map(_of_core, cores, chunksize=1)
    return None if None in found else sum(found)


def _of_core(core: int) -> float | None:
    """The rate of this process on one core."""
    os.sched_setaffinity(0, {core})
    gmacs = peak_of("int8").gmacs
    return None if gmacs is None else gmacs * 1e9
