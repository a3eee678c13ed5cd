"""ONNX LSTM, GRU and RNN as straight-line code: one cell a step, every gate a tensor with a name.

The inputs of all steps are multiplied by their weights at once; a step then multiplies the hidden state
(twice in a GRU that resets it before).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.onnx_ops import Node
from tvm_qplugin.passes.rebuild import constant, shape_of, value_of

Expr = Any
State = tuple[Expr | None, Expr | None]
"""Hidden and cell state [N, H]; None stands for zeros, or for no such state."""

FUNCTIONS: dict[str, Callable[[Expr], Expr]] = {
    "sigmoid": relax.op.sigmoid,
    "tanh": relax.op.tanh,
    "relu": relax.op.nn.relu,
}
DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
UNSUPPORTED = ("clip", "input_forget", "layout", "activation_alpha", "activation_beta")


@dataclass(frozen=True)
class Cell:
    """One direction of one layer.

    ``weight`` [I, G*H], ``recurrent`` [H, G*H] and the biases [G*H] have the gates side by side in ONNX's
    order; ``bias`` is added to the product of the inputs, ``late`` to that of the hidden state.
    ``emit(expr, role, step)`` binds a tensor to a name (no step: it is of all).
    """

    weight: Array
    recurrent: Array
    bias: Array
    late: Array
    functions: Sequence[Callable[[Expr], Expr]]
    emit: Callable[..., Expr]

    @property
    def size(self) -> int:
        """Elements of the hidden state."""
        return int(self.recurrent.shape[0])

    def part(self, x: Expr, first: int, count: int, role: str, step: int) -> Expr:
        """``count`` gates of ``x`` [N, G*H]; all of them: ``x``."""
        begin, end = first * self.size, (first + count) * self.size
        if (begin, end) == (0, shape_of(x)[1]):
            return x
        return self.emit(relax.op.strided_slice(x, axes=[1], begin=[begin], end=[end]), role, step)

    def product(self, h: Expr, first: int, count: int, role: str, step: int) -> Expr:
        """The hidden state times the weights of ``count`` gates, with their late biases."""
        columns = slice(first * self.size, (first + count) * self.size)
        made = relax.op.matmul(h, constant(np.ascontiguousarray(self.recurrent[:, columns])))
        late = self.late[columns]
        return self.emit(relax.op.add(made, constant(late)) if late.any() else made, role, step)


def recurrent(node: Node) -> Expr:
    """The outputs ``Y`` [T, D, N, H], ``Y_h`` [D, N, H] and, of an LSTM, ``Y_c`` [D, N, H]."""
    _refuse(node)
    x = node.inputs[0]
    batch = shape_of(x)[1]
    sequences, lasts = [], []
    for index, backwards in enumerate(DIRECTIONS[node.text("direction", "forward")]):
        cell = _cell(node, index)
        hidden, last = _unrolled(node, cell, index, backwards)
        sequences.append(relax.op.reshape(_joined(hidden, 0), (len(hidden), 1, batch, cell.size)))
        lasts.append([relax.op.reshape(state, (1, batch, cell.size)) for state in last if state is not None])
    outputs = [_joined(sequences, 1), *(_joined(states, 0) for states in zip(*lasts, strict=True))]
    return relax.Tuple(outputs)


def _joined(parts: Sequence[Expr], axis: int) -> Expr:
    return parts[0] if len(parts) == 1 else relax.op.concat(list(parts), axis)


def _refuse(node: Node) -> None:
    shapes = [shape_of(given) for given in node.inputs[:3]]
    if any(len(shape) != 3 for shape in shapes):
        raise ValueError(f"X [T, N, I], W and R must be of rank 3, got {', '.join(map(str, shapes))}")
    for name in UNSUPPORTED:
        if np.any(node.attrs.get(name, 0)):
            raise ValueError(f"its attribute {name} is not supported; export the model without it")
    if node.input(7) is not None:
        raise ValueError("its peephole weights (input P) are not supported; export the model without them")
    lengths, steps = node.ints(4, "sequence_lens"), shape_of(node.inputs[0])[0]
    if lengths is not None and set(lengths) != {steps}:
        raise ValueError(
            f"its sequences have lengths {lengths}; all must have the {steps} steps of the input"
        )


def _cell(node: Node, index: int) -> Cell:
    """Weights and functions of direction ``index``."""
    weight, recurrent, bias = (node.array(place) for place in (1, 2, 3))
    assert weight is not None and recurrent is not None
    both = np.zeros((2, weight.shape[1]), "float32") if bias is None else bias[index].reshape(2, -1)
    early, late = both[0] + both[1], np.zeros_like(both[1])
    if node.op_type == "GRU" and node.attrs.get("linear_before_reset", 0):
        candidate = slice(2 * recurrent.shape[2], None)
        early[candidate], late[candidate] = both[0][candidate], both[1][candidate]
    suffix = "" if index == 0 else "_backwards"
    return Cell(
        np.ascontiguousarray(weight[index].T),
        np.ascontiguousarray(recurrent[index].T),
        early,
        late,
        _functions(node, index),
        lambda expr, role, step=None: node.emit(expr, role + suffix, step),
    )


def _functions(node: Node, index: int) -> list[Callable[[Expr], Expr]]:
    defaults = DEFAULTS[node.op_type]
    given = [g.decode() if isinstance(g, bytes) else str(g) for g in node.attrs.get("activations", [])]
    names = [name.lower() for name in given[index * len(defaults) :][: len(defaults)]] or defaults
    if unknown := sorted(set(names) - set(FUNCTIONS)):
        raise ValueError(f"its activations {', '.join(unknown)} are not supported; use Sigmoid, Tanh or Relu")
    return [FUNCTIONS[name] for name in names]


def _unrolled(node: Node, cell: Cell, index: int, backwards: bool) -> tuple[list[Expr], State]:
    """Hidden states in the order of time, and the states after the last step."""
    step_of = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[node.op_type]
    inputs = _inputs(cell, node.inputs[0])
    state = _initial(node, 5, index), _initial(node, 6, index)
    order = list(range(len(inputs)))[:: -1 if backwards else 1]
    late = bool(node.attrs.get("linear_before_reset", 0))
    hidden: dict[int, Expr] = {}
    for step in order:
        state = step_of(cell, inputs[step], state, step, late)
        hidden[step] = state[0]
    return [hidden[step] for step in sorted(hidden)], state


def _initial(node: Node, place: int, index: int) -> Expr | None:
    """An initial state [N, H]; None for zeros."""
    given = node.input(place) if place == 5 or node.op_type == "LSTM" else None
    known = None if given is None else value_of(given)
    if given is None or (known is not None and not known.any()):
        return None
    _, batch, size = shape_of(given)
    one = relax.op.strided_slice(given, axes=[0], begin=[index], end=[index + 1])
    return relax.op.reshape(one, (batch, size))


def _inputs(cell: Cell, x: Expr) -> list[Expr]:
    """The products of all inputs, by step [N, G*H]."""
    steps, batch, size = shape_of(x)
    rows = relax.op.matmul(relax.op.reshape(x, (steps * batch, size)), constant(cell.weight))
    rows = cell.emit(relax.op.add(rows, constant(cell.bias)), "inputs")
    if steps == 1:
        return [rows]
    slices = (
        relax.op.strided_slice(rows, axes=[0], begin=[step * batch], end=[(step + 1) * batch])
        for step in range(steps)
    )
    return [cell.emit(part, "input", step) for step, part in enumerate(slices)]


def _lstm(cell: Cell, x: Expr, state: State, step: int, _late: bool) -> State:
    """``c = forget * c + input * candidate``, ``h = output * tanh(c)``; gates in the order i, o, f, c."""
    hidden, memory = state
    if hidden is not None:
        x = cell.emit(relax.op.add(x, cell.product(hidden, 0, 4, "recurrent", step)), "gates", step)
    gate, of_candidate, of_memory = cell.functions
    enter, leave, keep = (
        cell.emit(gate(cell.part(x, place, 1, f"{role}_sum", step)), role, step)
        for place, role in enumerate(("input_gate", "output_gate", "forget_gate"))
    )
    candidate = cell.emit(of_candidate(cell.part(x, 3, 1, "candidate_sum", step)), "candidate", step)
    new = cell.emit(relax.op.multiply(enter, candidate), "entered", step)
    if memory is not None:
        kept = cell.emit(relax.op.multiply(keep, memory), "kept", step)
        new = cell.emit(relax.op.add(kept, new), "cell", step)
    shown = cell.emit(of_memory(new), "shown", step)
    return cell.emit(relax.op.multiply(leave, shown), "hidden", step), new


def _gru(cell: Cell, x: Expr, state: State, step: int, late: bool) -> State:
    """``h = candidate + update * (h - candidate)``; gates in the order z, r, h."""
    hidden = state[0]
    gate, of_candidate = cell.functions
    sums, rest = cell.part(x, 0, 2, "gates_input", step), cell.part(x, 2, 1, "candidate_input", step)
    both = cell.product(hidden, 0, 3, "recurrent", step) if late and hidden is not None else None
    if hidden is not None:
        recurrent = cell.product(hidden, 0, 2, "recurrent", step) if both is None else None
        added = recurrent if both is None else cell.part(both, 0, 2, "recurrent_gates", step)
        sums = cell.emit(relax.op.add(sums, added), "gates", step)
    gates = cell.emit(gate(sums), "gates_on", step)
    update, reset = cell.part(gates, 0, 1, "update_gate", step), cell.part(gates, 1, 1, "reset_gate", step)
    proposal = _proposal(cell, (hidden, both), reset, step)
    if proposal is not None:
        rest = cell.emit(relax.op.add(rest, proposal), "candidate_sum", step)
    candidate = cell.emit(of_candidate(rest), "candidate", step)
    if hidden is None:
        kept = cell.emit(relax.op.multiply(update, candidate), "kept", step)
        return cell.emit(relax.op.subtract(candidate, kept), "hidden", step), None
    change = cell.emit(relax.op.subtract(hidden, candidate), "change", step)
    kept = cell.emit(relax.op.multiply(update, change), "kept", step)
    return cell.emit(relax.op.add(candidate, kept), "hidden", step), None


def _proposal(cell: Cell, state: State, reset: Expr, step: int) -> Expr | None:
    """What the hidden state adds to a GRU's candidate; ``state`` is (hidden, its product with late reset)."""
    hidden, both = state
    if hidden is None:
        late = cell.late[2 * cell.size :]
        return cell.emit(relax.op.multiply(reset, constant(late)), "remembered", step) if late.any() else None
    if both is not None:
        part = cell.part(both, 2, 1, "recurrent_candidate", step)
        return cell.emit(relax.op.multiply(reset, part), "remembered", step)
    remembered = cell.emit(relax.op.multiply(reset, hidden), "remembered", step)
    return cell.product(remembered, 2, 1, "recurrent_candidate", step)


def _rnn(cell: Cell, x: Expr, state: State, step: int, _late: bool) -> State:
    """``h = f(sum)``."""
    if state[0] is not None:
        product = cell.product(state[0], 0, 1, "recurrent", step)
        x = cell.emit(relax.op.add(x, product), "sum", step)
    return cell.emit(cell.functions[0](x), "hidden", step), None


RECURRENT = dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent)
