"""Who races in bench.py: a table; a further runtime is one entry."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from real_models import RealModel

from tvm_qplugin import frontend
from tvm_qplugin.api import quantize
from tvm_qplugin.artifact import Artifact
from tvm_qplugin.builder import build
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.measure import Measurement, peak_bytes
from tvm_qplugin.samples import inputs_of

CALIBRATION = 100
# (seconds of warm-up, seconds) -> times of single runs, without the copies in and out
Rounds = Callable[[float, float], Measurement]


@dataclass(frozen=True)
class Contestant:
    """A runtime on a model.

    ``prepare(model, folder)`` is called once, in a process of its own, to make files in ``folder``.
    ``start(model, folder, threads)`` is called in a process that is pinned to ``threads`` cores. ``package``
    must be installed; ``lacks(model)`` says why a model cannot be run, or "".
    """

    start: Callable[[RealModel, Path, int], Rounds]
    prepare: Callable[[RealModel, Path], None] | None = None
    package: str = ""
    lacks: Callable[[RealModel], str] = lambda model: ""

    def obstacle(self, model: RealModel) -> str:
        """Why this contestant cannot run the model, or ""."""
        if self.package and find_spec(self.package) is None:
            return f"the package {self.package} is not installed: pip install 'tvm-qplugin[bench]'"
        return self.lacks(model)


def _rounds(call: Callable[[], object], threads: int) -> Rounds:
    """Time calls in this thread."""

    def run(warmup: float, seconds: float) -> Measurement:
        _times(call, warmup)
        return Measurement.of(_times(call, seconds), threads, peak_bytes())

    return run


def _times(call: Callable[[], object], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def _build_ours(model: RealModel, folder: Path, *, io: str, layout: str) -> None:
    shape = inputs_of(frontend.load(model.path))[0].spec.shape

    def samples() -> list[Array]:
        given = [
            sample.reshape(shape) for sample, _ in zip(model.calibration, range(CALIBRATION), strict=False)
        ]
        return [x.transpose(0, 2, 3, 1) if layout == "NHWC" and x.ndim == 4 else x for x in given]

    module = quantize(model.path, calibration=samples(), io=io, input_layout=layout)
    build(module).save(folder / f"ours-{io}-{layout}")


def _start_ours(model: RealModel, folder: Path, threads: int, *, io: str, layout: str) -> Rounds:
    artifact = Artifact.load(folder / f"ours-{io}-{layout}")
    typical = artifact.benchmark(threads, repeat=10).median_ms / 1e3

    def run(warmup: float, seconds: float) -> Measurement:
        return artifact.benchmark(
            threads, warmup=max(3, int(warmup / typical)), repeat=max(5, int(seconds / typical))
        )

    return run


def _start_litert(model: RealModel, folder: Path, threads: int) -> Rounds:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model.tflite_path), num_threads=threads)
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for item in interpreter.get_input_details():
        values = 100 * rng.random(item["shape"])
        interpreter.set_tensor(item["index"], values.astype(item["dtype"]))
    return _rounds(interpreter.invoke, threads)


def _start_onnxruntime(model: RealModel, folder: Path, threads: int) -> Rounds:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    binding, rng = session.io_binding(), np.random.default_rng(0)
    for item in session.get_inputs():
        binding.bind_cpu_input(item.name, rng.random(item.shape).astype("float32"))
    for item in session.get_outputs():
        binding.bind_output(item.name)
    return _rounds(partial(session.run_with_iobinding, binding), threads)


def _no_tflite(model: RealModel) -> str:
    return "" if model.tflite else "there is no int8 .tflite of this net"


def _ours(io: str, layout: str) -> Contestant:
    return Contestant(
        partial(_start_ours, io=io, layout=layout), prepare=partial(_build_ours, io=io, layout=layout)
    )


OURS = "ours"
CONTESTANTS = {
    OURS: _ours("int8", "NHWC"),  # the interface of LiteRT's files
    "LiteRT int8": Contestant(_start_litert, package="ai_edge_litert", lacks=_no_tflite),
    "ours, float I/O": _ours("float", "NCHW"),
    "onnxruntime float": Contestant(_start_onnxruntime, package="onnxruntime"),
}
