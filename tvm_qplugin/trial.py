"""One trial of a setting, in a worker process: generate and compile, compare with the oracle, then time.

Inputs and constants are random but always the same for a task, so that all candidates see the same.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tvm_qplugin import measure
from tvm_qplugin.core.attrs import KernelCall, TensorSpec, decode_params, encode_params
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array
from tvm_qplugin.core.tunable import Knobs, Tunable
from tvm_qplugin.schedules.x86_isa import PAIRS

REPEATS = 4
REPEAT_MS = 5
DUEL_ROUNDS = 12
KERNEL = "kernel.so"
ARGUMENTS = "arguments.pickle"
SPREAD = 40.0  # standard deviation of outputs in codes: most of them inside int8, some clamped


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of a task; everything is plain data.

    ``rule``: ``module:function`` that makes the tunable; ``target``: TVM's target as JSON; ``live``: which
    arguments are no constants; ``isa``: that of the task's tunable, on which weights must not change.
    """

    name: str
    params: str
    args: tuple[TensorSpec, ...]
    out: TensorSpec
    rule: str
    target: str
    compiler: str | None = None
    live: tuple[int, ...] = (0,)
    isa: str = ""

    @classmethod
    def of(cls, call: KernelCall, rule: str, target: str, compiler: str | None, isa: str = "") -> Job:
        """The job of a call."""
        live = tuple(i for i in range(len(call.args)) if i not in call.constants)
        return cls(
            call.name, encode_params(call.params), call.args, call.out, rule, target, compiler, live, isa
        )


@dataclass(frozen=True)
class Device:
    """Where kernels are measured: here, or where the RPC tracker at ``host:port`` finds ``key``."""

    threads: int = 1
    host: str = ""
    port: int = 0
    key: str = ""


class WrongResult(Exception):
    """A candidate's output differs from the oracle's."""


def start(threads: int) -> int:
    """Initialize a worker, for which Ctrl-C is the parent's business; gives its process id."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TVM_NUM_THREADS"] = str(threads)
    return os.getpid()


def build(job: Job, knobs: Knobs, folder: str) -> None:
    """Generate and compile a candidate: the library and its packed arguments."""
    call, target = call_of(job), tvm.target.Target(json.loads(job.target))
    with target:
        tunable = tunable_of(job.rule, call, target)
        if job.isa not in ("", tunable.isa):
            raise ValueError(f"random weights lead to {tunable.isa}, and the task is about {job.isa}")
        made = tunable.implement(knobs)
        if made is None:
            raise ValueError("the rule gives no kernel for these knobs")
        library = tvm.compile(made.func.with_attr("global_symbol", "main"), target=target)
    options = {} if job.compiler is None else {"cc": job.compiler}
    library.export_library(str(Path(folder) / KERNEL), **options)
    (Path(folder) / ARGUMENTS).write_bytes(pickle.dumps(made.args))


def tunable_of(rule: str, call: KernelCall, target: tvm.target.Target) -> Tunable:
    """The tunable that a rule (``module:function``) makes of a call which it is known to take."""
    module, _, function = rule.partition(":")
    found: Tunable = getattr(import_module(module), function)(call, target)
    return found


def time(job: Job, folder: str, device: Device) -> float:
    """Seconds of a call of a built candidate, the least of some; WrongResult if it computes anything else."""
    return duel(job, [folder], device, REPEATS)[0]


def duel(job: Job, folders: Sequence[str], device: Device, rounds: int = DUEL_ROUNDS) -> list[float]:
    """Seconds of several candidates, measured in turn so that disturbances meet all of them."""
    if device.host:
        return _duel(job, folders, device, rounds)
    return measure.on_threads(device.threads, lambda: _duel(job, folders, device, rounds))


def _duel(job: Job, folders: Sequence[str], device: Device, rounds: int) -> list[float]:
    session = _session(device)
    timers = [_timer(job, Path(folder), session) for folder in folders]
    times = [[timer() for timer in timers] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]


def _session(device: Device) -> Any:
    """A connection to the device; None: this machine."""
    if not device.host:
        return None
    tracker = tvm.rpc.connect_tracker(device.host, device.port)
    session = tracker.request(device.key, session_timeout=120)
    session.get_function("runtime.config_threadpool")(1, device.threads)
    return session


def _timer(job: Job, folder: Path, session: Any) -> Callable[[], float]:
    """Load and check a candidate; calling the result measures once."""
    path = str(folder / KERNEL)
    if session is None:
        library, device = tvm.runtime.load_module(path), tvm.cpu(0)
    else:
        session.upload(path, target=f"{folder.name}.so")
        library, device = session.load_module(f"{folder.name}.so"), session.cpu(0)
    data, expected = reference(job)
    packed = pickle.loads((folder / ARGUMENTS).read_bytes())
    given = [data[arg] if isinstance(arg, int) else arg for arg in packed]
    tensors = [tvm.runtime.tensor(np.array(array, order="C"), device) for array in given]
    tensors.append(tvm.runtime.tensor(np.full(expected.shape, 77, expected.dtype), device))
    library["main"](*tensors)
    check(job, tensors[-1].numpy(), expected)
    evaluator = library.time_evaluator("main", device, number=1, repeat=1, min_repeat_ms=REPEAT_MS)
    return lambda: float(evaluator(*tensors).min)


def check(job: Job, found: Array, expected: Array) -> None:
    """Raise WrongResult unless integers are equal, floats within the rounding of as many additions.

    Operands lie within [-1, 1]: a sum of n products may differ by n times float32's epsilon.
    """
    tolerance = 0.0
    if expected.dtype == np.float32:
        tolerance = math.prod(job.args[1].shape[1:]) * float(np.finfo("float32").eps)
    wrong = ~(np.abs(found.astype("float64") - expected.astype("float64")) <= tolerance)
    if wrong.any():
        raise WrongResult(f"{int(wrong.sum())} of {wrong.size} elements differ from the oracle's")


@lru_cache(maxsize=2)
def reference(job: Job) -> tuple[list[Array], Array]:
    """The arguments of a task, and what the oracle makes of them."""
    params, (x, *others) = decode_params(job.params), arrays_of(job)
    inside = _without_halo(x, params.get("in_halo"))
    result = ORACLE[job.name](params, inside, *others, job.out.dtype)
    x = _with_halo(inside, params.get("in_halo"), params.get("in_zp", 0))
    result = _with_halo(np.asarray(result), params.get("out_halo"), params.get("out_zp", 0))
    return [x, *others], result


def call_of(job: Job) -> KernelCall:
    """The call, with random constants."""
    arrays = arrays_of(job)
    constants = {i: array for i, array in enumerate(arrays) if i not in job.live}
    return KernelCall(job.name, decode_params(job.params), job.args, job.out, constants)


@lru_cache(maxsize=2)
def arrays_of(job: Job) -> list[Array]:
    """Random arguments: codes over their whole range, multipliers that spread the outputs over theirs.

    Weights only as large as suits byte pairs, where those are to be used.
    """
    rng = np.random.default_rng(0)
    depth = math.prod(job.args[1].shape[1:])
    arrays = [_array(rng, spec, depth, job.name.startswith("q")) for spec in job.args]
    if job.isa == PAIRS.name:
        arrays[1] //= PAIRS.chain
    return arrays


def _array(rng: np.random.Generator, spec: TensorSpec, depth: int, integer: bool) -> Array:
    if spec.dtype == "float32" and integer:
        size = SPREAD / (74 * 100 * math.sqrt(depth))  # of random codes, weights and distances to zero
        return (rng.uniform(0.5, 1.5, spec.shape) * size).astype("float32")
    if spec.dtype == "float32":
        return rng.uniform(-1, 1, spec.shape).astype("float32")
    if spec.dtype == "int32":
        return rng.integers(-(2**12), 2**12, spec.shape).astype("int32")
    low, high = INTEGER_RANGE[spec.dtype]
    return rng.integers(low + (low < 0), high + 1, spec.shape).astype(spec.dtype)


def _without_halo(array: Array, halo: Sequence[int] | None) -> Array:
    top, left, bottom, right = halo or (0, 0, 0, 0)
    return array[:, top : array.shape[1] - bottom, left : array.shape[2] - right] if halo else array


def _with_halo(array: Array, halo: Sequence[int] | None, value: int) -> Array:
    """``array`` as kernels leave it: what lies around it holds its zero point."""
    top, left, bottom, right = halo or (0, 0, 0, 0)
    width = ((0, 0), (top, bottom), (left, right), (0, 0))
    return np.pad(array, width, constant_values=value) if halo else array
