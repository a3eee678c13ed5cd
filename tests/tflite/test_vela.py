"""The table of the Ethos-U, and Vela itself as its judge, on every rule and on whole files."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_qplugin import demo
from tvm_qplugin.api import quantize
from tvm_qplugin.exporter import export_tflite
from tvm_qplugin.targets.ethosu import ETHOS_U
from tvm_qplugin.tflite.check import check
from tvm_qplugin.tflite.file import TfliteModel, TfliteOperator, load

CORES = {4: ["--debug-force-legacy-core"], 5: []}
"""Versions of the table, and how Vela 5 is told to be one."""
UNREPORTED: dict[int, set[str]] = {4: set(), 5: {"ARG_MAX"}}
"""Vela 5.2 compiles it, but its own report of operators ends with a KeyError."""


def _models() -> Any:
    spec = importlib.util.spec_from_file_location("tflite_models", Path(__file__).with_name("models.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


m = _models()
Shape = tuple[int, ...]
t, c, op, unary = m.t, m.c, m.op, m.unary


def conv(code: str, kernel: Shape, before: Shape, after: Shape, **changed: Any) -> Any:
    name = "Conv2D" if code == "CONV_2D" else "DepthwiseConv2D"
    channels = after[-1]
    weight, bias = c(np.ones(kernel), "int8", 0.1), c([0] * channels, "int32", 0.05)
    fields = {"strideH": 1, "strideW": 1, "padding": m.VALID}
    fields |= {"depthMultiplier": 1} if name == "DepthwiseConv2D" else {}
    return op(code, [t(before), weight, bias], t(after), f"{name}Options", **fields | changed)


def window(code: str, size: int, **fields: Any) -> Any:
    options = {"filterHeight": size, "filterWidth": size, "strideH": 1, "strideW": 1} | fields
    return op(code, [t((1, 18, 18, 4))], t((1, 18, 18, 4)), "Pool2DOptions", **options)


def arg_max(depth: int) -> Any:
    indices = t((1, 4, 4), "int32", None)
    return op("ARG_MAX", [t((1, 4, 4, depth)), c([3])], indices, "ArgMaxOptions", outputType=2)


def resized(code: str, factor: int, **fields: Any) -> Any:
    options = "ResizeBilinearOptions" if "BILINEAR" in code else "ResizeNearestNeighborOptions"
    size = 4 * factor
    return op(code, [t((1, 4, 4, 4)), c([size, size])], t((1, size, size, 4)), options, **fields)


S4 = {"strideH": 4, "strideW": 4}
HEAVY = np.full((1, 1, 1, 70_000), 127)
MAPPED: dict[str, Any] = {
    **{code: m.binary(code, options=f"{code.title()}Options") for code in ("ADD", "SUB", "MUL")},
    **{code: unary(code) for code in ("LOGISTIC", "TANH", "RELU", "RELU6", "RELU_N1_TO_1", "ABS")},
    "HARD_SWISH": unary("HARD_SWISH"),
    "LEAKY_RELU": unary("LEAKY_RELU", options="LeakyReluOptions", alpha=0.1),
    "MAXIMUM": m.binary("MAXIMUM"),
    "MINIMUM": m.binary("MINIMUM"),
    "CONV_2D": conv("CONV_2D", (4, 3, 3, 4), (1, 8, 8, 4), (1, 6, 6, 4)),
    "CONV_2D stride 3": conv("CONV_2D", (4, 3, 3, 4), (1, 9, 9, 4), (1, 3, 3, 4), strideH=3, strideW=3),
    "DEPTHWISE_CONV_2D": conv("DEPTHWISE_CONV_2D", (1, 3, 3, 4), (1, 8, 8, 4), (1, 6, 6, 4)),
    "FULLY_CONNECTED": m.dense(),
    "FULLY_CONNECTED rows": m.dense((3, 4)),
    "AVERAGE_POOL_2D": window("AVERAGE_POOL_2D", 8),
    "MAX_POOL_2D": window("MAX_POOL_2D", 9),
    "MEAN": m.reduce("MEAN", [1, 2]),
    "SOFTMAX": unary("SOFTMAX", (1, 10), "SoftmaxOptions", beta=1.0),
    "RESHAPE": op("RESHAPE", [t(), c([1, 256])], t((1, 256)), "ReshapeOptions", newShape=[1, 256]),
    "PAD": m.pad([[0, 0], [1, 1], [1, 1], [0, 0]]),
    "CONCATENATION": m.concat([t(), t()]),
    "SPLIT": op("SPLIT", [c(3), t()], [t((1, 8, 8, 2))] * 2, "SplitOptions", numSplits=2),
    "STRIDED_SLICE": m.slices(),
    "QUANTIZE": op("QUANTIZE", [t(dtype="uint8")], t(), "QuantizeOptions"),
    "ARG_MAX": arg_max(127),
    "RESIZE_NEAREST_NEIGHBOR": resized("RESIZE_NEAREST_NEIGHBOR", 8),
    "RESIZE_BILINEAR": resized("RESIZE_BILINEAR", 2, halfPixelCenters=True),
    "PRELU": op("PRELU", [t(), c(np.ones((1, 1, 4)), "int8", 0.1)], t()),
    "TRANSPOSE_CONV": m.transpose_conv(),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "float": (op("RELU", [t(dtype="float32", scale=None)], t(dtype="float32", scale=None)), "is float32"),
    "no scale": (op("RELU", [t(scale=None)], t(scale=None)), "has no scale"),
    "per channel": (
        op("PRELU", [t(), c(np.ones((1, 1, 4)), "int8", [0.1, 0.2, 0.3, 0.4], 2)], t()),
        "scales per channel only in CONV_2D, .*: input1 has a scale per channel",
    ),
    "int32 relu": (op("ABS", [t(dtype="int32")], t(dtype="int32")), "input0 is int32"),
    "weight sum": (
        op(
            "CONV_2D",
            [t((1, 1, 1, 70_000)), c(HEAVY, "int8", 0.1), c([0], "int32", 0.05)],
            t((1, 1, 1, 1)),
            "Conv2DOptions",
            strideH=1,
            strideW=1,
            padding=m.VALID,
        ),
        "sum to at most 8323072: input1 sums to 8890000",
    ),
    "depthwise stride": (
        conv("DEPTHWISE_CONV_2D", (1, 3, 3, 4), (1, 11, 11, 4), (1, 3, 3, 4), **S4),
        "stride_h and stride_w from 1 to 3: stride_h is 4",
    ),
    "average 9": (window("AVERAGE_POOL_2D", 9), "window up to 8x8.*: has a window of 9x9"),
    "deep": (arg_max(128), "depth at most 127: depth is 128"),
    "resize 3": (resized("RESIZE_NEAREST_NEIGHBOR", 3), r"2, 4 or 8 times.*: scales \[4, 4\] to \[12, 12\]"),
    "other scale": (op("MAXIMUM", [t(scale=0.25), t()], t()), "input0 has another scale"),
    "elu": (op("ELU", [t(dtype="int16")], t(dtype="int16")), "activations are int8 .*input0 is int16"),
    "space": (m.op("SPACE_TO_DEPTH", [t()], t((1, 4, 4, 16)), "SpaceToDepthOptions", blockSize=2), "no row"),
    "gather": (op("GATHER", [t((8, 4)), c([1, 2])], t((2, 4)), "GatherOptions"), "no row .* GATHER"),
    "square": (unary("SQUARE"), "no row for the operator SQUARE"),
    "dequantize": (op("DEQUANTIZE", [t()], t(dtype="float32", scale=None), "DequantizeOptions"), "no row"),
}
SINCE_5: dict[str, tuple[Any, str]] = {
    "batch": (unary("RELU", (2, 8, 8, 4)), "batch 1: input0 has batch 2"),
    "five dimensions": (m.binary("ADD", (1, 1, 8, 8, 4), "AddOptions"), "at most 4 dimensions"),
    "stride 4": (
        conv("CONV_2D", (4, 3, 3, 4), (1, 8, 8, 4), (1, 2, 2, 4), padding=m.SAME, **S4),
        "from 1 to 3: stride_h is 4",
    ),
    "65 high": (conv("CONV_2D", (4, 65, 1, 4), (1, 65, 8, 4), (1, 1, 8, 4)), "has a kernel of 65x1"),
    "4160 taps": (conv("CONV_2D", (4, 64, 65, 1), (1, 64, 70, 1), (1, 1, 6, 4)), "has a kernel of 64x65"),
    "exp": (op("EXP", [t(dtype="uint8")], t(dtype="uint8"), "ExpOptions"), "input0 is uint8"),
}


def place(file: bytes, version: int) -> tuple[str, str]:
    (finding,) = check(load(file, strict=False), ETHOS_U, version).findings
    return finding.placed, finding.rule


@pytest.mark.parametrize("name", MAPPED)
def test_rule_kept(litert: Any, name: str) -> None:
    file = MAPPED[name](litert)
    assert place(file, 4)[0] == place(file, 5)[0] == "mapped"


@pytest.mark.parametrize("name", REFUSED)
def test_rule_broken(litert: Any, name: str) -> None:
    model, why = REFUSED[name]
    for version in CORES:
        placed, rule = place(model(litert), version)
        assert placed == "cpu" and re.search(why, rule), rule


@pytest.mark.parametrize("name", SINCE_5)
def test_rules_of_vela_4(litert: Any, name: str) -> None:
    model, why = SINCE_5[name]
    assert place(model(litert), 5)[0] == "mapped"
    placed, rule = place(model(litert), 4)
    assert placed == "cpu" and re.search(f"needs Vela 5, not 4 .*{why}", rule), rule


MARK = "compiling "
RUN = f"""
import json, sys
from ethosu.vela import vela
for path in sys.argv[3:]:
    print({MARK!r} + path, flush=True)
    options = [path, "--accelerator-config", "ethos-u55-128", "--output-dir", sys.argv[1]]
    vela.main([*options, "--show-cpu-operations", *json.loads(sys.argv[2])])
"""


def compiled(folder: Path, version: int, files: dict[str, bytes]) -> dict[str, tuple[int, int]]:
    """Operators that Vela leaves on the CPU and puts on the NPU, of each file.

    One process for all: Vela is native code and takes the process with it where a file is wrong.
    """
    if importlib.util.find_spec("ethosu") is None:
        reason = "ethos-u-vela is not installed (extra: test)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    paths = {name: folder / f"{i}.tflite" for i, name in enumerate(files)}
    for name, data in files.items():
        paths[name].write_bytes(data)
    command = [sys.executable, "-c", RUN, str(folder / "out"), json.dumps(CORES[version])]
    result = subprocess.run(
        [*command, *map(str, paths.values())], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    texts = dict(part.split("\n", 1) for part in result.stdout.split(MARK)[1:])
    return {name: _counts(texts[str(path)]) for name, path in paths.items()}


def _counts(text: str) -> tuple[int, int]:
    found = [re.search(rf"{unit} operators = (\d+)", text) for unit in ("CPU", "NPU")]
    assert found[0] and found[1], text
    return int(found[0][1]), int(found[1][1])


@pytest.mark.parametrize("version", CORES)
def test_vela_agrees_with_every_rule(litert: Any, tmp_path: Path, version: int) -> None:
    models = {**MAPPED, **{name: model for name, (model, _) in (REFUSED | SINCE_5).items()}}
    files = {name: model(litert) for name, model in models.items() if name not in UNREPORTED[version]}
    counts = compiled(tmp_path, version, files)
    vela = {name: "cpu" if cpu else "mapped" for name, (cpu, _) in counts.items()}
    assert vela == {name: place(file, version)[0] for name, file in files.items()}


def test_the_demo_runs_on_the_npu(litert: Any, tmp_path: Path) -> None:
    module = quantize(demo.model_path(), calibration=demo.calibration(), io="int8", limit=20)
    file = export_tflite(module)
    result = check(load(file), ETHOS_U)
    assert result.complete
    assert compiled(tmp_path, 5, {"demo": file})["demo"][0] == 0


FILES = [
    "mobilenet_v2_1.0_224_ptq_u8io_int8",
    "tiny_resnet8_cifar10_int8",
    "tiny_kws_dscnn_int8",
    "tiny_vww_mobilenetv1_025_96_int8",
    "tiny_ad_autoencoder_int8",
    "mnist_lstm_int8",
    "tiny_kws_dscnn_hybrid_dynrange",
    "mobilenet_v1_0.25_224_float",
]


SLOW = [pytest.mark.slow]
MODELS = {
    "tiny_resnet8_cifar10": (1, 3, 32, 32),
    "tiny_kws_dscnn": (1, 1, 49, 10),
    "mobilenet_v1_0.25_224": (1, 3, 224, 224),
    "mobilenet_v2_1.0_224": (1, 3, 224, 224),
}
EXPORTS = [
    pytest.param(name, target, marks=SLOW if name.startswith("mobilenet") else [])
    for name in MODELS
    for target in ("edgetpu", "ethos-u")
]


SPLIT = {"MEAN": "ReducerOptions", "SOFTMAX": "SoftmaxOptions"}
"""Operators that Vela makes several of, with their options."""


def alone(model: TfliteModel, operator: TfliteOperator) -> Any:
    """A file of one operator of a model."""
    tensors = [model.tensors[i] for i in (*operator.inputs, *operator.outputs)]
    made = [
        t(x.shape, x.dtype, x.quant and x.quant.scale, int(x.quant.zero_point) if x.quant else 0)
        if x.data is None
        else c(x.data)
        for x in tensors
    ]
    fields = {"keepDims": True} if operator.name == "MEAN" else {"beta": 1.0}
    return op(operator.name, made[:-1], made[-1], SPLIT[operator.name], **fields)


@pytest.mark.parametrize(("name", "target"), EXPORTS)
def test_our_exports_run_on_the_npu(
    litert: Any, shared_data: Path, tmp_path: Path, name: str, target: str
) -> None:
    """As many operators as predicted: a RESHAPE costs none, MEAN and SOFTMAX as many as alone."""
    path = shared_data / "models" / f"{name}.onnx"
    noise = np.random.default_rng(0).normal(size=MODELS[name]).astype("float32")
    file = export_tflite(quantize(path, calibration=[noise], target=target), target=target)
    model, result = load(file), check(load(file), ETHOS_U)
    assert result.complete
    split = [operator for operator in model.operators if operator.name in SPLIT]
    files = {name: file} | {operator.name: alone(model, operator)(litert) for operator in split}
    (cpu, npu), *parts = compiled(tmp_path, 5, files).values()
    single = sum(operator.name not in (*SPLIT, "RESHAPE") for operator in model.operators)
    assert (cpu, npu) == (0, single + sum(count for _, count in parts))
    assert compiled(tmp_path, 4, {name: file})[name][0] == 0


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_converter(litert: Any, shared_data: Path, tmp_path: Path, name: str) -> None:
    path = shared_data / "models" / "tflite" / f"{name}.tflite"
    result = check(load(path, strict=False), ETHOS_U)
    cpu, npu = compiled(tmp_path, 5, {name: path.read_bytes()})[name]
    assert cpu == len(result.findings) - result.mapped
    assert bool(npu) == bool(result.mapped)
