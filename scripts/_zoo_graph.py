"""Building an ONNX graph layer by layer, with random weights and batch norms that fit them.

Every tensor carries the mean square that its channels are expected to have. Batch norms store it as their
variance, with mean 0: activations neither vanish nor explode, however deep the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
Floats = NDArray[np.float64]
MAX_POOL_GAIN = 2.0  # what the largest of a few alike neighbours adds to the mean square


@dataclass(frozen=True)
class Tensor:
    """A name, its shape (NCHW), and the expected mean square of each channel [C]."""

    name: str
    shape: tuple[int, ...]
    square: Floats


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis, (before, after)."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Graph:
    """An ONNX graph that grows; ``seed`` decides all weights. ``macs`` counts multiply-adds."""

    def __init__(self, name: str, size: int, seed: int) -> None:
        self.name = name
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self.macs = 0
        self.input = Tensor("input", (1, 3, size, size), np.full(3, 1 / 3))

    def conv(
        self,
        x: Tensor,
        channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        *,
        padding: str | int = "SAME",
        groups: int = 1,
        bias: bool = False,
    ) -> Tensor:
        """Convolution with He's initialization; ``padding``: "SAME", "VALID" or one number."""
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        fan_in = x.shape[1] // groups * kh * kw
        weight = self._normal((channels, x.shape[1] // groups, kh, kw), math.sqrt(2 / fan_in))
        offset = self._normal((channels,), 0.1) if bias else np.zeros(channels)
        pads, size = _window(x, (kh, kw), stride, padding)
        self.macs += weight.size * math.prod(size)
        name = self._add(
            "Conv",
            [x.name, *self._constants(*([weight, offset] if bias else [weight]))],
            kernel_shape=[kh, kw],
            strides=[stride, stride],
            pads=pads,
            group=groups,
        )
        before = x.square.reshape(groups, -1)[np.arange(channels) * groups // channels]
        square = (np.square(weight, dtype="float64").sum((2, 3)) * before).sum(1) + np.square(offset)
        return Tensor(name, (1, channels, *size), square)

    def batch_norm(self, x: Tensor) -> Tensor:
        """Batch norm that gives every channel a mean square of about 1."""
        channels = x.shape[1]
        gamma = self._rng.uniform(0.8, 1.2, channels)
        beta = self._normal((channels,), 0.1).astype("float64")
        name = self._add(
            "BatchNormalization",
            [x.name, *self._constants(gamma, beta, np.zeros(channels), x.square)],
            epsilon=1e-3,
        )
        return Tensor(name, x.shape, np.square(gamma) + np.square(beta))

    def relu(self, x: Tensor, most: float | None = None) -> Tensor:
        """Relu, or with ``most`` relu up to there."""
        if most is None:
            name = self._add("Relu", [x.name])
        else:
            name = self._add("Clip", [x.name, *self._constants(np.array(0.0), np.array(most))])
        return Tensor(name, x.shape, x.square / 2)

    def max_pool(self, x: Tensor, kernel: int, stride: int, padding: str = "SAME") -> Tensor:
        """Largest of 3x3, or with ``kernel`` 1 every ``stride``-th pixel."""
        name, size = self._pool("MaxPool", x, kernel, stride, padding)
        return Tensor(name, size, x.square * (MAX_POOL_GAIN if kernel > 1 else 1))

    def average_pool(self, x: Tensor, kernel: int, stride: int = 1, padding: str = "SAME") -> Tensor:
        """Mean of a window, without the padding."""
        name, size = self._pool("AveragePool", x, kernel, stride, padding)
        return Tensor(name, size, x.square)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """Sum of two tensors."""
        return Tensor(self._add("Add", [a.name, b.name]), a.shape, a.square + b.square)

    def concat(self, parts: list[Tensor]) -> Tensor:
        """Tensors side by side in the channels."""
        shape = (1, sum(part.shape[1] for part in parts), *parts[0].shape[2:])
        name = self._add("Concat", [part.name for part in parts], axis=1)
        return Tensor(name, shape, np.concatenate([part.square for part in parts]))

    def classifier(self, x: Tensor, classes: int) -> onnx.ModelProto:
        """Global mean, a dense layer, and the finished model: logits [1, classes]; its property: ``macs``."""
        pooled = self._add("Flatten", [self._add("GlobalAveragePool", [x.name])], axis=1)
        features = x.shape[1]
        scale = 2 / math.sqrt(float(x.square.sum()))
        weight, offset = self._normal((classes, features), scale), self._normal((classes,), 0.1)
        self.macs += weight.size
        logits = self._add("Gemm", [pooled, *self._constants(weight, offset)], output="logits", transB=1)
        return self._model(logits, classes)

    def _model(self, logits: str, classes: int) -> onnx.ModelProto:
        given = helper.make_tensor_value_info(self.input.name, TensorProto.FLOAT, self.input.shape)
        found = helper.make_tensor_value_info(logits, TensorProto.FLOAT, (1, classes))
        graph = helper.make_graph(self._nodes, self.name, [given], [found], self._weights)
        imports = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, producer_name="model_zoo", opset_imports=imports, ir_version=8)
        helper.set_model_props(model, {"macs": str(self.macs)})
        model.doc_string = "Random weights; made by scripts/model_zoo.py"
        return model

    def _pool(
        self, operator: str, x: Tensor, kernel: int, stride: int, padding: str
    ) -> tuple[str, tuple[int, ...]]:
        pads, size = _window(x, (kernel, kernel), stride, padding)
        name = self._add(operator, [x.name], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
        return name, (*x.shape[:2], *size)

    def _add(self, operator: str, inputs: list[str], output: str = "", **attrs: object) -> str:
        name = output or f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attrs))
        return name

    def _constants(self, *values: NDArray[np.floating]) -> list[str]:
        names = [f"weight_{len(self._weights) + i}" for i in range(len(values))]
        for name, value in zip(names, values, strict=True):
            self._weights.append(numpy_helper.from_array(np.asarray(value, "float32"), name))
        return names

    def _normal(self, shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
        return self._rng.standard_normal(shape, "float32") * np.float32(deviation)


def _window(
    x: Tensor, kernel: tuple[int, int], stride: int, padding: str | int
) -> tuple[list[int], tuple[int, int]]:
    """ONNX's pads and the size of the result."""
    if isinstance(padding, int):
        each = [(padding, padding)] * 2
    elif padding == "SAME":
        each = [same(size, k, stride) for size, k in zip(x.shape[2:], kernel, strict=True)]
    else:
        each = [(0, 0)] * 2
    height, width = (
        (size + sum(pad) - k) // stride + 1 for size, pad, k in zip(x.shape[2:], each, kernel, strict=True)
    )
    return [each[0][0], each[1][0], each[0][1], each[1][1]], (height, width)
