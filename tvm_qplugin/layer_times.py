"""The time of every kernel of an artifact, measured in place: inside the virtual machine, in order."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tvm_ffi
from tvm.runtime.vm import VMInstrumentReturnKind

from tvm_qplugin import measure
from tvm_qplugin.artifact import Artifact
from tvm_qplugin.core.attrs import MERGED
from tvm_qplugin.core.errors import ArtifactError
from tvm_qplugin.core.manifest import CallInfo, Manifest, OperatorInfo
from tvm_qplugin.peak import Peak, peak_of

CONVERSIONS = ("quantize", "dequantize", "requantize")
MOST_RUNS = 1_000
SECONDS = 1.0
NEAR = 0.9  # of the peak


@dataclass(frozen=True)
class LayerTime:
    """One kernel call: ``name`` and ``op`` are the model's, ``function`` is the kernel's symbol.

    ``names``: of all operators that it computes; ``op`` is ``merged`` where it runs several kernels, and
    ``integer`` then says whether any of them is. ``ms``: median over runs, ``share``: of all kernels.
    ``gmacs``: 10^9 multiply-adds a second, ``of_peak``: of what the cores can do; None where there is none.
    ``bytes``: read and written. ``instruction``: as in the manifest.
    """

    name: str
    names: tuple[str, ...]
    op: str
    function: str
    integer: bool
    reason: str | None
    dtype: str
    ms: float
    share: float
    macs: int
    gmacs: float | None
    of_peak: float | None
    bytes: int
    instruction: str | None = None


@dataclass(frozen=True)
class Profile:
    """All kernels in the order of execution.

    ``kernels_ms`` is their sum, ``whole_ms`` the median of whole runs without instruments; ``peaks``: of one
    core, by dtype of the operands.
    """

    layers: tuple[LayerTime, ...]
    threads: int
    runs: int
    kernels_ms: float
    whole_ms: float
    peaks: dict[str, Peak]

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object, with ``kinds`` and ``near_peak``."""
        return {**asdict(self), "kinds": self.kinds(), "near_peak": self.near_peak()}

    def near_peak(self) -> float | None:
        """Share of the multiply-adds in kernels at ``NEAR`` of the peak or more; None: no peak is known."""
        known = [layer for layer in self.layers if layer.of_peak is not None]
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in known if (layer.of_peak or 0) >= NEAR) / total if known else None

    @property
    def merged(self) -> tuple[LayerTime, ...]:
        """The functions that run several kernels each, whose times are not known one by one."""
        return tuple(layer for layer in self.layers if layer.op == MERGED)

    def kinds(self) -> list[dict[str, Any]]:
        """Calls, time, share, multiply-adds and bytes of each kind of operator, the slowest first."""
        groups: dict[tuple[str, bool], list[LayerTime]] = {}
        for layer in self.layers:
            groups.setdefault((layer.op, layer.integer), []).append(layer)
        rows = [
            {
                "op": op,
                "integer": integer,
                "calls": len(layers),
                "ms": sum(layer.ms for layer in layers),
                "share": sum(layer.share for layer in layers),
                "macs": sum(layer.macs for layer in layers),
                "bytes": sum(layer.bytes for layer in layers),
            }
            for (op, integer), layers in groups.items()
        ]
        return sorted(rows, key=lambda row: -float(str(row["ms"])))


def profile(artifact: Artifact, threads: int = 1, repeat: int | None = None) -> Profile:
    """Time every kernel of an artifact on random input; ``repeat`` None: for about a second.

    Raises ArtifactError when the artifact cannot run here or does not fit its manifest, TargetError when
    ``threads`` cannot be had.
    """
    whole = artifact.benchmark(threads, repeat=repeat)
    runs = repeat or min(MOST_RUNS, max(5, int(1e3 * SECONDS / max(whole.median_ms, 1e-3))))
    times = kernel_times(artifact, threads, runs)
    manifest = artifact.manifest
    peaks = {dtype: peak_of(dtype) for dtype in sorted({call.dtype for call in manifest.calls})}
    total = sum(times) or 1.0
    layers = tuple(
        _layer(manifest, call, seconds, total, peaks[call.dtype], threads)
        for call, seconds in zip(manifest.calls, times, strict=True)
    )
    return Profile(layers, threads, runs, 1e3 * sum(times), whole.median_ms, peaks)


def kernel_times(artifact: Artifact, threads: int, runs: int, warmup: int = 3) -> list[float]:
    """Seconds of every call of the manifest: the median over ``runs``, less what a call from Python takes."""
    machine, arrays = artifact.machine(), artifact.tensors()
    recorder = _Recorder({call.function for call in artifact.manifest.calls})
    machine.set_instrument(recorder)

    def work() -> list[list[tuple[str, float]]]:
        found = []
        for _ in range(warmup + runs):
            recorder.found = []
            machine["main"](*arrays)
            found.append(recorder.found)
        return found[warmup:]

    found = measure.on_threads(threads, work)
    expected = [call.function for call in artifact.manifest.calls]
    if any([name for name, _ in run] != expected for run in found):
        raise ArtifactError("model.so calls other kernels than its manifest lists: build the model again")
    return [statistics.median(run[i][1] for run in found) for i in range(len(expected))]


class _Recorder:
    """An instrument of the virtual machine that runs the kernels itself, to time nothing but them.

    The kernels write to memory of their own, and a call from Python takes what ``testing.nop`` takes.
    """

    def __init__(self, functions: set[str]) -> None:
        self.functions = functions
        self.found: list[tuple[str, float]] = []
        self._nop: Callable[..., object] = tvm_ffi.get_global_func("testing.nop")

    def __call__(self, function: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        if not before or name not in self.functions:
            return int(VMInstrumentReturnKind.NO_OP)
        start = time.perf_counter()
        self._nop(*args)
        called = time.perf_counter()
        function(*args)
        end = time.perf_counter()
        self.found.append((str(name), max(0.0, (end - called) - (called - start))))
        return int(VMInstrumentReturnKind.SKIP_RUN)


def _layer(
    manifest: Manifest, call: CallInfo, seconds: float, total: float, peak: Peak, threads: int
) -> LayerTime:
    operators = [manifest.operators[position] for position in call.operators]
    main, merged = _main(operators), call.kernel == MERGED
    macs = sum(op.macs for op in operators)
    gmacs = macs / seconds / 1e9 if macs and seconds else None
    return LayerTime(
        name=operators[-1].name if operators else call.tensor,
        names=tuple(op.name for op in operators),
        op=MERGED if merged else main.op if main else "requantize" if call.kernel else call.function,
        function=call.function,
        integer=(any if merged else all)(op.integer for op in operators)
        if operators
        else "int" in call.dtype,
        reason=next((op.reason for op in (main, *operators) if op and op.reason), None),
        dtype=call.dtype,
        ms=1e3 * seconds,
        share=seconds / total,
        macs=macs,
        gmacs=gmacs,
        of_peak=None if gmacs is None or peak.gmacs is None else gmacs / (threads * peak.gmacs),
        bytes=call.bytes,
        instruction=call.instruction,
    )


def _main(operators: Sequence[OperatorInfo]) -> OperatorInfo | None:
    """The operator that a kernel is named after: that of most multiply-adds, else the first."""
    return max(operators, key=lambda op: op.macs, default=None)
