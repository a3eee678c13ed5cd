"""``tune``: find the fastest kernels of a model by measuring, and keep what was measured."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm.ir import IRModule

from tvm_qplugin.core.errors import InputError, TargetError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.records import Database
from tvm_qplugin.inspection import read_module
from tvm_qplugin.recorded import user_database
from tvm_qplugin.targets import find_profile, tvm_target
from tvm_qplugin.trial import Device
from tvm_qplugin.trial_pool import TrialPool
from tvm_qplugin.tuning_run import TaskStatus, TuningRun
from tvm_qplugin.tuning_tasks import tasks_of

TRIALS = 64
UNLIMITED = 1_000
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class TuningReport:
    """What ``tune`` did: the state of every task that was reached, and where the records are.

    ``torn``: a record that a crash had cut was dropped from the end of the database.
    """

    tasks: tuple[TaskStatus, ...]
    count: int
    database: Path
    seconds: float
    torn: bool = False


def tune(
    model: str | os.PathLike[str] | IRModule,
    *,
    target: str | TargetProfile = "host",
    trials: int | None = None,
    minutes: float | None = None,
    only: str | None = None,
    database: str | os.PathLike[str] | None = None,
    rpc: str | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Callable[[TaskStatus], object] | None = None,
) -> TuningReport:
    """Search faster kernels for a model's convolutions and dense layers; ``build`` then uses them.

    ``model``: a QDQ or float module, the directory of a quantized model, or an ONNX file. ``trials``:
    settings to try for each task (64 unless ``minutes`` are given), ``minutes``: when to stop; what earlier
    runs measured on this CPU with as many ``threads`` counts. ``only``: a regular expression for tasks,
    found in their label or the names of their layers. ``database``: the file of records, the user's own by
    default. ``rpc="HOST:PORT,KEY"``: measure on a device that this RPC tracker knows. ``progress`` is called
    after every trial.

    Each kernel is compared with the oracle before it is timed; one that differs is neither recorded nor
    learned from. Records are on the disk before the next trial starts: the run can be killed at any moment,
    and the same call goes on where it stopped. Raises ModelError, TargetError, InputError or DatabaseError.
    """
    start, profile = time.monotonic(), find_profile(target)
    limit = _limit(trials, minutes)
    device = _device(rpc, threads)
    records = Database(user_database() if database is None else database)
    tasks = tasks_of(_module(model), profile, only)
    run = TuningRun(
        profile, tvm_target(profile), device, records, limit, seed, progress or (lambda status: None)
    )
    deadline = None if minutes is None else start + 60 * minutes
    with TrialPool(device) as pool:
        found = run.all(tasks, pool, deadline)
    records.close()
    return TuningReport(tuple(found), len(tasks), records.path, time.monotonic() - start, records.torn)


def _limit(trials: int | None, minutes: float | None) -> int:
    if (trials is not None and trials < 1) or (minutes is not None and not minutes > 0):
        raise InputError(f"trials={trials}, minutes={minutes}: expected at least 1 and more than 0")
    return trials or (TRIALS if minutes is None else UNLIMITED)


def _device(rpc: str | None, threads: int) -> Device:
    """Where to measure; TargetError for a tracker that is not ``HOST:PORT,KEY``, or too many threads."""
    most = os.cpu_count() or 1
    if threads < 1 or (rpc is None and threads > most):
        raise TargetError(f"threads={threads}: expected 1 to {most}, the cores of this machine")
    if rpc is None:
        return Device(threads)
    address, _, key = rpc.partition(",")
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and key):
        raise TargetError(f"rpc={rpc!r}: expected HOST:PORT,KEY of a tracker, such as localhost:9190,board")
    device = Device(threads, host, int(port), key)
    _check_tracker(device)
    return device


def _check_tracker(device: Device) -> None:
    where = f"{device.host}:{device.port}"
    try:
        socket.create_connection((device.host, device.port), ANSWER_SECONDS).close()  # TVM tries for a minute
        tracker: Any = tvm.rpc.connect_tracker(device.host, device.port)
        servers = [server["key"].removeprefix("server:") for server in tracker.summary()["server_info"]]
    except Exception as error:
        raise TargetError(
            f"no RPC tracker answers at {where} ({(str(error).splitlines() or [''])[-1]}); start one with "
            f"`python -m tvm.exec.rpc_tracker --port {device.port}`"
        ) from None
    if device.key not in servers:
        known = ", ".join(sorted(set(servers))) or "none"
        raise TargetError(
            f"the tracker at {where} knows no device {device.key!r}, only {known}; on the device: "
            f"`python -m tvm.exec.rpc_server --tracker {where} --key {device.key}`"
        )


def _module(model: str | os.PathLike[str] | IRModule) -> IRModule:
    return model if isinstance(model, IRModule) else read_module(Path(model))
