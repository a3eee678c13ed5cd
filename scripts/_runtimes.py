"""How each runtime makes its file of a model, loads it and runs it: what _contestants.py names.

``make_*(model, path)`` writes a file; ``start_*(path, threads)`` loads one, runs it once and returns the
function that times runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from _bench_models import Model
from tvm.ir import IRModule

from tvm_qplugin import frontend
from tvm_qplugin.api import quantize
from tvm_qplugin.artifact import Artifact
from tvm_qplugin.builder import build
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.exporter import export_tflite, with_io
from tvm_qplugin.measure import Measurement, peak_bytes
from tvm_qplugin.samples import inputs_of
from tvm_qplugin.stage import load_module, save_module

CALIBRATION = 100
# (seconds of warm-up, seconds) -> times of single runs, without the copies in and out
Rounds = Callable[[float, float], Measurement]


def samples(model: Model, layout: str = "NCHW") -> Iterator[Array]:
    """What everybody calibrates with, in the shape of the model's input."""
    shape = inputs_of(frontend.load(model.path))[0].spec.shape
    for sample in islice(model.calibration, CALIBRATION):
        x = np.ascontiguousarray(sample).reshape(shape)
        yield np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if layout == "NHWC" and x.ndim == 4 else x


def _quantized(model: Model, folder: Path, layout: str) -> IRModule:
    """Our QDQ module with float inputs and outputs, made once."""
    stage = folder / f"quantized-{layout}"
    if not stage.is_dir():
        module = quantize(model.path, calibration=samples(model, layout), input_layout=layout)
        save_module(module, stage)
    return load_module(stage)


def make_ours(model: Model, path: Path, *, io: str, layout: str) -> None:
    """Our artifact in int8."""
    build(with_io(_quantized(model, path.parent, layout), io)).save(path)


def make_ours_float(model: Model, path: Path) -> None:
    """Our artifact in float32."""
    build(frontend.load(model.path, input_layout="NHWC")).save(path)


def make_tflite(model: Model, path: Path) -> None:
    """Our int8 file."""
    export_tflite(_quantized(model, path.parent, "NHWC"), path, io="int8")


def _in_scheme(model: Model, scheme: str) -> IRModule:
    given = samples(model, "NHWC") if scheme == "int16x8" else None
    return quantize(model.path, recipe=scheme, calibration=given, input_layout="NHWC")


def make_scheme(model: Model, path: Path, *, scheme: str) -> None:
    """Our artifact in a scheme that is not int8."""
    build(_in_scheme(model, scheme)).save(path)


def make_scheme_tflite(model: Model, path: Path, *, scheme: str) -> None:
    """Our file in a scheme that is not int8."""
    export_tflite(_in_scheme(model, scheme), path)


def make_tflite_float(model: Model, path: Path) -> None:
    """Our float file."""
    export_tflite(frontend.load(model.path, input_layout="NHWC"), path)


def make_onnxruntime(model: Model, path: Path) -> None:
    """onnxruntime's static quantization: uint8 activations, int8 weights per channel, QDQ."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name("onnxruntime-prepared.onnx")
    quant_pre_process(str(model.path), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(path),
        _reader(model, quantization.CalibrationDataReader),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )


def _reader(model: Model, base: type) -> Any:
    name, given = inputs_of(frontend.load(model.path))[0].name, samples(model)

    class Reader(base):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            sample = next(given, None)
            return None if sample is None else {name: sample}

    return Reader()


def make_openvino(model: Model, path: Path) -> None:
    """OpenVINO's IR, quantized by NNCF's defaults."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    given = list(samples(model))
    network = openvino.Core().read_model(model.path)
    with redirect_stdout(StringIO()):  # progress bars
        quantized = nncf.quantize(network, nncf.Dataset(given), subset_size=len(given))
    openvino.save_model(quantized, path, compress_to_fp16=False)


def make_openvino_float(model: Model, path: Path) -> None:
    """OpenVINO's IR in float32."""
    import openvino

    openvino.save_model(openvino.Core().read_model(model.path), path, compress_to_fp16=False)


def start_ours(path: Path, threads: int) -> Rounds:
    """TVM's virtual machine."""
    artifact = Artifact.load(path)
    artifact.run(*(np.zeros(info.shape, info.dtype) for info in artifact.manifest.inputs), threads=threads)
    typical: list[float] = []

    def run(warmup: float, seconds: float) -> Measurement:
        if not typical:
            typical.append(artifact.benchmark(threads, repeat=5).median_ms / 1e3)
        counts = (int(length / typical[0]) for length in (warmup, seconds))
        return artifact.benchmark(threads, warmup=max(1, next(counts)), repeat=max(5, next(counts)))

    return run


def start_litert(path: Path, threads: int) -> Rounds:
    """LiteRT with its default kernels."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    for item in interpreter.get_input_details():
        interpreter.set_tensor(item["index"], _random(item["shape"], item["dtype"]))
    return rounds(interpreter.invoke, threads)


def start_onnxruntime(path: Path, threads: int) -> Rounds:
    """onnxruntime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for item in session.get_inputs():
        binding.bind_cpu_input(item.name, _random(item.shape, "float32"))
    for item in session.get_outputs():
        binding.bind_output(item.name)
    return rounds(partial(session.run_with_iobinding, binding), threads)


def start_openvino(path: Path, threads: int) -> Rounds:
    """OpenVINO for latency; what is not int8 in float32, not bfloat16."""
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(path, "CPU", options)
    request = compiled.create_infer_request()
    for i, port in enumerate(compiled.inputs):
        request.set_input_tensor(i, openvino.Tensor(_random(port.shape, "float32")))
    return rounds(partial(request.infer, share_outputs=True), threads)


def _random(shape: Any, dtype: Any) -> Array:
    dtype = np.dtype(dtype)
    values = np.random.default_rng(0).random([int(extent) for extent in shape])
    return (values if dtype.kind == "f" else 100 * values).astype(dtype)


def rounds(call: Callable[[], object], threads: int) -> Rounds:
    """Call once, then time calls in this thread."""
    call()

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
