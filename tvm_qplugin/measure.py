"""Timing of compiled functions, with a known number of threads.

TVM keeps one pool of threads per calling thread and reads ``TVM_NUM_THREADS`` at every parallel launch
(default: half the logical cores). It pins its workers, and may pin the caller onto the same core. So each
number of threads gets a caller of its own here, kept off the workers' cores.
"""

from __future__ import annotations

import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import tvm

from tvm_qplugin.core.errors import TargetError

T = TypeVar("T")

_SETTING = "TVM_NUM_THREADS"
_lock = threading.RLock()


@dataclass(frozen=True)
class Measurement:
    """Wall time of one call in milliseconds, and the process's peak resident memory in bytes."""

    median_ms: float
    min_ms: float
    p90_ms: float
    mean_ms: float
    runs: int
    threads: int
    peak_bytes: int

    @classmethod
    def of(cls, seconds: list[float], threads: int, peak_bytes: int) -> Measurement:
        """Summarize the times of single calls."""
        times = sorted(1e3 * t for t in seconds)
        p90 = times[min(len(times) - 1, round(0.9 * (len(times) - 1)))]
        mean = statistics.fmean(times)
        return cls(statistics.median(times), times[0], p90, mean, len(times), threads, peak_bytes)

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def measure(
    call: Callable[[], object],
    *,
    threads: int = 1,
    repeat: int | None = None,
    warmup: int = 3,
    seconds: float = 1.0,
) -> Measurement:
    """Time ``call()`` on ``threads`` threads: ``repeat`` times, or (None) 5 to 10,000 within ``seconds``.

    Raises TargetError when ``threads`` cannot be had.
    """
    if (repeat is not None and repeat < 1) or warmup < 0:
        raise ValueError(f"repeat={repeat}, warmup={warmup}: expected at least 1 and 0")

    def work() -> tuple[list[float], int]:
        reset_peak()
        for _ in range(max(warmup, 1)):
            call()
        return _times(call, repeat, seconds), peak_bytes()

    times, peak = on_threads(threads, work)
    return Measurement.of(times, threads, peak)


def on_threads(count: int, work: Callable[[], T]) -> T:
    """Run ``work()`` so that TVM's parallel loops inside use ``count`` threads.

    It runs in a thread kept for that count; the caller's affinity and environment stay as they were.
    """
    most = os.cpu_count() or 1
    if not 1 <= count <= most:
        raise TargetError(f"threads={count}: expected 1 to {most}, the cores of this machine")
    with _lock, _environment(_SETTING, str(count)):
        return _caller(count).submit(work).result()


def shared_cores(count: int) -> set[int]:
    """Cores on which a thread that simply runs a model may meet TVM's workers, of ``count`` threads in all.

    Empty where the workers are not pinned, and for one thread.
    """

    def probe() -> set[int]:
        others = _threads()
        tvm.runtime.num_threads()
        return _pinned(_threads() - others) & cores()

    with _lock, _environment(_SETTING, str(count)), ThreadPoolExecutor(1) as caller:
        return caller.submit(probe).result()


def _times(call: Callable[[], object], repeat: int | None, seconds: float) -> list[float]:
    times: list[float] = []
    least, most = (5, 10_000) if repeat is None else (repeat, repeat)
    end = time.perf_counter() + seconds
    while len(times) < least or (len(times) < most and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


@cache
def _caller(count: int) -> ThreadPoolExecutor:
    """A single thread whose pool in TVM has ``count`` members, itself included."""
    caller = ThreadPoolExecutor(1, thread_name_prefix=f"tvm-qplugin-{count}")
    try:
        caller.submit(_prepare, count).result()
    except BaseException:
        caller.shutdown()
        raise
    return caller


os.register_at_fork(after_in_child=_caller.cache_clear)  # threads do not survive a fork


def _prepare(count: int) -> None:
    """Create the calling thread's pool, then move the caller to cores that no worker is pinned to."""
    mine, others = cores(), _threads()
    found = tvm.runtime.num_threads()
    if found != count:
        raise TargetError(
            f"TVM offers {found} threads, {count} wanted: let the process use more cores (taskset, cgroup) "
            "and do not configure TVM's thread pool"
        )
    if not hasattr(os, "sched_setaffinity"):
        return
    free = mine - _pinned(_threads() - others)
    os.sched_setaffinity(0, free or mine)


def _pinned(threads: set[int]) -> set[int]:
    """The cores that one of these threads alone may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return set()
    masks = [os.sched_getaffinity(thread) for thread in threads]
    return set().union(*[mask for mask in masks if len(mask) == 1])


def cores() -> set[int]:
    """The cores this thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _threads() -> set[int]:
    tasks = Path("/proc/self/task")
    return {int(task.name) for task in tasks.iterdir()} if tasks.is_dir() else set()


@contextmanager
def keep_affinity() -> Iterator[None]:
    """Undo what TVM does to the calling thread's affinity when it creates its pool."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        yield
    finally:
        if os.sched_getaffinity(0) != before:
            os.sched_setaffinity(0, before)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def reset_peak() -> None:
    """Make ``peak_bytes`` start from now, where the kernel allows it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_bytes() -> int:
    """The largest resident memory of this process, since ``reset_peak`` or its start."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
