"""A run of the tuner: task after task, batch after batch, every right result on the disk at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import tvm

from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.records import Database, Record
from tvm_qplugin.core.tunable import Knobs, canonical
from tvm_qplugin.search import BATCH, CostModel, Search, valid_settings
from tvm_qplugin.trial import Device, Job, WrongResult
from tvm_qplugin.trial_pool import TrialPool
from tvm_qplugin.tuning_tasks import TuningTask

FINALISTS = 3
GAIN = 0.98  # share of the default's time that the winner must stay below
LEAST_GAIN = 2e-8  # seconds: less is lost in the call
FINAL_SECONDS = 3.0  # of a time budget, to keep for the final comparison of a task
LEAST_SHARE = 0.02


@dataclass(frozen=True)
class TaskStatus:
    """How far task number ``index`` of ``count`` is.

    ``stage``: "search", "final" (the comparison at the end), "done" or "kept" (from an earlier run).
    ``trials``: settings tried so far, of at most ``limit``, earlier runs included. ``seconds``: of the best;
    at the end that of the kernel which will be used; None: nothing was measured. ``wrong``: candidates in
    this run that differed from the oracle, ``failed``: that did not build or run; ``problem``: the last of
    these.
    """

    task: TuningTask
    index: int
    count: int
    limit: int
    stage: str = "search"
    trials: int = 0
    default_seconds: float | None = None
    seconds: float | None = None
    knobs: Knobs | None = None
    wrong: int = 0
    failed: int = 0
    problem: str = ""

    @property
    def speedup(self) -> float | None:
        """The default's time over the best."""
        known = self.default_seconds is not None and self.seconds is not None
        return self.default_seconds / self.seconds if known else None  # type: ignore[operator]

    @property
    def gmacs(self) -> float | None:
        """10^9 multiply-adds a second of the best."""
        return None if self.seconds is None else self.task.macs / self.seconds / 1e9


class TuningRun:
    """One call of ``tune``: what its tasks share. ``notify`` is called whenever one of them moves on."""

    def __init__(
        self,
        profile: TargetProfile,
        target: tvm.target.Target,
        device: Device,
        records: Database,
        limit: int,
        seed: int,
        notify: Callable[[TaskStatus], object],
    ) -> None:
        self.profile, self.target, self.device = profile, target, device
        self.records, self.limit, self.seed, self.notify = records, limit, seed, notify
        self.cpu = str(target.attrs.get("mcpu", ""))
        self.config = json.dumps({k: v for k, v in target.export().items() if isinstance(v, str | int)})
        self.models: dict[str, CostModel] = {}

    def all(self, tasks: list[TuningTask], pool: TrialPool, deadline: float | None) -> list[TaskStatus]:
        """Tune one task after another; each gets its share of the time that is left, by its work."""
        total = sum(task.work for task in tasks)
        weights = [max(task.work, LEAST_SHARE * total) for task in tasks]
        found = []
        for index, task in enumerate(tasks):
            end = None
            if deadline is not None:
                now = time.monotonic()
                if now >= deadline:
                    break
                end = now + (deadline - now) * weights[index] / sum(weights[index:]) - FINAL_SECONDS
            start = TaskStatus(task, index, len(tasks), min(self.limit, len(valid_settings(task.tunable))))
            found.append(self._one(start, pool, end))
        return found

    def _one(self, status: TaskStatus, pool: TrialPool, end: float | None) -> TaskStatus:
        task, conditions = status.task, (self.cpu, self.device.threads)
        final = self.records.final(task.key, *conditions)
        if final is not None and (final.trials or 0) >= status.limit:
            return self._tell(_finished(status, final, "kept"))
        known = self.records.measured(task.key, *conditions)
        search = Search(
            task.key,
            task.call,
            task.tunable,
            self.target,
            self.models.setdefault(task.rule, CostModel()),
            [(record.knobs, record.seconds) for record in known.values() if record.knobs is not None],
            self.seed + status.index,
        )
        status = self._search(_resumed(status, known), search, pool, end)
        return self._tell(self._compared(status, pool))

    def _search(self, status: TaskStatus, search: Search, pool: TrialPool, end: float | None) -> TaskStatus:
        if status.default_seconds is None:
            status = self._batch(status, search, pool, [status.task.tunable.default()], "default", None)
        while status.default_seconds is not None and status.trials < status.limit:
            if end is not None and time.monotonic() >= end:
                break
            settings = search.propose(min(BATCH, status.limit - status.trials))
            if not settings:
                break
            status = self._batch(status, search, pool, settings, "trial", end)
        return status

    def _batch(
        self,
        status: TaskStatus,
        search: Search,
        pool: TrialPool,
        settings: list[Knobs],
        role: str,
        end: float | None,
    ) -> TaskStatus:
        """Build some settings, then measure one after another; what is right is recorded at once."""
        job, learned = self._job(status.task), []
        for knobs, folder in zip(settings, pool.build(job, settings), strict=True):
            outcome = folder if isinstance(folder, Exception) else pool.time(job, folder)
            if isinstance(outcome, Exception):
                status = _with_problem(status, outcome)
            else:
                self._record(status.task, role, knobs, outcome)
                learned.append((knobs, outcome))
                status = _with_time(status, role, knobs, outcome)
            if isinstance(folder, Path):
                pool.forget(folder)
            status = self._tell(replace(status, trials=status.trials + 1))
            if end is not None and time.monotonic() >= end:
                break
        search.tell(learned)
        return status

    def _compared(self, status: TaskStatus, pool: TrialPool) -> TaskStatus:
        """Let the fastest trials meet the default again, in turn: single measurements flatter."""
        self._tell(replace(status, stage="final"))
        default, job = status.task.tunable.default(), self._job(status.task)
        known = self.records.measured(status.task.key, self.cpu, self.device.threads).values()
        fastest = sorted(known, key=lambda record: record.seconds)
        others = [
            r.knobs for r in fastest if r.knobs is not None and canonical(r.knobs) != canonical(default)
        ]
        settings = [default, *others[:FINALISTS]]
        folders = pool.build(job, settings)
        built = [(k, f) for k, f in zip(settings, folders, strict=True) if isinstance(f, Path)]
        times = pool.duel(job, [folder for _, folder in built]) if status.default_seconds else None
        for _, folder in built:
            pool.forget(folder)
        if not isinstance(times, list) or len(built) != len(settings):
            return replace(status, stage="done")
        best = min(range(len(times)), key=times.__getitem__)
        best = best if times[best] < min(GAIN * times[0], times[0] - LEAST_GAIN) else 0
        knobs = settings[best] if best else None
        final = Record(
            status.task.key,
            "final",
            knobs,
            times[best],
            self.cpu,
            self.device.threads,
            times[0],
            status.trials,
        )
        self.records.append(final)
        return _finished(status, final, "done")

    def _record(self, task: TuningTask, role: str, knobs: Knobs, seconds: float) -> None:
        self.records.append(Record(task.key, role, knobs, seconds, self.cpu, self.device.threads))

    def _job(self, task: TuningTask) -> Job:
        return Job.of(task.call, task.rule, self.config, self.profile.compiler, task.tunable.isa)

    def _tell(self, status: TaskStatus) -> TaskStatus:
        self.notify(status)
        return status


def _resumed(status: TaskStatus, known: dict[str, Record]) -> TaskStatus:
    """Take over what earlier runs measured."""
    default = known.get(canonical(status.task.tunable.default()))
    best = min(known.values(), key=lambda record: record.seconds, default=None)
    return replace(
        status,
        trials=len(known),
        default_seconds=None if default is None else default.seconds,
        seconds=None if best is None else best.seconds,
        knobs=None if best is None else best.knobs,
    )


def _finished(status: TaskStatus, final: Record, stage: str) -> TaskStatus:
    return replace(
        status,
        stage=stage,
        trials=final.trials or 0,
        seconds=final.seconds,
        default_seconds=final.default_seconds,
        knobs=final.knobs,
    )


def _with_problem(status: TaskStatus, error: Exception) -> TaskStatus:
    wrong, lines = isinstance(error, WrongResult), str(error).strip().splitlines()
    counted = replace(status, wrong=status.wrong + wrong, failed=status.failed + (not wrong))
    return replace(counted, problem=lines[-1] if lines else type(error).__name__)


def _with_time(status: TaskStatus, role: str, knobs: Knobs, seconds: float) -> TaskStatus:
    if role == "default":
        status = replace(status, default_seconds=seconds)
    if status.seconds is None or seconds < status.seconds:
        status = replace(status, seconds=seconds, knobs=knobs)
    return status
