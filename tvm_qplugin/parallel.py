"""Calibration by several processes, of this machine or of a Ray cluster; their tables are merged."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.ir import IRModule

from tvm_qplugin import calibration_worker
from tvm_qplugin.calibrator import ObservedModel, fresh_observers, model_hash
from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.core.errors import CalibrationError, QPluginError
from tvm_qplugin.core.recipe import DEFAULT_OBSERVER
from tvm_qplugin.progress import progress_bar
from tvm_qplugin.samples import Sample, numbered

CHUNK, AHEAD = 8, 2
"""Samples in one piece of work, and how many pieces a worker has waiting."""

hash_of = model_hash


@dataclass(frozen=True)
class Work:
    """What a worker has to know: the module as JSON, its hash, and (tensor, observer) pairs."""

    module: str
    identity: str
    kinds: tuple[tuple[str, str], ...]


Submit = Callable[[int, list[Sample]], "Future[CalibrationTable]"]
_models: dict[tuple[str, tuple[tuple[str, str], ...]], ObservedModel] = {}


def calibrate_parallel(
    module: IRModule,
    samples: Iterable[Sample],
    *,
    names: Sequence[str],
    workers: int = 2,
    cluster: str | None = None,
    observer: str | Mapping[str, str] = DEFAULT_OBSERVER,
    limit: int | None = None,
    progress: bool = False,
    model_hash: str | None = None,
    each: Callable[[Sample], object] | None = None,
) -> CalibrationTable:
    """``calibrate``, the samples dealt out to ``workers`` processes; the same table, if the observers merge.

    All do but ``moving_average``, whose parts count by their samples. ``cluster``: the address of a Ray
    cluster ("auto", "ray://host:10001", or "local" for one on this machine) whose workers run instead, with
    this package installed there (extra: distributed). Samples are read here, one after the other; a program
    that calls this needs ``if __name__ == "__main__":``. Raises CalibrationError.
    """
    if workers < 1:
        raise CalibrationError(f"workers {workers}: at least 1 is needed")
    identity = model_hash or hash_of(module)
    kinds = tuple((name, kind) for name, (kind, _) in fresh_observers(tuple(names), observer).items())
    work = Work(tvm.ir.save_json(module), identity, kinds)
    pool = _processes(work, workers) if cluster is None else _ray(work, cluster)
    with progress_bar(progress, samples, limit) as advance, pool as submit:
        pieces = _pieces(samples, limit, each, advance)
        try:
            return _merged(submit, pieces, workers * AHEAD)
        except BrokenProcessPool:
            raise CalibrationError(
                "a process that calibrates died, perhaps for want of memory: use fewer workers"
            ) from None


def observe_piece(work: Work, start: int, samples: Sequence[Sample]) -> CalibrationTable:
    """What some samples, the first of them with the number ``start``, add; runs in a worker."""
    key = (work.identity, work.kinds)
    if key not in _models:
        names = tuple(name for name, _ in work.kinds)
        _models[key] = ObservedModel(tvm.ir.load_json(work.module), work.identity, names, {}, ())
    model = _models[key]
    model.state = (fresh_observers(model.names, dict(work.kinds)), 0)
    for index, sample in enumerate(samples, start):
        model.observe(index, sample)
    return model.table()


def _pieces(
    samples: Iterable[Sample],
    limit: int | None,
    each: Callable[[Sample], object] | None,
    advance: Callable[[], object],
) -> Iterator[tuple[int, list[Sample]]]:
    """Samples in pieces, each with the number of its first; those held back by ``each`` part pieces."""
    start, piece = 0, list[Sample]()
    for index, sample in numbered(samples, limit):
        held = each is not None and each(sample) is True
        advance()
        if piece and (held or len(piece) == CHUNK):
            yield start, piece
            piece = []
        if not held:
            start = index - len(piece)
            piece.append(sample)
    if piece:
        yield start, piece


def _merged(submit: Submit, pieces: Iterable[tuple[int, list[Sample]]], ahead: int) -> CalibrationTable:
    """The tables of all pieces, merged in their order, with no more than ``ahead`` pieces in flight."""
    waiting: deque[Future[CalibrationTable]] = deque()
    table: CalibrationTable | None = None
    for start, piece in pieces:
        waiting.append(submit(start, piece))
        while len(waiting) >= ahead:
            table = _with(table, waiting.popleft().result())
    while waiting:
        table = _with(table, waiting.popleft().result())
    if table is None:
        raise CalibrationError(
            "the calibration set is empty: at least 1 sample is needed, 100 or more are good"
        )
    return table


def _with(table: CalibrationTable | None, part: CalibrationTable) -> CalibrationTable:
    return part if table is None else table.merge(part)


@contextmanager
def _processes(work: Work, workers: int) -> Iterator[Submit]:
    """Processes of this machine, one thread each."""
    context = multiprocessing.get_context("spawn")
    given = (pickle.dumps(work),)
    with ProcessPoolExecutor(workers, context, calibration_worker.start, given) as pool:

        def submit(start: int, piece: Sequence[Sample]) -> Future[CalibrationTable]:
            with _sheltered():
                return pool.submit(calibration_worker.run, start, list(piece))

        try:
            yield submit
        except BaseException:
            working = list(pool._processes.values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in working:
                process.terminate()
            raise


@contextmanager
def _sheltered() -> Iterator[None]:
    """Processes that are started here do not see Ctrl-C, which is for this one; it sees it afterwards.

    They inherit the mask; the handler is exchanged because another thread may take the signal.
    """
    pressed: list[int] = []
    ours = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if ours else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if ours:
            signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _ray(work: Work, address: str) -> Iterator[Submit]:
    """Tasks of a Ray cluster; one that is started here is stopped again."""
    ray = _import_ray()
    mine = not ray.is_initialized()
    try:
        if mine:
            ray.init(address=None if address == "local" else address, log_to_driver=False)
    except Exception as error:
        raise CalibrationError(f"no Ray cluster at {address!r} ({error}): start it, or use workers") from None
    try:
        shared, task = ray.put(work), ray.remote(_guarded)
        yield lambda start, piece: _Answer(task.remote(shared, start, piece).future())
    finally:
        if mine:
            ray.shutdown()


def _guarded(work: Work, start: int, samples: list[Sample]) -> CalibrationTable | str:
    """``observe_piece``; a user's error as its text, which Ray would wrap beyond recognition."""
    try:
        return observe_piece(work, start, samples)
    except QPluginError as error:
        return str(error)


class _Answer(Future[CalibrationTable]):
    """A table from Ray, or the error that its text tells."""

    def __init__(self, inner: Future[Any]) -> None:
        super().__init__()
        self.inner = inner

    def result(self, timeout: float | None = None) -> CalibrationTable:
        found = self.inner.result(timeout)
        if isinstance(found, str):
            raise CalibrationError(found)
        assert isinstance(found, CalibrationTable)
        return found


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise CalibrationError(
            "calibration on a cluster needs Ray, which is not installed: pip install "
            "'tvm-qplugin[distributed]', or use workers of this machine"
        ) from None
    return ray
