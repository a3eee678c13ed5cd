"""Small ONNX models for every operator that can be exported, and a comparison of files with the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tvm import IRModule

from tvm_qplugin import frontend
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.exporter import export_tflite, exported
from tvm_qplugin.quantizer import quantize_module
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

    def times_sigmoid(self, x: str) -> str:
        return self("Mul", x, self("Sigmoid", x))

    def split(self, x: str, parts: int) -> list[str]:
        """Equal parts of the channels."""
        names = [f"t{len(self.nodes)}_{i}" for i in range(parts)]
        self.nodes.append(helper.make_node("Split", [x], names, axis=1, num_outputs=parts))
        return names

    def floats(self, output: str) -> IRModule:
        """The canonical float module."""

        def info(name: str, shape: Sequence[int] | None) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes, "net", [info("x", self.shape)], [info(output, None)], self.weights
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return frontend.load(model)

    def module(self, output: str, io: str = "float", recipe: str = "int8") -> IRModule:
        """The net quantized for three samples."""
        calibration = [self.sample(seed) for seed in range(3)]
        return quantize_module(self.floats(output), recipe=recipe, calibration=calibration, io=io)

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


def attention(net: Net) -> str:
    """Softmax of products of every two rows, and the rows so weighted."""
    x = net("Reshape", net("MaxPool", "x", kernel_shape=[3, 2], strides=[3, 2]), net.ints(1, 6, 3, 4))
    rows = [net("MatMul", x, net.normal(4, 8)) for _ in range(3)]
    scores = net("MatMul", rows[0], net("Transpose", rows[1], perm=[0, 1, 3, 2]))
    return net("MatMul", net("Softmax", scores), rows[2])


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
    "maximum": lambda net: net("Max", conv(6, pads=[1] * 4)(net), "x"),
    "minimum relu": lambda net: net("Relu", net("Min", conv(6, pads=[1] * 4)(net), "x")),
    "maximum broadcast": lambda net: net("Max", "x", net("GlobalAveragePool", conv(6)(net))),
    "minimum of a constant": lambda net: net("Min", conv(6)(net), net.normal(6, 1, 1)),
    "divide by constants": lambda net: net(
        "Div", conv(6)(net), net.weight(np.float32([[[0.5]], [[-3]]] * 3))
    ),
    "dense": dense,
    "dense relu softmax": lambda net: net("Softmax", net("Relu", dense(net))),
    "softmax channels": lambda net: net("Softmax", conv(5)(net), axis=1),
    "max pool": lambda net: net("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max pool, counted from below": lambda net: net(
        "MaxPool", conv(5, pads=[1] * 4)(net), kernel_shape=[4, 3], strides=[3, 1], pads=[2, 1, 0, 2]
    ),
    "max pool of positive": lambda net: net(
        "MaxPool", then(conv(5), "Relu")(net), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    ),
    "average pool": lambda net: net(
        "AveragePool", "x", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]
    ),
    "average pool, counted": lambda net: net(
        "AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "global average": lambda net: net("GlobalAveragePool", conv(6)(net)),
    "mean relu": lambda net: net("Relu", net("ReduceMean", "x", net.ints(2, 3), keepdims=0)),
    "sum": lambda net: net("ReduceSum", conv(5)(net), net.ints(2, 3), keepdims=0),
    "sum of channels": lambda net: net("ReduceSum", conv(5)(net), net.ints(1)),
    "largest": lambda net: net("ReduceMax", conv(5)(net), net.ints(1, 3), keepdims=0),
    "smallest": lambda net: net("ReduceMin", conv(5)(net), net.ints(2, 3)),
    "pad with a number": lambda net: net(
        "Pad", conv(6)(net), net.ints(0, 0, 1, 2, 0, 0, 0, 1), net.weight(np.float32(0.3))
    ),
    "pad": lambda net: net("Pad", conv(6)(net), net.ints(0, 0, 1, 2, 0, 0, 0, 1)),
    "conv of a slice": lambda net: net(
        "Conv",
        net("Slice", "x", net.ints(1, 1), net.ints(5, 8), net.ints(2, 3)),
        net.normal(7, 6, 3, 3),
        net.normal(7),
    ),
    "conv of a padded input": lambda net: net(
        "Conv",
        net("Pad", "x", net.ints(0, 0, 0, 0, 0, 0, 1, 1)),
        net.normal(7, 6, 3, 3),
        net.normal(7),
        strides=[2, 2],
    ),
    "dense of the input": lambda net: net("Gemm", net("Flatten", "x"), net.normal(432, 5), net.normal(5)),
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


def compare_random(
    litert: Any, random_graph: Any, seeds: Sequence[int], steps: int | None, recipe: str = "int8"
) -> int:
    """How many of the graphs could be exported; all of them give the oracle's integers."""
    count = 0
    for seed in seeds:
        model, graph = random_graph(seed, steps)
        values = np.random.default_rng(7)
        samples = [
            [values.normal(size=shape).astype("float32") for shape in graph.inputs.values()] for _ in range(4)
        ]
        module = quantize_module(frontend.load(model), recipe=recipe, calibration=samples[:3])
        try:
            export_tflite(module)
        except ModelError:
            continue
        count += 1
        assert set(differing(litert, module, *samples[2:]).values()) == {0}, seed
    return count
