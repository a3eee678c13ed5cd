"""LSTM, GRU and RNN nodes against onnxruntime; what is refused; the names of the gates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.attrs import STEPS
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.frontend import check_canonical, load
from tvm_qplugin.passes.rebuild import straight_bindings

Array = np.ndarray[Any, Any]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS_IN, INPUTS, HIDDEN = 4, 3, 5


def rand(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def layer(
    kind: str,
    *,
    direction: str = "forward",
    batch: int = 1,
    states: bool = True,
    bias: bool = True,
    weights: Mapping[str, Array] | None = None,
    **attrs: Any,
) -> onnx.ModelProto:
    """A model of one node with all its outputs; states are inputs of the model."""
    count, rows = 1 + (direction == "bidirectional"), GATES[kind] * HIDDEN
    arrays = {"W": rand(count, rows, INPUTS), "R": rand(count, rows, HIDDEN)}
    arrays |= {"B": rand(count, 2 * rows)} if bias else {}
    arrays |= weights or {}
    names = ["h", "c"] if kind == "LSTM" else ["h"]
    given = ["x", "W", "R", "B" if bias else "", "L" if "L" in arrays else "", *(names if states else [])]
    given += ["P"] if "P" in arrays else []
    outputs = ["y", "y_h", "y_c"][: 1 + len(names)]
    node = helper.make_node(
        kind, given, outputs, hidden_size=HIDDEN, direction=direction, name="cell", **attrs
    )
    shapes = {"x": (STEPS_IN, batch, INPUTS)} | ({n: (count, batch, HIDDEN) for n in names} if states else {})
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(v, n) for n, v in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def assert_equal_to_onnxruntime(model: onnx.ModelProto) -> None:
    module = load(model)
    check_canonical(module)
    session = ort.InferenceSession(model.SerializeToString())
    inputs = {entry.name: rand(*entry.shape) for entry in session.get_inputs()}
    wanted = session.run(None, inputs)
    found = compile_function(module)(list(inputs.values()))
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [False, True])
def test_directions_and_states(kind: str, direction: str, states: bool) -> None:
    assert_equal_to_onnxruntime(layer(kind, direction=direction, states=states, batch=2))


@pytest.mark.parametrize("kind", GATES)
def test_no_bias(kind: str) -> None:
    assert_equal_to_onnxruntime(layer(kind, bias=False))


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gru_that_resets_after_multiplying(states: bool, bias: bool) -> None:
    assert_equal_to_onnxruntime(layer("GRU", linear_before_reset=1, states=states, bias=bias))


def test_other_activations() -> None:
    both = ["Tanh", "Sigmoid", "Relu", "Sigmoid", "Tanh", "Tanh"]
    assert_equal_to_onnxruntime(layer("LSTM", direction="bidirectional", activations=both))


def test_lengths_of_all_steps() -> None:
    weights = {"L": np.array([STEPS_IN, STEPS_IN], "int32")}
    assert_equal_to_onnxruntime(layer("GRU", batch=2, weights=weights))


REFUSED = {
    "lengths": (
        layer("GRU", batch=2, weights={"L": np.array([4, 2], "int32")}),
        r"lengths \[4, 2\].*4 steps",
    ),
    "peepholes": (layer("LSTM", weights={"P": rand(1, 3 * HIDDEN)}), "peephole weights .input P."),
    "clip": (layer("RNN", clip=3.0), "attribute clip is not supported"),
    "activations": (layer("RNN", activations=["Softsign"]), "activations softsign are not supported; use"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    model, message = REFUSED[name]
    with pytest.raises(ModelError, match=rf"^(GRU|LSTM|RNN) \(cell\) cannot be imported: .*{message}"):
        load(model)


def test_gates_have_names_and_know_their_counterparts() -> None:
    main = load(layer("LSTM"))["main"]
    names = [var.name for var, _ in straight_bindings(main)]
    roles = json.loads(str(main.attrs[STEPS]))
    assert {"y_inputs", "y_forget_gate_t0", "y_cell_t3", "y_hidden_t2"} <= set(names)
    assert roles["y_forget_gate_t0"] == roles["y_forget_gate_t3"] == "y_forget_gate"
    assert roles["y_inputs"] == "y_inputs"
