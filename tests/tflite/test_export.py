"""Exported files in LiteRT against the oracle and the compiled model: the same integers, exactly."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tvm import IRModule

from tvm_qplugin import demo, frontend
from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.errors import ModelError, RecipeError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.exporter import export_tflite, exported
from tvm_qplugin.pipeline import quantize_module
from tvm_qplugin.simulator import Simulator

Make = Callable[["Net"], str]


class Net:
    """A small ONNX graph on one image of 1 x 6 x 9 x 8 (NCHW)."""

    def __init__(self, shape: tuple[int, ...] = (1, 6, 9, 8)) -> None:
        self.shape, self.rng = shape, np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def normal(self, *shape: int, scale: float = 0.3) -> str:
        return self.weight((self.rng.normal(size=shape) * scale).astype("float32"))

    def weight(self, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def ints(self, *values: int) -> str:
        return self.weight(np.asarray(values, "int64"))

    def __call__(self, kind: str, *inputs: str, **attrs: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attrs))
        return name

    def module(self, output: str, io: str = "float") -> IRModule:
        def info(name: str, shape: Sequence[int] | None) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes, "net", [info("x", self.shape)], [info(output, None)], self.weights
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        calibration = [self.sample(seed) for seed in range(3)]
        return quantize_module(frontend.load(model), calibration=calibration, io=io)

    def sample(self, seed: int) -> Array:
        return np.random.default_rng(seed).normal(size=self.shape).astype("float32")


def conv(out: int, kernel: int = 3, groups: int = 1, channels: int = 6, **attrs: Any) -> Make:
    def make(net: Net) -> str:
        weight = net.normal(out, channels // groups, kernel, kernel)
        return net("Conv", "x", weight, net.normal(out), group=groups, **attrs)

    return make


def then(make: Make, kind: str, *bounds: float) -> Make:
    return lambda net: net(kind, make(net), *(net.weight(np.float32(bound)) for bound in bounds))


def unary(kind: str, **attrs: Any) -> Make:
    return lambda net: net(kind, conv(5)(net), **attrs)


def resize(mode: str, coordinate: str, rounding: str = "round_prefer_ceil") -> Make:
    def make(net: Net) -> str:
        sizes = net.ints(1, 6, 14, 17)
        names = {"mode": mode, "coordinate_transformation_mode": coordinate, "nearest_mode": rounding}
        return net("Resize", "x", "", "", sizes, **names)

    return make


def matrix(net: Net) -> str:
    return net("Flatten", net("MaxPool", "x", kernel_shape=[3, 2], strides=[3, 2]))


def dense(net: Net) -> str:
    return net("Gemm", matrix(net), net.normal(72, 10), net.normal(10))


NETS: dict[str, Make] = {
    "conv valid": conv(7),
    "conv same": conv(7, pads=[1, 1, 1, 1]),
    "conv stride, padded before": conv(7, strides=[2, 2], pads=[1, 1, 1, 1]),
    "conv dilated": conv(7, dilations=[2, 2], pads=[2, 2, 2, 2]),
    "conv 1x1": conv(16, 1),
    "conv grouped": conv(8, groups=2, pads=[1, 1, 1, 1]),
    "depthwise": conv(6, groups=6, pads=[1, 1, 1, 1]),
    "depthwise, multiplier 2": conv(12, groups=6),
    "relu": then(conv(7), "Relu"),
    "relu6": then(conv(7), "Clip", 0.0, 6.0),
    "relu -1 to 1": then(conv(7), "Clip", -1.0, 1.0),
    "clip": then(conv(7), "Clip", -0.5, 0.75),
    "clip above": then(conv(7), "Clip", -0.25, 1e9),
    "relu alone": lambda net: net("Relu", net("MaxPool", "x", kernel_shape=[2, 2])),
    "clip alone": lambda net: net("Clip", "x", net.weight(np.float32(-0.5)), net.weight(np.float32(1))),
    "clip -1 to 1 alone": lambda net: net(
        "Clip", net("MaxPool", "x", kernel_shape=[2, 2]), *(net.weight(np.float32(b)) for b in (-1, 1))
    ),
    "prelu": lambda net: net("PRelu", conv(5)(net), net.normal(5, 1, 1)),
    "prelu relu6": lambda net: net(
        "Clip",
        net("PRelu", conv(5)(net), net.normal(1, 5, 1, 1)),
        *(net.weight(np.float32(b)) for b in (0, 6)),
    ),
    "prelu of rows": lambda net: net("PRelu", dense(net), net.normal(10)),
    "add": lambda net: net("Add", conv(6, pads=[1] * 4)(net), "x"),
    "add relu": lambda net: net("Relu", net("Add", conv(6, pads=[1] * 4)(net), "x")),
    "sub": lambda net: net("Sub", conv(6, pads=[1] * 4)(net), "x"),
    "mul": lambda net: net("Mul", conv(6, pads=[1] * 4)(net), "x"),
    "mul broadcast": lambda net: net("Mul", "x", net("GlobalAveragePool", conv(6)(net))),
    "add constant": lambda net: net(
        "Add", net("Sub", "x", conv(6, pads=[1] * 4)(net)), net.normal(1, 6, 9, 8)
    ),
    "dense": dense,
    "dense relu softmax": lambda net: net("Softmax", net("Relu", dense(net))),
    "softmax channels": lambda net: net("Softmax", conv(5)(net), axis=1),
    "max pool": lambda net: net("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average pool": lambda net: net(
        "AveragePool", "x", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]
    ),
    "average pool, counted": lambda net: net(
        "AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "global average": lambda net: net("GlobalAveragePool", conv(6)(net)),
    "mean relu": lambda net: net("Relu", net("ReduceMean", "x", net.ints(2, 3), keepdims=0)),
    "pad": lambda net: net("Pad", conv(6)(net), net.ints(0, 0, 1, 2, 0, 0, 0, 1)),
    "concat": lambda net: net("Concat", conv(5, pads=[1] * 4)(net), "x", axis=1),
    "slice": lambda net: net(
        "Slice", conv(6)(net), net.ints(1, 0), net.ints(7, 6), net.ints(2, 1), net.ints(2, 2)
    ),
    "slice backwards": lambda net: net(
        "Slice", conv(6)(net), net.ints(-1), net.ints(-(2**31)), net.ints(2), net.ints(-1)
    ),
    "gather": lambda net: net("Gather", conv(6)(net), net.ints(4, 0, 5), axis=1),
    "transpose": lambda net: net("Transpose", conv(5)(net), perm=[0, 2, 1, 3]),
    "reshape": lambda net: net("Reshape", conv(4)(net), net.ints(1, 7, 24)),
    "resize bilinear": resize("linear", "half_pixel"),
    "resize corners": resize("linear", "align_corners"),
    "resize nearest": resize("nearest", "asymmetric", "floor"),
    "sigmoid": unary("Sigmoid"),
    "tanh": unary("Tanh"),
    "exp": unary("Exp"),
    "gelu": unary("Gelu"),
    "gelu tanh": unary("Gelu", approximate="tanh"),
    "hard swish": unary("HardSwish"),
    "leaky relu": unary("LeakyRelu", alpha=0.1),
}


def differing(litert: Any, module: IRModule, *samples: Sequence[Array], **options: Any) -> dict[str, int]:
    """Elements by tensor in which LiteRT and the oracle differ; the outputs stand first."""
    made, oracle = exported(module, **options), Simulator(module)
    total: dict[str, int] = {}
    for arrays in samples:
        results = litert.run(made.data, *map(in_file, arrays, made.nhwc_inputs)).outputs
        wanted = list(map(in_file, oracle.run(*arrays), made.nhwc_outputs))
        found = dict(zip([f"output {i}" for i in range(len(wanted))], wanted, strict=True))
        if made.layers:
            tensors = oracle.tensors(*arrays)
            found |= {name: tensors[name] for name in made.layers}
        for (name, a), b in zip(found.items(), results, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            total[name] = total.get(name, 0) + int((a != b).sum())
    return total


def in_file(array: Array, nhwc: bool) -> Array:
    """An input or output in the layout of the file."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if nhwc else array


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
def test_refused(make: Make, message: str) -> None:
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
    with pytest.raises(ModelError, match="the model is in float"):
        export_tflite(frontend.load(demo.model_path()))


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
    few = ("--samples", "2", "--dev", "20", "--calibration", "5", "--dense-per-tensor", "--json")
    done = subprocess.run([sys.executable, script, name, *few], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    row = json.loads(done.stdout)
    assert row["samples"] == 2 and row["compared"] > 0 and row["layers"] > 9
    assert (row["differs_from_oracle"], row["differs_from_so"], row["layers_that_differ"]) == (0, 0, [])
    assert row["converter_bytes"] is None or row["bytes"] <= row["converter_bytes"]


@pytest.fixture(scope="session")
def random_graph() -> Any:
    """The generator of ``tests/random_graphs``."""
    path = Path(__file__).parent.parent / "random_graphs" / "conftest.py"
    spec = importlib.util.spec_from_file_location("random_graphs_for_export", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.random_graph


def compare_random(litert: Any, random_graph: Any, seeds: Sequence[int], steps: int | None) -> int:
    """How many of the graphs could be exported; all of them give the oracle's integers."""
    count = 0
    for seed in seeds:
        model, graph = random_graph(seed, steps)
        values = np.random.default_rng(7)
        samples = [
            [values.normal(size=shape).astype("float32") for shape in graph.inputs.values()] for _ in range(4)
        ]
        module = quantize_module(frontend.load(model), calibration=samples[:3])
        try:
            export_tflite(module)
        except ModelError:
            continue
        count += 1
        assert set(differing(litert, module, *samples[2:]).values()) == {0}, seed
    return count


def test_random_graphs(litert: Any, random_graph: Any) -> None:
    assert compare_random(litert, random_graph, range(40), 2) >= 20


@pytest.mark.slow
def test_random_graphs_at_length(litert: Any, random_graph: Any) -> None:
    assert compare_random(litert, random_graph, range(40, 700), 2) >= 400
    assert compare_random(litert, random_graph, range(300), None) >= 20
