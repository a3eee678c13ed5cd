"""The engine of the checker: the cut, float ends, memory, and whole files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_qplugin.core.errors import TargetError
from tvm_qplugin.targets.devices import DEVICES, find_device
from tvm_qplugin.targets.edgetpu import EDGETPU
from tvm_qplugin.tflite.check import CheckReport, check
from tvm_qplugin.tflite.file import load

IMAGE = (1, 8, 8, 4)
WORDS = EDGETPU.words
MAPPED, UNSUPPORTED, LIMITED = WORDS.mapped, WORDS.unsupported, WORDS.limited
CUT, LARGE = WORDS.after_cut, WORDS.activations


def report(file: bytes, runtime: int | None = None) -> CheckReport:
    return check(load(file, strict=False), EDGETPU, runtime)


def test_the_words_are_the_compilers() -> None:
    assert MAPPED == "Mapped to Edge TPU" and UNSUPPORTED == "Operation not supported"
    assert CUT == "More than one subgraph is not supported"
    assert LARGE == "Compilation failed due to large activation tensors in model"
    assert WORDS.dtype == "Operation is working on an unsupported data type"
    assert LIMITED.startswith("Operation is otherwise supported, but not mapped due to some unspecified")


def chain(litert: Any, *codes: str) -> bytes:
    """Elementwise operators one after another."""
    names = [f"t{i}" for i in range(len(codes) + 1)]
    tensors = {name: litert.Tensor(IMAGE, "int8", 0.5) for name in names}
    nodes = [
        litert.Node(getattr(litert.Builtin, code), (a,), (b,))
        for code, a, b in zip(codes, names, names[1:], strict=False)
    ]
    return bytes(litert.write(tensors, nodes, names[:1], names[-1:]))


def test_nothing_maps_behind_the_cut(litert: Any) -> None:
    result = report(chain(litert, "RELU", "HARD_SWISH", "RELU", "SIN", "TANH"))
    assert [f.placed for f in result.findings] == ["mapped", "cpu", "cpu", "cpu", "cpu"]
    assert [f.status for f in result.findings] == [MAPPED, UNSUPPORTED, CUT, UNSUPPORTED, CUT]
    assert result.cut == 1 and result.partitions == 1 and not result.complete
    assert result.findings[2].rule == "comes after operator 1 (HARD_SWISH), which does not map"
    assert result.findings[2].hint == "make operator 1 (HARD_SWISH) map"
    assert [f.cut_off for f in result.findings] == [False, False, True, False, True]


def test_other_devices_come_back(litert: Any) -> None:
    model = load(chain(litert, "RELU", "SIN", "RELU"))
    result = check(model, find_device("litert-hexagon"))
    assert [f.placed for f in result.findings] == ["mapped", "cpu", "mapped"]
    assert result.cut is None and result.partitions == 2


def test_float_ends_stay_on_the_cpu_and_cut_nothing(litert: Any) -> None:
    real, small = litert.Tensor(IMAGE, "float32"), litert.Tensor(IMAGE, "int8", 0.5)
    tensors = {"x": real, "q": small, "r": small, "y": real}
    b = litert.Builtin
    nodes = [
        litert.Node(b.QUANTIZE, ("x",), ("q",), "QuantizeOptions"),
        litert.Node(b.RELU, ("q",), ("r",)),
        litert.Node(b.DEQUANTIZE, ("r",), ("y",), "DequantizeOptions"),
    ]
    result = report(litert.write(tensors, nodes, ["x"], ["y"]))
    assert [f.placed for f in result.findings] == ["cpu", "mapped", "cpu"]
    assert result.cut is None and result.float_io == ("x", "y")


def test_custom_operators(litert: Any) -> None:
    s = litert.schema
    model = s.ModelT.InitFromObj(s.Model.GetRootAs(chain(litert, "RELU")))
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = (
        s.BuiltinOperator.CUSTOM
    )
    model.operatorCodes[0].customCode = b"TFLite_Detection_PostProcess"
    (finding,) = report(packed(litert, model)).findings
    assert finding.status == UNSUPPORTED
    assert finding.rule == "no row for the custom operator TFLite_Detection_PostProcess"


def packed(litert: Any, model: Any) -> bytes:
    builder = litert.flatbuffers.Builder(1 << 12)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize(("signature", "placed"), [([-1, 8, 8, 4], "mapped"), ([1, -1, 8, 4], "cpu")])
def test_open_sizes(litert: Any, signature: list[int], placed: str) -> None:
    s = litert.schema
    model = s.ModelT.InitFromObj(s.Model.GetRootAs(chain(litert, "RELU")))
    model.subgraphs[0].tensors[0].shapeSignature = signature
    (finding,) = report(packed(litert, model)).findings
    assert finding.placed == placed
    if placed == "cpu":
        assert finding.status == LIMITED and "tensor sizes are constant: t0 has an open size" in finding.rule


def dense(litert: Any, inputs: int) -> bytes:
    x, y = litert.Tensor((1, inputs), "int8", 0.5), litert.Tensor((1, 4), "int8", 0.5)
    weight = litert.constant(np.zeros((4, inputs)), "int8", 0.1)
    bias = litert.constant([0] * 4, "int32", 0.05)
    return bytes(litert.operator("FULLY_CONNECTED", [x, weight, bias], [y], "FullyConnectedOptions"))


def test_parameters_and_the_chip(litert: Any) -> None:
    small, large = report(dense(litert, 16)), report(dense(litert, 2_100_000))
    assert (small.parameter_bytes, small.streamed_bytes) == (4 * 16 + 4 * 4, 0)
    assert large.parameter_bytes == 8_400_016 and large.on_chip_bytes == 8_074_035
    assert large.streamed_bytes == 8_400_016 - 8_074_035


def test_activations_larger_than_the_chip(litert: Any) -> None:
    image = litert.Tensor((1, 2000, 2000, 3), "int8", 0.5)
    result = report(litert.operator("RELU", [image], [image]))
    assert result.failure == f"{LARGE} (input0 alone takes 11.4 MiB)"
    assert not report(chain(litert, "RELU")).failure


@pytest.mark.parametrize(("name", "runtime"), [("edgetpu", 9), ("edgetpu", 15), ("ethos-u", 3)])
def test_unknown_runtimes(litert: Any, name: str, runtime: int) -> None:
    with pytest.raises(TargetError, match=f"(runtime|Vela) {runtime} of .* is unknown; expected"):
        check(load(chain(litert, "RELU")), find_device(name), runtime)


def test_unknown_devices() -> None:
    with pytest.raises(TargetError, match="device 'tpu' is unknown; use one of edgetpu, ethos-u, litert-gpu"):
        find_device("tpu")


@pytest.mark.parametrize("name", DEVICES)
def test_tables_say_that_they_predict(name: str) -> None:
    rules = DEVICES[name]
    assert rules.name == name and "prediction" in rules.prediction and rules.source
    assert len({row.name for row in rules.rows}) == len(rules.rows)


@pytest.mark.parametrize(
    ("file", "mapped", "total"),
    [
        ("mobilenet_v2_1.0_224_ptq_u8io_int8", 68, 68),
        ("tiny_resnet8_cifar10_int8", 16, 16),
        ("tiny_kws_dscnn_int8", 13, 13),
        ("tiny_vww_mobilenetv1_025_96_int8", 31, 31),
        ("tiny_ad_autoencoder_int8", 10, 10),
        ("mnist_lstm_int8", 4, 4),
        ("tiny_kws_dscnn_hybrid_dynrange", 0, 13),
        ("mobilenet_v1_0.25_224_float", 0, 31),
        ("deeplabv3_257_mnv2_dm05_float", 0, 70),
    ],
)
def test_files_of_the_converter(litert: Any, shared_data: Path, file: str, mapped: int, total: int) -> None:
    path = shared_data / "models" / "tflite" / f"{file}.tflite"
    result = check(load(path, strict=False), EDGETPU)
    assert (result.mapped, len(result.findings)) == (mapped, total)
    assert (result.cut is None) == (mapped == total) and result.streamed_bytes == 0
