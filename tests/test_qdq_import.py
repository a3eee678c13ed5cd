"""Models that come quantized: onnxruntime's and PyTorch's QDQ patterns become integer kernels as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.simulator import simulate

RNG = np.random.default_rng(0)
NODE = helper.make_node
IMAGE = (1, 3, 12, 12)


def normal(*shape: int) -> Array:
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype("float32")


def model_of(nodes: Sequence[onnx.NodeProto], weights: dict[str, Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, IMAGE)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def conv(x: str, y: str, weight: str, **attrs: Any) -> onnx.NodeProto:
    return NODE("Conv", [x, weight, f"{weight}_bias"], [y], **attrs)


def weights_of(**shapes: tuple[int, ...]) -> dict[str, Array]:
    """A weight and a bias for every name."""
    weights = {name: normal(*shape) for name, shape in shapes.items()}
    return weights | {f"{name}_bias": 0.1 * normal(shape[0], 1)[:, 0] for name, shape in shapes.items()}


def residual() -> onnx.ModelProto:
    nodes = [
        conv("x", "a", "w", pads=[1] * 4),
        NODE("Relu", ["a"], ["b"]),
        conv("b", "c", "v", pads=[1] * 4, group=8),
        NODE("Add", ["c", "b"], ["d"]),
        NODE("Relu", ["d"], ["y"]),
    ]
    return model_of(nodes, weights_of(w=(8, 3, 3, 3), v=(8, 1, 3, 3)))


def classifier() -> onnx.ModelProto:
    nodes = [
        conv("x", "a", "w"),
        conv("x", "b", "v", pads=[1, 1, 0, 0], dilations=[1, 1], kernel_shape=[2, 2]),
        NODE("MaxPool", ["b"], ["b2"], kernel_shape=[3, 3]),
        NODE("Concat", ["a", "b2"], ["c"], axis=1),
        NODE("AveragePool", ["c"], ["d"], kernel_shape=[2, 2], strides=[2, 2]),
        NODE("GlobalAveragePool", ["d"], ["e"]),
        NODE("Flatten", ["e"], ["f"]),
        NODE("Gemm", ["f", "g", "g_bias"], ["y"], transB=1),
    ]
    return model_of(nodes, weights_of(w=(8, 3, 3, 3), v=(4, 3, 2, 2), g=(10, 12)))


def gated() -> onnx.ModelProto:
    nodes = [
        conv("x", "a", "w", strides=[2, 2]),
        NODE("Sigmoid", ["a"], ["s"]),
        NODE("Mul", ["a", "s"], ["b"]),
        NODE("Flatten", ["b"], ["f"]),
        NODE("MatMul", ["f", "g"], ["m"]),
        NODE("Softmax", ["m"], ["y"], axis=-1),
    ]
    return model_of(nodes, {**weights_of(w=(8, 3, 3, 3)), "g": normal(200, 10) * 10})


class Samples:
    """onnxruntime's calibration data reader."""

    def __init__(self) -> None:
        self.samples: Iterator[dict[str, Array]] = iter([{"x": image(seed)} for seed in range(4)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.samples, None)


def image(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=IMAGE).astype("float32")


def quantized_by_ort(folder: Path, model: onnx.ModelProto, **options: Any) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    onnx.save(model, folder / "float.onnx")
    kinds = {key: QuantType[options.pop(key)] for key in ("activation_type", "weight_type")}
    quantize_static(
        str(folder / "float.onnx"),
        str(folder / "qdq.onnx"),
        Samples(),
        quant_format=QuantFormat.QDQ,
        **kinds,
        **options,
    )
    return folder / "qdq.onnx"


def compare(path: Path, lsb: float = 1.0, islands: Sequence[str] = ()) -> None:
    """Integer kernels throughout, the oracle's integers, and onnxruntime's within ``lsb`` steps.

    More than one step where several operators follow a pool or mean: LiteRT rounds their ties
    otherwise than onnxruntime.
    """
    module = quantize(path)
    artifact = build(module)
    assert [op.op for op in artifact.manifest.operators if not op.integer] == list(islands)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options)
    for seed in range(10, 14):
        (real,) = artifact.run(image(seed))
        np.testing.assert_array_equal(real, simulate(module, image(seed))[0])
        (wanted,) = session.run(None, {"x": image(seed)})
        np.testing.assert_allclose(real, wanted, atol=lsb * output_scale(path) * 1.001, rtol=0)


def output_scale(path: Path) -> float:
    graph = onnx.load(path).graph
    known = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    last = next(node for node in graph.node if node.output[0] == "y")
    return float(known[last.input[1]].reshape(-1)[0])


@pytest.mark.parametrize("activation", ["QUInt8", "QInt8"])
@pytest.mark.parametrize("make", [residual, classifier, gated])
def test_onnxruntime(tmp_path: Path, make: Any, activation: str) -> None:
    path = quantized_by_ort(
        tmp_path, make(), activation_type=activation, weight_type="QInt8", per_channel=True
    )
    compare(path, lsb=2.0 if make is classifier else 1.0)


def test_onnxruntime_per_tensor(tmp_path: Path) -> None:
    compare(quantized_by_ort(tmp_path, classifier(), activation_type="QInt8", weight_type="QInt8"), lsb=2.0)


def test_onnxruntime_unsigned_weights_with_zero_point_128(tmp_path: Path) -> None:
    options = {"ActivationSymmetric": False, "WeightSymmetric": True}
    compare(
        quantized_by_ort(
            tmp_path, residual(), activation_type="QUInt8", weight_type="QUInt8", extra_options=options
        )
    )


class Builder:
    """A QDQ graph as PyTorch's exporter writes it: fake quantization of everything, also of weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Any] = {}

    def fake(
        self, x: str, scale: float | Array, zero_point: int = 0, dtype: str = "int8", axis: int = 1
    ) -> str:
        name = f"{x}_{len(self.nodes)}"
        self.weights[f"{name}_s"] = np.asarray(scale, "float32")
        self.weights[f"{name}_z"] = np.full(np.shape(scale), zero_point, dtype)
        grid = [f"{name}_s", f"{name}_z"]
        self.nodes.append(NODE("QuantizeLinear", [x, *grid], [f"{name}_q"], axis=axis))
        self.nodes.append(NODE("DequantizeLinear", [f"{name}_q", *grid], [f"{name}_dq"], axis=axis))
        return f"{name}_dq"

    def add(self, kind: str, inputs: Sequence[str], **attrs: Any) -> str:
        self.nodes.append(NODE(kind, list(inputs), [f"t{len(self.nodes)}"], **attrs))
        return str(self.nodes[-1].output[0])

    def weight(self, *shape: int) -> tuple[str, str]:
        """A float weight under fake quantization, and a float bias."""
        name = f"w{len(self.weights)}"
        self.weights[name] = normal(*shape)
        bound = np.abs(self.weights[name]).max(axis=tuple(range(1, len(shape)))) / 127
        self.weights[f"{name}_b"] = normal(shape[0], 1)[:, 0] / 5
        return self.fake(name, bound.astype("float32"), axis=0), f"{name}_b"

    def save(self, path: Path, result: str) -> Path:
        self.nodes[-1].output[0] = "y"
        onnx.save(model_of(self.nodes, self.weights), path)
        return path


def test_pytorch_fake_quantized_weights_and_float_bias(tmp_path: Path) -> None:
    b = Builder()
    x = b.fake("x", 0.03, 3)
    y = b.fake(b.add("Relu", [b.add("Conv", [x, *b.weight(8, 3, 3, 3)])]), 0.02, -128)
    y = b.fake(b.add("Conv", [y, *b.weight(8, 1, 3, 3)], group=8), 0.02, 0)
    y = b.fake(b.add("Gemm", [b.add("Flatten", [y]), *b.weight(10, 512)], transB=1), 0.02, 0)
    compare(b.save(tmp_path / "m.onnx", y))


def test_relu_between_two_grids(tmp_path: Path) -> None:
    b = Builder()
    y = b.fake(b.add("Conv", [b.fake("x", 0.03, 3), *b.weight(8, 3, 3, 3)]), 0.02, 5)
    compare(b.save(tmp_path / "m.onnx", b.fake(b.add("Relu", [y]), 0.01, -128)))


def test_shared_dequantize_and_unquantized_relu(tmp_path: Path) -> None:
    b = Builder()
    x = b.fake("x", 0.03, 130, "uint8")
    first = b.fake(b.add("Conv", [x, *b.weight(3, 3, 1, 1)]), 0.02, 128, "uint8")
    y = b.fake(b.add("Relu", [b.add("Add", [first, x])]), 0.03, 0, "uint8")
    compare(b.save(tmp_path / "m.onnx", b.fake(b.add("MaxPool", [y], kernel_shape=[2, 2]), 0.03, 0, "uint8")))


def test_resize_and_softmax_take_no_clamp_along(tmp_path: Path) -> None:
    b = Builder()
    b.weights["size"] = np.asarray([1, 3, 24, 24])
    wide = b.add("Resize", [b.fake("x", 0.03, 3), "", "", "size"], mode="linear")
    y = b.fake(b.add("Relu", [wide]), 0.03, 3)
    compare(b.save(tmp_path / "m.onnx", y), islands=["resize2d", "nn.relu"])


def test_asymmetric_weights_stay_float_and_say_why(tmp_path: Path) -> None:
    b = Builder()
    b.weights["w"] = np.abs(normal(4, 3, 3, 3))
    weight = b.fake("w", float(b.weights["w"].max() / 255), 0, "uint8")
    y = b.fake(b.add("Conv", [b.fake("x", 0.03, 3), weight]), 0.05, 0)
    module = quantize(b.save(tmp_path / "m.onnx", y))
    (op,) = [op for op in build(module).manifest.operators if not op.integer]
    assert op.op == "conv2d" and "does not fit int8" in str(op.reason)
