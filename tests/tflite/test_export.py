"""Exported files in LiteRT against the oracle and the compiled model: the same integers, exactly."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tvm_qplugin import demo, frontend
from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.errors import ModelError, RecipeError
from tvm_qplugin.exporter import export_tflite, exported
from tvm_qplugin.quantizer import quantize_module
from tvm_qplugin.simulator import Simulator


def _nets() -> ModuleType:
    """Beside this file; not importable by name under ``--import-mode=importlib``."""
    spec = importlib.util.spec_from_file_location("tflite_nets", Path(__file__).with_name("nets.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nets = _nets()
Make, Net, NETS, differing, in_file = nets.Make, nets.Net, nets.NETS, nets.differing, nets.in_file
conv, dense, resize, then, unary = nets.conv, nets.dense, nets.resize, nets.then, nets.unary


@pytest.mark.parametrize("name", NETS)
def test_every_layer(litert: Any, name: str) -> None:
    net = Net()
    module = net.module(NETS[name](net))
    found = differing(litert, module, [net.sample(3)], [net.sample(4)], every_layer=True)
    assert set(found.values()) == {0}, found
    assert set(differing(litert, module, [net.sample(6)], keep_layout=True).values()) == {0}
    np.testing.assert_array_equal(
        compile_function(module)([net.sample(5)])[0], Simulator(module).run(net.sample(5))[0]
    )


def test_attention(litert: Any) -> None:
    """Integer for a device that takes files; for CPUs its scores are float, and the error says why."""
    net = Net()
    module, samples = net.floats(nets.attention(net)), [net.sample(seed) for seed in range(3)]
    made = quantize_module(module, target="ethos-u", calibration=samples, io="float")
    assert set(differing(litert, made, [net.sample(3)], [net.sample(4)], every_layer=True).values()) == {0}
    with pytest.raises(ModelError, match=r"softmax: attention scores stay in float.*a rule of a recipe"):
        exported(quantize_module(module, calibration=samples))


@pytest.mark.parametrize("io", ["int8", "uint8"])
@pytest.mark.parametrize("name", ["conv same", "dense relu softmax", "transpose", "concat"])
def test_integer_inputs_and_outputs(litert: Any, name: str, io: str) -> None:
    net = Net()
    output = NETS[name](net)
    module, typed = net.module(output), net.module(output, io)
    assert exported(module, io=io).data == exported(typed).data
    low = {"int8": -128, "uint8": 0}[io]
    codes = np.random.default_rng(0).integers(low, low + 256, (3, *net.shape)).astype(io)
    assert set(differing(litert, typed, *([image] for image in codes)).values()) == {0}


def test_the_interface_of_the_file(litert: Any) -> None:
    net = Net()
    data = export_tflite(net.module(conv(7)(net)), io="uint8", signature="classify")
    runner = litert.Interpreter(model_content=data)
    assert runner.get_signature_list() == {"classify": {"inputs": ["x"], "outputs": ["t0"]}}
    (given,), (result,) = runner.get_input_details(), runner.get_output_details()
    assert given["shape"].tolist() == [1, 9, 8, 6] and result["shape"].tolist() == [1, 7, 6, 7]
    assert given["dtype"] == result["dtype"] == np.uint8 and given["quantization"][0] > 0
    model = litert.schema.ModelT.InitFromPackedBuf(data)
    assert model.version == 3 and data[4:8] == b"TFL3"
    assert not model.buffers[0].data and model.metadata[0].name == b"min_runtime_version"
    assert bytes(model.buffers[model.metadata[0].buffer].data) == b"1.14.0".ljust(16, b"\0")
    codes = {code.builtinCode: (code.deprecatedBuiltinCode, code.version) for code in model.operatorCodes}
    assert codes == {litert.Builtin.QUANTIZE: (114, 1), litert.Builtin.CONV_2D: (3, 3)}


def test_padding_becomes_same_where_it_can(litert: Any) -> None:
    def codes(name: str) -> list[int]:
        net = Net()
        model = litert.schema.ModelT.InitFromPackedBuf(exported(net.module(NETS[name](net)), io="int8").data)
        return [model.operatorCodes[op.opcodeIndex].builtinCode for op in model.subgraphs[0].operators]

    assert codes("conv same") == [litert.Builtin.CONV_2D]
    assert codes("conv stride, padded before") == [litert.Builtin.PAD, litert.Builtin.CONV_2D]
    assert codes("depthwise, multiplier 2") == [litert.Builtin.DEPTHWISE_CONV_2D]


def test_written_whole(litert: Any, tmp_path: Path) -> None:
    net = Net()
    module = net.module(conv(7)(net))
    path = tmp_path / "model.tflite"
    assert export_tflite(module, path) == path.read_bytes() == export_tflite(module)
    assert [file.name for file in tmp_path.iterdir()] == ["model.tflite"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unary("Abs"), "t1 cannot be exported to .tflite: no TFLite operator computes abs"),
        (unary("Erf"), "no TFLite operator computes erf with the same integers"),
        (resize("nearest", "align_corners", "floor"), "does not resize with coordinates 'align_corners'"),
        (
            lambda net: net("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
            "averages without its padding",
        ),
        (lambda net: net("MaxPool", "x", kernel_shape=[3, 3], dilations=[2, 2]), "no max pool with dilation"),
        (lambda net: net("LayerNormalization", conv(5)(net), net.normal(6)), "computed in float"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    net = Net()
    module = net.module(make(net))
    with pytest.raises(ModelError, match=message):
        export_tflite(module)


def test_refused_options() -> None:
    net = Net()
    output = dense(net)
    with pytest.raises(ModelError, match=r"the rule \{.op.: .dense., .per_channel.: false\}"):
        export_tflite(net.module(output), per_channel_dense=False)
    with pytest.raises(RecipeError, match="io='uint8' was asked for, the module has int8"):
        export_tflite(net.module(output, "int8"), io="uint8")
    with pytest.raises(RecipeError, match="the model computes in float"):
        export_tflite(frontend.load(demo.model_path()), io="int8")


def test_the_demo(litert: Any) -> None:
    module = quantize_module(frontend.load(demo.model_path()), calibration=demo.calibration()[:20, None])
    run = compile_function(module)
    images = demo.evaluation()[0][:20, None]
    found = differing(litert, module, *([image] for image in images), every_layer=True)
    assert set(found.values()) == {0}, found
    for image in images[:5]:
        np.testing.assert_array_equal(run([image])[0], Simulator(module).run(image)[0])


QUICK = ("tiny_kws_dscnn", "tiny_ad_autoencoder")
SLOW = (
    "tiny_resnet8_cifar10 tiny_vww_mobilenetv1_025_96 mobilenet_v1_0.25_224 mobilenet_v1_0.75_224 "
    "mobilenet_v2_1.0_224 resnet20_cifar10 resnet56_cifar10 deeplabv3_mnv2_dm05_257 fastestdet_coco_352"
)
REAL = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW.split())]


@pytest.mark.parametrize("name", REAL)
def test_real_models(shared_data: Path, litert: Any, name: str) -> None:
    """The command that measures them all, with few samples."""
    script = Path(__file__).parents[2] / "scripts" / "tflite_equality.py"
    few = ("--samples", "2", "--dev", "20", "--calibration", "5", "--recipe", "edgetpu", "--json")
    done = subprocess.run([sys.executable, script, name, *few], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    row = json.loads(done.stdout)
    assert row["samples"] == 2 and row["compared"] > 0 and row["layers"] > 9
    assert (row["differs_from_oracle"], row["differs_from_so"], row["layers_that_differ"]) == (0, 0, [])
    assert row["converter_bytes"] is None or row["bytes"] <= row["converter_bytes"]


def test_random_graphs(litert: Any, random_graph: Any) -> None:
    assert nets.compare_random(litert, random_graph, range(40), 2) >= 20


@pytest.mark.slow
def test_random_graphs_at_length(litert: Any, random_graph: Any) -> None:
    assert nets.compare_random(litert, random_graph, range(40, 700), 2) >= 400
    assert nets.compare_random(litert, random_graph, range(300), None) >= 20
