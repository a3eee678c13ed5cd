"""The worker processes of tuning: some that build, one that measures; they live as long as the tuning."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from subprocess import DEVNULL
from typing import Any, TypeVar

from tvm.support.popen_pool import PopenWorker

from tvm_qplugin import trial
from tvm_qplugin.core.tunable import Knobs
from tvm_qplugin.trial import Device, Job

T = TypeVar("T")

MOST_BUILDERS = 4
TIMEOUT = 120.0


class TrialPool:
    """Builds candidates in parallel and measures them one by one; a crash or hang costs one candidate.

    Every failure comes back as the exception, ``trial.WrongResult`` for a kernel that computes anything
    else than the oracle. Use as a context.
    """

    def __init__(self, device: Device, timeout: float = TIMEOUT) -> None:
        self.device = device
        self._folder = Path(tempfile.mkdtemp(prefix="qplugin-tune-"))
        self._count = 0
        self._builders = _Workers(min(MOST_BUILDERS, os.cpu_count() or 1), 1, timeout)
        self._runner = _Workers(1, device.threads, timeout)

    def __enter__(self) -> TrialPool:
        return self

    def __exit__(self, *_error: object) -> None:
        self._builders.stop()
        self._runner.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def build(self, job: Job, settings: Sequence[Knobs]) -> list[Path | Exception]:
        """The folder of each candidate."""
        folders = [self._new_folder() for _ in settings]
        futures = [
            self._builders.submit(trial.build, job, dict(knobs), str(folder))
            for knobs, folder in zip(settings, folders, strict=True)
        ]
        return [_outcome(future, folder) for future, folder in zip(futures, folders, strict=True)]

    def time(self, job: Job, folder: Path) -> float | Exception:
        """Seconds of a call, after the comparison with the oracle."""
        return self._measured(trial.time, job, str(folder), self.device)

    def duel(self, job: Job, folders: Sequence[Path]) -> list[float] | Exception:
        """Seconds of several candidates, measured in turn."""
        names = [str(folder) for folder in folders]
        return self._measured(trial.duel, job, names, self.device)

    def forget(self, folder: Path) -> None:
        """Delete a candidate's files."""
        shutil.rmtree(folder, ignore_errors=True)

    def _measured(self, function: Callable[..., T], *args: object) -> T | Exception:
        try:
            return self._runner.submit(function, *args).result()
        except Exception as error:
            return error

    def _new_folder(self) -> Path:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        return folder


class _Workers:
    """Processes that are started when they are first needed, and again after a crash or a timeout."""

    def __init__(self, count: int, threads: int, timeout: float) -> None:
        self._all = [_Worker(threads, timeout) for _ in range(count)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._callers = ThreadPoolExecutor(count)

    def submit(self, function: Callable[..., T], *args: object) -> Future[T]:
        """Run ``function(*args)`` in a process that is idle."""
        return self._callers.submit(self._run, function, args)

    def stop(self) -> None:
        """Kill the processes, whatever they are doing."""
        self._callers.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.stop()

    def _run(self, function: Callable[..., T], args: tuple[object, ...]) -> T:
        worker = self._idle.get()
        try:
            return worker.run(function, args)
        finally:
            self._idle.put(worker)


class _Worker:
    """One of TVM's worker processes, initialized, whose process id is known."""

    def __init__(self, threads: int, timeout: float) -> None:
        self.threads, self.timeout = threads, timeout
        self._worker: Any = PopenWorker(stdout=DEVNULL, stderr=DEVNULL)
        self._pid: int | None = None
        self._stopped = False

    def run(self, function: Callable[..., T], args: tuple[object, ...]) -> T:
        """The result of ``function(*args)`` there; raises what it raises, or TimeoutError."""
        try:
            if self._pid is None:
                self._worker.send(trial.start, (self.threads,), timeout=self.timeout)
                self._pid = int(self._worker.recv())
            if self._stopped:
                raise ChildProcessError("stopped")
            self._worker.send(function, args, timeout=self.timeout)
            result: T = self._worker.recv()
            return result
        except (ChildProcessError, TimeoutError):
            self._pid = None
            raise

    def stop(self) -> None:
        """Kill the process: closing its pipes first would wait for what it does."""
        self._stopped, pid = True, self._pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)


def _outcome(future: Future[None], folder: Path) -> Path | Exception:
    try:
        future.result()
    except Exception as error:
        return error
    return folder
