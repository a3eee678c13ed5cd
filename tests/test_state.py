"""Models that carry a state from call to call: chunk by chunk, beside the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tvm_qplugin.api import quantize
from tvm_qplugin.artifact import Artifact
from tvm_qplugin.builder import build
from tvm_qplugin.simulator import simulate

Array = np.ndarray[Any, Any]
CHUNK, INPUTS, HIDDEN, CHUNKS = 3, 6, 8, 7
Call = Callable[[list[Array]], list[Array]]


def listener() -> onnx.ModelProto:
    """An LSTM over a chunk of frames: frames and both states in, a score and the states out."""
    rng = np.random.default_rng(3)
    weights = {
        "W": rng.normal(size=(1, 4 * HIDDEN, INPUTS)),
        "R": rng.normal(size=(1, 4 * HIDDEN, HIDDEN)) / 2,
        "B": rng.normal(size=(1, 8 * HIDDEN)) / 3,
        "V": rng.normal(size=(HIDDEN, 1)),
    }
    given = ["frames", "W", "R", "B", "", "h", "c"]
    nodes = [
        helper.make_node("LSTM", given, ["", "h_next", "c_next"], hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["h_next", "zero"], ["flat"]),
        helper.make_node("MatMul", ["flat", "V"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["score"]),
    ]
    shapes = {"frames": (CHUNK, 1, INPUTS), "h": (1, 1, HIDDEN), "c": (1, 1, HIDDEN)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in shapes.items()],
        [
            helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)
            for n in ("score", "h_next", "c_next")
        ],
        [numpy_helper.from_array(v.astype("float32"), n) for n, v in weights.items()]
        + [numpy_helper.from_array(np.array([0]), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def samples() -> list[dict[str, Array]]:
    rng = np.random.default_rng(4)
    shapes = {"frames": (CHUNK, 1, INPUTS), "h": (1, 1, HIDDEN), "c": (1, 1, HIDDEN)}
    return [{n: rng.uniform(-1, 1, s).astype("float32") for n, s in shapes.items()} for _ in range(20)]


def listened(artifact: Artifact, run: Call) -> list[list[Array]]:
    """All outputs for a clip in chunks; what left as a state enters with the next chunk."""
    clip = np.random.default_rng(5).uniform(-1, 1, (CHUNKS, CHUNK, 1, INPUTS)).astype("float32")
    frames, *ins = artifact.manifest.inputs
    _, *outs = artifact.manifest.outputs
    state, found = [np.zeros(info.shape, info.dtype) for info in ins], []
    for chunk in clip:
        _, *left = outputs = run([chunk if frames.params is None else frames.params.quantize(chunk), *state])
        found.append(outputs)
        state = [
            array if gone.params is None else come.params.quantize(gone.params.dequantize(array))
            for array, gone, come in zip(left, outs, ins, strict=True)
        ]
    return found


@pytest.mark.parametrize(
    ("recipe", "io", "dtypes"),
    [
        ("int8", "float", ["float32"] * 3),
        ("int8", "int8", ["int8", "int8", "int16"]),
        ("int16x8", "float", ["float32"] * 3),
        ("int16x8", "int16", ["int16"] * 3),
    ],
)
def test_a_clip_in_chunks_equals_the_oracle(recipe: str, io: str, dtypes: list[str]) -> None:
    module = quantize(listener(), recipe=recipe, calibration=samples(), io=io)
    artifact = build(module)
    assert [info.dtype for info in artifact.manifest.inputs] == dtypes
    names = [info.name for info in artifact.manifest.inputs]
    found = listened(artifact, lambda arrays: artifact.run(dict(zip(names, arrays, strict=True))))
    wanted = listened(artifact, lambda arrays: simulate(module, *arrays))
    for ours, theirs in zip(found, wanted, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    states = np.array([outputs[1] for outputs in found])
    assert len(np.unique(states, axis=0)) == CHUNKS  # it does move on
