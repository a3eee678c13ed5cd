"""Float32, float16 and dynamic-range files in LiteRT against the compiled model and the oracle."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import IRModule
from tvm.ir import assert_structural_equal

from tvm_qplugin import frontend
from tvm_qplugin.builder import build, compile_function
from tvm_qplugin.core import dynamic
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.exporter import export_tflite, exported
from tvm_qplugin.passes.expand_weights import ExpandWeights, scheme_of, stored_arguments
from tvm_qplugin.passes.float_layers import FloatLayer, layers_of
from tvm_qplugin.passes.quantize_dynamic import QuantizeDynamic
from tvm_qplugin.passes.quantize_float16 import QuantizeFloat16
from tvm_qplugin.quantizer import quantize_module
from tvm_qplugin.simulator import simulate
from tvm_qplugin.tflite.file import load

ROUNDING = 2e-6
"""How far float kernels of one layer may be apart, as a part of the largest element."""
SCHEMES: dict[str, list[tvm.transform.Pass]] = {
    "float": [],
    "fp16": [QuantizeFloat16(smallest=8)],
    "dynamic": [QuantizeDynamic(smallest=8)],
}


def _nets() -> Any:
    spec = importlib.util.spec_from_file_location("tflite_nets", Path(__file__).with_name("nets.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nets = _nets()
FLOAT_NETS = {
    **nets.NETS,
    "abs": nets.unary("Abs"),
    "pointwise, padded before": nets.conv(5, 1, pads=[1, 0, 2, 1]),
    "exp of negative": lambda net: net("Exp", net("Neg", nets.conv(5)(net))),
    "sin, cos": lambda net: net("Add", net("Sin", "x"), net("Cos", "x")),
    "log, sqrt": lambda net: net("Log", net("Sqrt", net("Exp", "x"))),
    "divide": lambda net: net("Div", "x", net("Exp", nets.conv(6, pads=[1] * 4)(net))),
    "divide by a number": lambda net: net("Div", "x", net.weight(np.float32(3))),
    "maximum": lambda net: net("Max", "x", nets.conv(6, pads=[1] * 4)(net)),
    "minimum": lambda net: net("Min", "x", nets.conv(6, pads=[1] * 4)(net)),
    "power": lambda net: net("Pow", net("Exp", "x"), net.weight(np.float32(1.5))),
    "swish": lambda net: net("Mul", "x", net("Sigmoid", "x")),
    "maximum over the image": lambda net: net("GlobalMaxPool", nets.conv(6)(net)),
    "sum": lambda net: net("ReduceSum", "x", net.ints(1), keepdims=0),
    "pad with a number": lambda net: net(
        "Pad", "x", net.ints(0, 0, 1, 2, 0, 0, 0, 1), net.weight(np.float32(0.5))
    ),
    "rms norm": lambda net: rms_norm(net),
    "hard swish, read twice": lambda net: net("Add", net("HardSwish", "x"), "x"),
    "split": lambda net: net("Concat", *parts(net), axis=1),
}


def rms_norm(net: Any) -> str:
    """Rows by the root of the mean of their squares, as torch's exporter writes it."""
    mean = net("ReduceMean", net("Pow", "x", net.weight(np.float32(2))), net.ints(3), keepdims=1)
    normal = net("Div", "x", net("Sqrt", net("Add", mean, net.weight(np.float32(0.25)))))
    return str(net("Mul", normal, net.weight(np.linspace(0.5, 2, net.shape[3], dtype="float32"))))


def parts(net: Any) -> list[str]:
    """The second part of the channels before the first."""
    first = net("Split", nets.conv(6, pads=[1] * 4)(net), net.ints(2, 4), axis=1)
    net.nodes[-1].output.append(f"{first}_rest")
    return [f"{first}_rest", first]


def module_of(net: Any, make: Any, scheme: str) -> IRModule:
    return tvm.transform.Sequential(SCHEMES[scheme])(net.floats(make(net)))


def apart(found: Array, wanted: Array) -> float:
    """The largest difference as a part of the largest element."""
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def in_file(array: Array, nhwc: bool) -> Array:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if nhwc else array


def run(litert: Any, made: Any, x: Array) -> Array:
    found: Array = litert.run(made.data, in_file(x, made.nhwc_inputs[0])).outputs[0]
    return found.transpose(0, 3, 1, 2) if made.nhwc_outputs[0] else found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", FLOAT_NETS)
def test_an_operator(litert: Any, name: str, scheme: str) -> None:
    net = nets.Net()
    module = module_of(net, FLOAT_NETS[name], scheme)
    reference = simulate if scheme == "dynamic" else lambda m, x: compile_function(m)([x])
    for keep_layout in (False, True):
        made = exported(module, keep_layout=keep_layout)
        x = net.sample(3)
        assert apart(run(litert, made, x), reference(module, x)[0]) <= ROUNDING


@pytest.mark.parametrize(("scheme", "most"), [("float", ROUNDING), ("fp16", ROUNDING), ("dynamic", 0.05)])
def test_products_of_two_tensors(litert: Any, scheme: str, most: float) -> None:
    """LiteRT computes them in float, also where ``build`` quantizes both operands at run time."""
    net = nets.Net()
    module = module_of(net, nets.attention, scheme)
    made, x = exported(module), net.sample(3)
    assert [op.name for op in load(made.data).operators].count("BATCH_MATMUL") == 2
    wanted = simulate(module, x)[0] if scheme == "dynamic" else compile_function(module)([x])[0]
    assert apart(run(litert, made, x), wanted) <= most


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", FLOAT_NETS)
def test_round_trip(litert: Any, name: str, scheme: str) -> None:
    net = nets.Net()
    module = module_of(net, FLOAT_NETS[name], scheme)
    first = frontend.load(export_tflite(module, keep_layout=True))
    assert len(stored_arguments(first)) == len(stored_arguments(module))
    assert scheme_of(first) == (scheme_of(module) if stored_arguments(module) else "")
    data = export_tflite(first, keep_layout=True)
    again = frontend.load(data)
    assert_structural_equal(again["main"], first["main"])
    assert export_tflite(again, keep_layout=True) == data


def test_what_the_files_hold(litert: Any) -> None:
    def kinds(scheme: str, name: str) -> tuple[dict[str, int], list[tuple[str, int]]]:
        net = nets.Net()
        made = load(exported(module_of(net, FLOAT_NETS[name], scheme)).data)
        used = [made.tensors[op.inputs[1]].dtype for op in made.operators if "CONV" in op.name]
        used += [made.tensors[op.inputs[1]].dtype for op in made.operators if "FULLY" in op.name]
        return used, [(op.name, op.version) for op in made.operators]

    assert kinds("float", "relu6") == (["float32"], [("CONV_2D", 1)])
    assert kinds("fp16", "conv dilated")[1] == [("DEQUANTIZE", 3), ("CONV_2D", 1)]
    assert kinds("dynamic", "conv same") == (["int8"], [("CONV_2D", 5)])
    assert kinds("dynamic", "conv grouped") == (["int8"], [("CONV_2D", 6)])
    assert kinds("dynamic", "depthwise") == (["int8"], [("DEPTHWISE_CONV_2D", 6)])
    assert kinds("dynamic", "dense")[1][-1] == ("FULLY_CONNECTED", 12)
    assert kinds("float", "hard swish")[1] == [("CONV_2D", 1), ("HARD_SWISH", 1)]
    assert kinds("float", "hard swish, read twice")[1] == [("HARD_SWISH", 1), ("ADD", 1)]


def test_one_scale_for_a_weight(litert: Any) -> None:
    net = nets.Net()
    recipe = Recipe("mine", "dynamic", per_channel=False)
    per_tensor = tvm.transform.Sequential([QuantizeDynamic(recipe, 8)])(net.floats(nets.dense(net)))
    made = exported(per_tensor, per_channel_dense=False)
    (weight,) = [tensor for tensor in load(made.data).tensors if tensor.dtype == "int8"]
    assert weight.quant is not None and weight.quant.axis is None
    assert apart(run(litert, made, net.sample(1)), simulate(per_tensor, net.sample(1))[0]) == 0
    with pytest.raises(ModelError, match="its weight has a scale for every output"):
        export_tflite(module_of(nets.Net(), nets.dense, "dynamic"), per_channel_dense=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nets.unary("Erf"), r"1 operators have no float32 operator in TFLite.*t1 \(erf\)"),
        (lambda net: net("LayerNormalization", nets.conv(5)(net), net.normal(6)), r"layer_norm"),
        (lambda net: net("Pad", "x", net.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), "t0 .*reflect"),
        (nets.resize("cubic", "half_pixel"), "t0 cannot be exported to .tflite: its method is cubic"),
        (
            lambda net: net("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
            "averages without its padding",
        ),
    ],
)
def test_refused(make: Any, message: str) -> None:
    net = nets.Net()
    with pytest.raises(ModelError, match=message):
        export_tflite(net.floats(make(net)))


def layer_inputs(module: IRModule) -> dict[str, FloatLayer]:
    """The layers of a dynamic module that quantize at run time, by the tensor that they make."""
    stored = stored_arguments(module)
    main = tvm.transform.Sequential([ExpandWeights()])(module)["main"]
    return {var.name: layer for var, layer in layers_of(main, stored).items() if layer.grid is not None}


QUICK = ("tiny_kws_dscnn", "tiny_ad_autoencoder")
SLOW = (
    "tiny_resnet8_cifar10 tiny_vww_mobilenetv1_025_96 mobilenet_v1_0.25_224 mobilenet_v1_0.75_224 "
    "mobilenet_v2_1.0_224 resnet20_cifar10 resnet56_cifar10 deeplabv3_mnv2_dm05_257 fastestdet_coco_352"
)
REAL = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW.split())]


@pytest.mark.parametrize("name", REAL)
def test_a_real_model(shared_data: Path, litert: Any, name: str) -> None:
    """Float32 and float16 files as compiled, to the rounding of many layers."""
    source = frontend.load(shared_data / "models" / f"{name}.onnx", input_layout="NHWC")
    shape = [int(extent) for extent in source["main"].params[0].ty.shape]
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")
    for module in (source, quantize_module(source, recipe="fp16")):
        found = litert.run(export_tflite(module, keep_layout=True), x).outputs
        for one, wanted in zip(found, build(module).run(x), strict=True):
            assert apart(one, wanted) <= 2e-5


@pytest.mark.parametrize("name", REAL)
def test_the_dynamic_layers_of_a_real_model(shared_data: Path, litert: Any, name: str) -> None:
    """Each on the very input that it has in LiteRT: the same floats."""
    source = frontend.load(shared_data / "models" / f"{name}.onnx", input_layout="NHWC")
    module = quantize_module(source, recipe="dynamic")
    layers, made = layer_inputs(module), exported(module, keep_layout=True, every_layer=True)
    shape = [int(extent) for extent in source["main"].params[0].ty.shape]
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")
    results = litert.run(made.data, x).outputs
    tensors = dict(zip([*made.outputs, *made.layers], results, strict=True))
    tensors |= {var.name: x for var in module["main"].params}
    assert layers
    for output, layer in layers.items():
        compute = dynamic.conv2d if layer.kernel == "fconv2d" else dynamic.dense
        assert layer.grid is not None
        given = tensors[layer.source.name]
        got = compute(layer.params, given, layer.weight, layer.grid.scale, layer.bias)
        np.testing.assert_array_equal(got, tensors[output], err_msg=output)


def compare_random(litert: Any, random_graph: Any, seeds: range, scheme: str) -> int:
    """How many graphs could be written; they give the compiled results, and are read back unchanged."""
    count = 0
    for seed in seeds:
        model, graph = random_graph(seed, 2)
        module = tvm.transform.Sequential(SCHEMES[scheme])(frontend.load(model))
        try:
            made = exported(module, keep_layout=True)
        except ModelError:
            continue
        count += 1
        rng = np.random.default_rng(7)
        arrays = [rng.normal(size=shape).astype("float32") for shape in graph.inputs.values()]
        wanted = simulate(module, *arrays) if scheme == "dynamic" else compile_function(module)(arrays)
        for one, other in zip(litert.run(made.data, *arrays).outputs, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max(), err_msg=str(seed))
        first = frontend.load(made.data)
        again = frontend.load(export_tflite(first, keep_layout=True))
        assert_structural_equal(again["main"], first["main"])
    return count


@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_graphs(litert: Any, random_graph: Any, scheme: str) -> None:
    assert compare_random(litert, random_graph, range(15), scheme) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_many_random_graphs(litert: Any, random_graph: Any, scheme: str) -> None:
    assert compare_random(litert, random_graph, range(15, 260), scheme) >= 180
