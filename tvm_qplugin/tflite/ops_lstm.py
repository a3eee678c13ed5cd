"""The integer LSTM as UNIDIRECTIONAL_SEQUENCE_LSTM, with its states and intermediates."""

from __future__ import annotations

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.lstm import GATES
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.tflite.file import LSTM
from tvm_qplugin.tflite.node import Node
from tvm_qplugin.tflite.writer import Value

SLOTS = 24
NAMES = ("input_weight", "recurrent_weight", "bias")


def lstm(node: Node) -> Value:
    """The operator; LiteRT keeps its states from run to run unless the caller resets them."""
    inputs: list[Value | None] = [None] * SLOTS
    inputs[0] = node.value(0)
    for slots, what, scales in zip((1, 5, 12), NAMES, _scales(node), strict=True):
        for gate, values, scale in zip(GATES, node.array(NAMES.index(what) + 1), scales, strict=True):
            grid = QuantParams.of(scale, 0, str(values.dtype))
            made = node.writer.constant(f"{node.name}_{gate}_{what}", values, grid)
            inputs[slots + GATES.index(gate)] = made
    inputs[18:20] = _states(node)
    made = node.result()
    node.writer.operator(
        LSTM,
        inputs,
        [made],
        "UnidirectionalSequenceLSTMOptions",
        version=1,
        intermediates=_intermediates(node),
        fusedActivationFunction=node.writer.enum("ActivationFunctionType", "TANH"),
        cellClip=node.params["cell_clip"],
    )
    return made


def _scales(node: Node) -> tuple[list[float], list[float], list[float]]:
    """Of input weights, recurrent weights and biases, by gate."""
    p = node.params
    return p["input_scales"], p["recurrent_scales"], [p["in_scale"] * scale for scale in p["input_scales"]]


def _states(node: Node) -> list[Value]:
    """Hidden state and cell state [N, C]."""
    shape = (node.out.shape[0], node.out.shape[2])
    cell = QuantParams.of(2.0 ** node.params["cell_exponent"], 0, "int16")
    hidden = node.writer.tensor(f"{node.name}_hidden", TensorSpec(shape, node.out.dtype), node.grid, True)
    return [hidden, node.writer.tensor(f"{node.name}_cell", TensorSpec(shape, "int16"), cell, True)]


def _intermediates(node: Node) -> list[Value]:
    """Four that only layer normalization uses, and the hidden state's grid."""
    unused = [node.writer.tensor(f"{node.name}_to_{gate}", TensorSpec((0,), "float32")) for gate in GATES]
    return [
        *unused,
        node.writer.tensor(f"{node.name}_effective", TensorSpec((0,), node.out.dtype), node.grid),
    ]
