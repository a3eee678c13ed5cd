"""Random ONNX graphs over all operators that have an integer kernel, and some that have none."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
MAX_ELEMENTS = 6000


@dataclass
class Graph:
    """An ONNX graph that grows node by node; a tensor is a name and a shape (NCHW or a matrix)."""

    rng: random.Random
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = np.random.default_rng(self.rng.randrange(2**31))

    def weight(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        return self.weight((self.values.normal(size=shape) * scale).astype("float32"))

    def ints(self, *values: int) -> str:
        return self.weight(np.asarray(values, "int64"))

    def node(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attrs: Any) -> list[str]:
        names = [f"t{len(self.nodes)}_{i}" if i else f"t{len(self.nodes)}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attrs))
        return names

    def pick(self, rank: int | None = None) -> str:
        """A tensor, a recent one more often."""
        known = [name for name, shape in self.shapes.items() if rank in (None, len(shape))]
        if not known:
            raise LookupError(rank)
        return self.rng.choice(known[-3:] if self.rng.random() < 0.7 else known)

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        def info(name: str, shape: Sequence[int] | None) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes,
            "random",
            [info(name, shape) for name, shape in self.inputs.items()],
            [info(name, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


Step = Callable[[Graph, random.Random], "list[str] | str"]


def conv(g: Graph, r: random.Random) -> list[str]:
    x = g.pick(4)
    c = g.shapes[x][1]
    groups = r.choice([1, 1, c, r.choice([d for d in range(1, c + 1) if c % d == 0])])
    out = groups * r.choice([1, 1, 2, 3]) if groups > 1 else r.choice([1, 3, 5, 8, 16, 17, 24, 32])
    kernel = (
        [r.choice([1, 1, 2, 3, 3, 5]), r.choice([1, 1, 3, 3, 4])]
        if r.random() < 0.3
        else [r.choice([1, 3])] * 2
    )
    weight = g.normal(out, c // groups, *kernel, scale=(c // groups * kernel[0] * kernel[1]) ** -0.5)
    bias = [g.normal(out, scale=0.3)] if r.random() < 0.7 else []
    strides = [r.choice([1, 1, 1, 2])] * 2 if r.random() < 0.8 else [r.choice([1, 2, 3]), r.choice([1, 2])]
    dilations = [r.choice([1, 1, 1, 2]), r.choice([1, 1, 1, 2])]
    pads = [r.randint(0, 2) for _ in range(4)] if r.random() < 0.4 else [k // 2 for k in kernel] * 2
    _fits(g.shapes[x], kernel, dilations, pads)
    (y,) = g.node("Conv", [x, weight, *bias], strides=strides, dilations=dilations, pads=pads, group=groups)
    return _activation(g, r, y)


def _fits(shape: Sequence[int], kernel: Sequence[int], dilations: Sequence[int], pads: Sequence[int]) -> None:
    for i in (0, 1):
        if (kernel[i] - 1) * dilations[i] >= shape[i + 2] + pads[i] + pads[i + 2]:
            raise ValueError("the window is larger than the image")


def _activation(g: Graph, r: random.Random, x: str) -> list[str]:
    kind = r.choice(["", "", "Relu", "Relu6", "Clip"])
    if kind in ("Relu6", "Clip"):
        low, high = (0.0, 6.0) if kind == "Relu6" else (r.choice([-1.0, -0.5, 0.1]), r.choice([0.5, 1.5]))
        return [x, *g.node("Clip", [x, g.weight(np.float32(low)), g.weight(np.float32(high))])][-1:]
    return g.node(kind, [x]) if kind else [x]


def dense(g: Graph, r: random.Random) -> list[str]:
    x = g.pick(2)
    k, n = g.shapes[x][1], r.choice([1, 3, 10, 16, 32, 33])
    if r.random() < 0.5:
        bias = [g.normal(n, scale=0.3)] if r.random() < 0.7 else []
        (y,) = g.node("Gemm", [x, g.normal(n, k, scale=k**-0.5), *bias], transB=1)
    else:
        (y,) = g.node("MatMul", [x, g.normal(k, n, scale=k**-0.5)])
        if r.random() < 0.5:
            (y,) = g.node("Add", [y, g.normal(n, scale=0.3)])
    return _activation(g, r, y)


def binary(g: Graph, r: random.Random) -> list[str]:
    a = g.pick()
    shape = g.shapes[a]
    same = [
        name for name, other in g.shapes.items() if len(other) == len(shape) and _broadcasts(shape, other)
    ]
    kind = r.choice(["Add", "Add", "Add", "Mul", "Sub"])
    if r.random() < 0.3:
        kept = [d if r.random() < 0.5 else 1 for d in shape]
        operands = [a, g.normal(*kept) if r.random() < 0.7 else g.normal()]
    else:
        operands = [a, r.choice(same)]
    r.shuffle(operands)
    return _activation(g, r, g.node(kind, operands)[0])


def _broadcasts(a: Sequence[int], b: Sequence[int]) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(a, b, strict=True))


def concat(g: Graph, r: random.Random) -> list[str]:
    a = g.pick()
    axis = 1 if r.random() < 0.8 else r.randrange(len(g.shapes[a]))
    fits = [n for n, s in g.shapes.items() if len(s) == len(g.shapes[a]) and _same_but(s, g.shapes[a], axis)]
    return g.node("Concat", [a, *(r.choice(fits) for _ in range(r.choice([1, 1, 2])))], axis=axis)


def _same_but(a: Sequence[int], b: Sequence[int], axis: int) -> bool:
    return all(x == y for i, (x, y) in enumerate(zip(a, b, strict=True)) if i != axis)


def pool(g: Graph, r: random.Random) -> list[str]:
    x = g.pick(4)
    kind = r.choice(
        ["MaxPool", "MaxPool", "AveragePool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"]
    )
    if kind.startswith("Global"):
        return g.node(kind, [x])
    kernel = [r.choice([2, 2, 3]), r.choice([2, 2, 3])]
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": [r.choice([1, 2, 2]), r.choice([1, 2, 3])]}
    attrs["pads"] = [r.randint(0, 1) for _ in range(4)] if r.random() < 0.5 else [0] * 4
    if kind == "AveragePool":
        attrs["count_include_pad"] = r.randint(0, 1)
    elif r.random() < 0.2:
        attrs["dilations"] = [1, 2]
    if r.random() < 0.3:
        attrs["ceil_mode"] = 1
    _fits(g.shapes[x], kernel, attrs.get("dilations", [1, 1]), attrs["pads"])
    return g.node(kind, [x], **attrs)


def mean(g: Graph, r: random.Random) -> list[str]:
    x = g.pick()
    rank = len(g.shapes[x])
    axes = r.choice([[2, 3], [1], [-1], [1, 2, 3]]) if rank == 4 else [1]
    return g.node("ReduceMean", [x], axes=axes, keepdims=1 if r.random() < 0.7 or rank == 2 else 0)


def unary(g: Graph, r: random.Random) -> list[str]:
    x, kind = g.pick(), r.choice(list(UNARY))
    return UNARY[kind](g, x)


def _scalar(g: Graph, value: float) -> str:
    return g.weight(np.float32(value))


def _gelu(g: Graph, x: str) -> list[str]:
    (e,) = g.node("Erf", g.node("Div", [x, _scalar(g, 2**0.5)]))
    return g.node("Mul", [*g.node("Mul", [x, *g.node("Add", [e, _scalar(g, 1.0)])]), _scalar(g, 0.5)])


def _swish_by_clip(g: Graph, x: str) -> list[str]:
    (h,) = g.node("Clip", [*g.node("Add", [x, _scalar(g, 3.0)]), _scalar(g, 0.0), _scalar(g, 6.0)])
    return g.node("Div", [*g.node("Mul", [x, h]), _scalar(g, 6.0)])


UNARY: dict[str, Callable[[Graph, str], list[str]]] = {
    "relu": lambda g, x: g.node("Relu", [x]),
    "clip": lambda g, x: g.node("Clip", [x, _scalar(g, -0.5), _scalar(g, 0.75)]),
    "sigmoid": lambda g, x: g.node("Sigmoid", [x]),
    "tanh": lambda g, x: g.node("Tanh", [x]),
    "hardswish": lambda g, x: g.node("HardSwish", [x]),
    "hardsigmoid": lambda g, x: g.node("HardSigmoid", [x], alpha=1 / 6),
    "leaky": lambda g, x: g.node("LeakyRelu", [x], alpha=0.1),
    "gelu": _gelu,
    "swish": lambda g, x: g.node("Mul", [x, *g.node("Sigmoid", [x])]),
    "swish_by_clip": _swish_by_clip,
    "abs": lambda g, x: g.node("Abs", [x]),
    "neg": lambda g, x: g.node("Neg", [x]),
    "softmax": lambda g, x: g.node("Softmax", [x], axis=1),
    "softmax_last": lambda g, x: g.node("Softmax", [x], axis=-1),
}


def move(g: Graph, r: random.Random) -> list[str]:
    x = g.pick()
    shape = g.shapes[x]
    rank = len(shape)
    axis = r.randrange(1, rank)
    kind = r.choice(["flatten", "transpose", "slice", "split", "gather", "pad", "reshape", "squeeze"])
    if kind == "flatten":
        return g.node("Flatten", [x])
    if kind == "transpose" and rank == 4:
        return g.node(
            "Transpose", [x], perm=r.choice([[0, 1, 3, 2], [0, 2, 3, 1], [0, 3, 1, 2], [0, 2, 1, 3]])
        )
    if kind == "slice" and shape[axis] > 1:
        start, step = r.randrange(shape[axis] - 1), r.choice([1, 1, 2])
        return g.node("Slice", [x, g.ints(start), g.ints(2**31 - 1), g.ints(axis), g.ints(step)])
    if kind == "slice" and rank == 4:
        return g.node("Slice", [x, g.ints(-1), g.ints(-(2**31)), g.ints(axis), g.ints(-1)])
    if kind == "split" and shape[axis] > 1:
        first = r.randrange(1, shape[axis])
        return g.node("Split", [x, g.ints(first, shape[axis] - first)], 2, axis=axis)
    if kind == "gather":
        index = [r.randrange(-shape[axis], shape[axis]) for _ in range(r.randint(1, 3))]
        return g.node("Gather", [x, g.ints(*index)], axis=axis)
    if kind == "pad" and rank == 4:
        return g.node(
            "Pad", [x, g.ints(0, r.choice([0, 0, 2]), 1, 0, 0, r.choice([0, 3]), 0, r.randint(0, 2))]
        )
    if kind == "squeeze" and rank == 4:
        (y,) = g.node("GlobalAveragePool", [x])
        return g.node("Squeeze", [y, g.ints(2, 3)])
    if kind == "reshape" and rank == 4:
        n, c, h, w = shape
        return g.node(
            "Reshape", [x, g.ints(*r.choice([(n, c, w, h), (n, h, c, w), (n, c * h, 1, w), (n, -1)]))]
        )
    return g.node("Identity", [x])


def resize(g: Graph, r: random.Random) -> list[str]:
    x = g.pick(4)
    mode = r.choice(["nearest", "linear"])
    attrs: dict[str, Any] = {"mode": mode}
    attrs["coordinate_transformation_mode"] = r.choice(
        ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    )
    if mode == "nearest":
        attrs["nearest_mode"] = r.choice(["round_prefer_floor", "floor", "ceil", "round_prefer_ceil"])
    n, c, h, w = g.shapes[x]
    size = (h * r.choice([1, 2, 3]), w * 2) if r.random() < 0.6 else (r.randint(1, 12), r.randint(1, 12))
    if 1 in size and attrs["coordinate_transformation_mode"] == "align_corners":
        raise ValueError("TVM divides by zero")
    return g.node("Resize", [x, "", "", g.ints(n, c, *size)], **attrs)


def island(g: Graph, r: random.Random) -> list[str]:
    """What has no integer kernel, and a maximum."""
    x = g.pick()
    kind = r.choice(["norm", "matmul", "cast", "max", "div"])
    if kind == "norm":
        c = g.shapes[x][-1]
        return g.node("LayerNormalization", [x, g.normal(c), g.normal(c)])
    if kind == "matmul" and len(g.shapes[x]) == 2:
        return g.node("MatMul", [x, *g.node("Transpose", [x], perm=[1, 0])])
    if kind == "cast":
        return g.node("Cast", g.node("Cast", [x], to=onnx.TensorProto.INT32), to=onnx.TensorProto.FLOAT)
    if kind == "max":
        return g.node("Max", [x, g.normal(g.shapes[x][-1])])
    return g.node("Div", [x, *g.node("Add", [*g.node("Abs", [x]), _scalar(g, 1.0)])])


STEPS: list[Step] = [conv] * 6 + [dense] * 3 + [binary] * 4 + [concat] * 2 + [pool] * 3 + [unary] * 4
STEPS += [move] * 4 + [mean, resize, island]


def random_graph(seed: int, steps: int | None = None) -> tuple[onnx.ModelProto, Graph]:
    """The graph of ``seed``; with ``steps`` only the beginning of it."""
    rng = random.Random(seed)
    g = Graph(rng)
    count = rng.randint(2, 9)
    batch = rng.choice([1, 1, 1, 2])
    for i in range(rng.choice([1, 1, 1, 2])):
        name = f"x{i}"
        c, h, w = (rng.choice(c) for c in ([3, 4, 8, 16, 17], [1, 5, 8, 9], [4, 7, 8, 12]))
        g.inputs[name] = (batch, c, h, w) if rng.random() < 0.85 or not i else (batch, c * 4)
    g.shapes.update(g.inputs)
    done = 0
    while done < (count if steps is None else min(count, steps)):
        done += _try(g, rng.choice(STEPS), random.Random(rng.random()))
    return g.model(_outputs(g, random.Random(seed + 1))), g


def _try(g: Graph, step: Step, rng: random.Random) -> bool:
    """One step, undone where it makes no valid or too large a tensor."""
    nodes, weights = len(g.nodes), len(g.weights)
    try:
        results = step(g, rng)
        inferred = onnx.shape_inference.infer_shapes(g.model(results), strict_mode=True, data_prop=True)
        shapes = {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in inferred.graph.output
        }
        if any(not 0 < np.prod(s) <= MAX_ELEMENTS or len(s) not in (2, 4) for s in shapes.values()):
            raise ValueError("too large, empty, or of another rank")
    except (LookupError, ValueError, onnx.shape_inference.InferenceError):
        del g.nodes[nodes:]
        for name in list(g.weights)[weights:]:
            del g.weights[name]
        return False
    g.shapes.update(shapes)
    return True


def _outputs(g: Graph, rng: random.Random) -> list[str]:
    """All that nobody reads, sometimes what is read inside, rarely an input."""
    used = {name for node in g.nodes for name in node.input}
    outputs = [name for name in g.shapes if name not in used and name not in g.inputs]
    outputs += [name for name in g.shapes if name in used and name not in g.inputs and rng.random() < 0.1]
    if rng.random() < 0.05:
        outputs += list(g.inputs)[:1]
    return outputs


@pytest.fixture(scope="session")
def graph_of() -> Callable[..., tuple[onnx.ModelProto, Graph]]:
    """``graph_of(seed, steps=None)``."""
    return random_graph
