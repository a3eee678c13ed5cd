"""LSTM, GRU and RNN of torch: its gates in the order of ONNX, then the cells of ``onnx_recurrent``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.onnx_recurrent import recurrent
from tvm_qplugin.passes.rebuild import constant, shape_of, value_of
from tvm_qplugin.torch_ops import Call

Expr = Any
# Where ONNX's gates stand in torch's weights: input, output, forget, candidate; update, reset, candidate.
ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def layers(kind: str, activation: str = "Tanh") -> Callable[[Call], Expr]:
    """All layers of a recurrent module: the sequence, then the last states of all layers."""

    def convert(call: Call) -> Expr:
        x, first = call["input"], bool(call["batch_first"])
        _refuse(call, kind)
        x = relax.op.permute_dims(x, [1, 0, 2]) if first else x
        lasts = []
        for layer in range(int(call["num_layers"])):
            x = call.bind(x, f"l{layer}_input") if layer or first else x
            x, *states = _layer(call, kind, activation, layer, x)
            lasts.append(states)
        parts = [_joined(states) for states in zip(*lasts, strict=True)]
        return relax.Tuple([relax.op.permute_dims(x, [1, 0, 2]) if first else x, *parts])

    return convert


def _joined(states: Sequence[Expr]) -> Expr:
    return states[0] if len(states) == 1 else relax.op.concat(list(states), 0)


def _refuse(call: Call, kind: str) -> None:
    if len(shape_of(call["input"])) != 3:
        raise ValueError(f"its input {shape_of(call['input'])} has no batch dimension")
    per_layer = (4 if call["has_biases"] else 2) * (2 if call["bidirectional"] else 1)
    if len(call["params"]) != per_layer * int(call["num_layers"]):
        raise ValueError(f"its {kind} has projections (proj_size), which are not supported")
    if call["train"] and call["dropout"]:
        raise ValueError("it is in training mode; export the model in eval mode")


def _layer(call: Call, kind: str, activation: str, layer: int, x: Expr) -> list[Expr]:
    """Sequence [T, N, D*H] and states [D, N, H] of one layer."""
    directions = 2 if call["bidirectional"] else 1
    biases = bool(call["has_biases"])
    size = 4 if biases else 2
    first = layer * directions * size
    groups = [call["params"][first + d * size : first + (d + 1) * size] for d in range(directions)]
    w, r = (constant(np.stack([_gates(kind, group[at]) for group in groups])) for at in (0, 1))
    b = None
    if biases:
        both = [np.concatenate([_gates(kind, g[2]), _gates(kind, g[3])]) for g in groups]
        b = constant(np.stack(both))
    states = call["hx"] if isinstance(call["hx"], list | tuple) else [call["hx"]]
    initial = [_slice(call, state, layer * directions, directions) for state in states]
    attrs = {"direction": "bidirectional" if directions == 2 else "forward", "linear_before_reset": 1}
    if kind == "RNN":
        attrs["activations"] = [activation] * directions  # type: ignore[assignment]
    emit = partial(_emit, call, f"l{layer}_" if int(call["num_layers"]) > 1 else "")
    node = replace(call.as_onnx(kind, [x, w, r, b, None, *initial], **attrs), used=3, emit=emit)
    sequence, *lasts = recurrent(node).fields
    sequence = call.bind(sequence, f"l{layer}_directions")
    steps, count, batch, hidden = shape_of(sequence)
    if count > 1:
        sequence = relax.op.permute_dims(sequence, [0, 2, 1, 3])
    return [relax.op.reshape(sequence, (steps, batch, count * hidden)), *lasts]


def _emit(call: Call, prefix: str, expr: Expr, role: str, step: int | None = None) -> Expr:
    return call.emit(expr, prefix + role, step)


def _gates(kind: str, given: Expr) -> Array:
    """Rows of a weight or bias, its gates in ONNX's order."""
    value = value_of(given)
    if value is None:
        raise ValueError("its weights must be constants")
    parts = np.split(value, len(ORDER[kind]))
    return np.concatenate([parts[at] for at in ORDER[kind]])


def _slice(call: Call, state: Expr, begin: int, count: int) -> Expr:
    """The initial states of one layer, of all layers [L*D, N, H]."""
    value = value_of(state)
    if value is not None:
        return constant(np.ascontiguousarray(value[begin : begin + count]))
    if shape_of(state)[0] == count:
        return state
    part = relax.op.strided_slice(state, axes=[0], begin=[begin], end=[begin + count])
    return call.bind(part, f"l{begin // count}_initial")


RECURRENT: dict[str, Callable[[Call], Expr]] = {
    "lstm.input": layers("LSTM"),
    "gru.input": layers("GRU"),
    "rnn_tanh.input": layers("RNN", "Tanh"),
    "rnn_relu.input": layers("RNN", "Relu"),
}
