"""int16x8 files in LiteRT against the oracle and the compiled model: the same integers, exactly."""

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

from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.attrs import REPORT
from tvm_qplugin.core.errors import ModelError, RecipeError
from tvm_qplugin.exporter import export_tflite, exported
from tvm_qplugin.frontend import load
from tvm_qplugin.simulator import Simulator


def _nets() -> ModuleType:
    """Beside this file; not importable by name under ``--import-mode=importlib``."""
    spec = importlib.util.spec_from_file_location("tflite_nets", Path(__file__).with_name("nets.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nets = _nets()
FLOAT = ("gelu", "gelu tanh", "prelu", "prelu relu6", "prelu of rows")
"""What LiteRT does not compute in int16."""
NETS = {
    **{name: make for name, make in nets.NETS.items() if name not in FLOAT},
    "attention": nets.attention,
    "add of a number": lambda net: net("Add", nets.conv(5)(net), net.weight(np.float32(0.7))),
    "resize half way": nets.resize("linear", "asymmetric"),
    "resize nearest half": nets.resize("nearest", "half_pixel"),
    "sigmoid of tanh": lambda net: net("Sigmoid", net("Tanh", nets.conv(5)(net))),
    "squeeze and excite": lambda net: net(
        "Mul", "x", net("Sigmoid", net("Relu", net("GlobalAveragePool", nets.conv(6)(net))))
    ),
    "silu": lambda net: net.times_sigmoid(nets.conv(5)(net)),
    "divided by a number": lambda net: net("Div", nets.conv(5)(net), net.weight(np.float32(3))),
    "split": lambda net: net("Concat", *reversed(net.split(nets.conv(6)(net), 2)), axis=1),
}


def module_of(name: str, io: str = "float") -> tuple[Any, Any]:
    net = nets.Net()
    return net, net.module(NETS[name](net), io, "int16x8")


@pytest.mark.parametrize("name", NETS)
def test_every_layer(litert: Any, name: str) -> None:
    net, module = module_of(name)
    found = nets.differing(litert, module, [net.sample(3)], [net.sample(4)], every_layer=True)
    assert set(found.values()) == {0}, found
    assert set(nets.differing(litert, module, [net.sample(6)], keep_layout=True).values()) == {0}
    x = net.sample(5)
    np.testing.assert_array_equal(compile_function(module)([x])[0], Simulator(module).run(x)[0])


@pytest.mark.parametrize("name", NETS)
def test_read_back(litert: Any, name: str) -> None:
    """A file that is read computes the same integers, and is written again unchanged."""
    net, module = module_of(name, "int16")
    file, again = exported(module), load(export_tflite(module))
    codes = np.random.default_rng(0).integers(-32768, 32768, net.shape).astype("int16")
    image = nets.in_file(codes, file.nhwc_inputs[0])
    (wanted,), (found,) = litert.run(file.data, image).outputs, Simulator(again).run(image)
    np.testing.assert_array_equal(found, wanted, strict=True)
    report = json.loads(Simulator(again).module["main"].attrs[REPORT])
    assert all(op["integer"] for op in report), report
    assert sum(exported(again).operators.values()) == sum(file.operators.values())
    np.testing.assert_array_equal(litert.run(export_tflite(again), image).outputs[0], wanted)


@pytest.mark.parametrize("name", ["conv same", "dense relu softmax", "transpose", "concat"])
def test_integer_inputs_and_outputs(litert: Any, name: str) -> None:
    net, module = module_of(name)
    _, typed = module_of(name, "int16")
    assert exported(module, io="int16").data == exported(typed).data
    codes = np.random.default_rng(0).integers(-32768, 32768, (3, *net.shape)).astype("int16")
    found = nets.differing(litert, typed, *([image] for image in codes))
    assert set(found.values()) == {0}
    np.testing.assert_array_equal(compile_function(typed)([codes[0]])[0], Simulator(typed).run(codes[0])[0])


def test_the_tensors_of_the_file(litert: Any) -> None:
    _, module = module_of("dense")
    model = litert.schema.ModelT.InitFromPackedBuf(exported(module, io="int16").data)
    (graph,) = model.subgraphs
    types = {tensor.name.decode(): tensor.type for tensor in graph.tensors}
    kinds = litert.schema.TensorType
    by_suffix = {name.rpartition("_")[2]: kind for name, kind in types.items()}
    assert (by_suffix["weight"], by_suffix["bias"]) == (kinds.INT8, kinds.INT64)
    assert all(not t.quantization.zeroPoint.any() for t in graph.tensors if t.type == kinds.INT16)
    codes = {code.builtinCode: code.version for code in model.operatorCodes}
    assert codes == {
        litert.Builtin.MAX_POOL_2D: 3,
        litert.Builtin.RESHAPE: 1,
        litert.Builtin.FULLY_CONNECTED: 12,
    }


@pytest.mark.parametrize("name", FLOAT)
def test_refused(name: str) -> None:
    net = nets.Net()
    module = net.module(nets.NETS[name](net), recipe="int16x8")
    with pytest.raises(ModelError, match=r"no TFLite operator computes nn.gelu|LiteRT has no PRELU of int16"):
        export_tflite(module)


@pytest.mark.parametrize(("recipe", "io"), [("int16x8", "int8"), ("int16x8", "uint8"), ("int8", "int16")])
def test_the_width_of_inputs(recipe: str, io: str) -> None:
    net = nets.Net()
    output = nets.dense(net)
    other = "int16" if recipe == "int16x8" else "int8"
    with pytest.raises(RecipeError, match=f"io='{io}' was asked for.* use io='float' or io='{other}'"):
        net.module(output, io, recipe)


REAL = [
    "tiny_kws_dscnn",
    "tiny_ad_autoencoder",
    pytest.param("tiny_resnet8_cifar10", marks=pytest.mark.slow),
    pytest.param("resnet20_cifar10", marks=pytest.mark.slow),
    pytest.param("mobilenet_v2_1.0_224", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", REAL)
def test_real_models(shared_data: Path, litert: Any, name: str) -> None:
    """The command that measures them all, with few samples."""
    script = Path(__file__).parents[2] / "scripts" / "tflite_equality.py"
    few = ("--samples", "2", "--dev", "5", "--calibration", "5", "--recipe", "int16x8", "--json")
    done = subprocess.run([sys.executable, script, name, *few], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    row = json.loads(done.stdout)
    assert row["samples"] == 2 and row["compared"] > 0 and row["layers"] > 9
    assert (row["differs_from_oracle"], row["differs_from_so"], row["layers_that_differ"]) == (0, 0, [])


def test_random_graphs(litert: Any, random_graph: Any) -> None:
    assert nets.compare_random(litert, random_graph, range(24), 2, "int16x8") >= 12


@pytest.mark.slow
def test_random_graphs_at_length(litert: Any, random_graph: Any) -> None:
    assert nets.compare_random(litert, random_graph, range(24, 400), 2, "int16x8") >= 180
