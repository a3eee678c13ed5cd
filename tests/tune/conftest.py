"""Small float models as ONNX files, and a database that is no one's own."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

Model = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_database(tmp_path, monkeypatch):
    monkeypatch.setenv("QPLUGIN_DATABASE", str(tmp_path / "user.jsonl"))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Model:
    """``model("name", channels, ...)``: 3x3 convolutions of 8x8 pixels, one after another."""

    def make(name: str, *channels: int) -> Path:
        rng, nodes, weights, last = np.random.default_rng(0), [], [], "x"
        for index, (source, out) in enumerate(pairwise(channels)):
            weight = rng.normal(size=(out, source, 3, 3)).astype("float32")
            weights.append(numpy_helper.from_array(weight, f"w{index}"))
            result = f"{name}_{index}"
            nodes.append(helper.make_node("Conv", [last, f"w{index}"], [result], pads=[1, 1, 1, 1]))
            last = result
        shape = [[1, count, 8, 8] for count in (channels[0], channels[-1])]
        infos = [
            helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
            for n, s in zip(("x", last), shape, strict=True)
        ]
        graph = helper.make_graph(nodes, name, infos[:1], infos[1:], weights)
        path = tmp_path_factory.mktemp("models") / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
        return path

    return make
