"""UNIDIRECTIONAL_SEQUENCE_LSTM of ``.tflite`` files: one integer kernel, or a cell unrolled in float.

The import has no state: every call starts from zeros, as LiteRT after ``reset_all_variables``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.lstm import CELL_EXPONENTS, GATES
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.passes import ir
from tvm_qplugin.tflite.file import STATES, TfliteOperator
from tvm_qplugin.tflite.reader_graph import Graph

INPUT_WEIGHTS, RECURRENT_WEIGHTS, BIASES = range(1, 5), range(5, 9), range(12, 16)
HIDDEN_INTERMEDIATE = 4
_VARIANTS = {
    "peephole connections": range(9, 12),
    "a projection": range(16, 18),
    "layer normalization": range(20, 24),
}


def lstm(graph: Graph, op: TfliteOperator) -> None:
    """The sequence [N, T, I] becomes hidden states [N, T, C]."""
    _check(graph, op)
    _check_shapes(graph, op)
    if graph.grid(op.inputs[0]) is None:
        graph.define(op.outputs[0], _Unrolled.of(graph, op).sequence())
    else:
        _integer(graph, op)


def _check(graph: Graph, op: TfliteOperator) -> None:
    """Refuse what neither form computes, by name."""
    given = {slot for slot, index in enumerate(op.inputs) if index >= 0}
    found = [what for what, slots in _VARIANTS.items() if given & set(slots)]
    if not {INPUT_WEIGHTS[0], RECURRENT_WEIGHTS[0]} <= given:
        found.append("a coupled input and forget gate (no weights of the input gate)")
    if graph.option(op, "time_major", False):
        found.append("time as the first axis")
    if (activation := op.options["fused_activation_function"]) != "TANH":
        found.append(f"the activation {activation}")
    if any(index < 0 or not graph.tensor(index).variable for index in op.inputs[STATES]):
        found.append("initial states that are no variables")
    if graph.option(op, "diagonal_recurrent_tensors", False):
        found.append("diagonal recurrent weights")
    if found:
        raise graph.error(
            op,
            f"it has {', '.join(found)}; expected the plain cell with TANH and the batch as the first axis: "
            "export the model with such a layer, or unroll it",
        )


def _check_shapes(graph: Graph, op: TfliteOperator) -> None:
    """Sizes must fit each other: the kernel reads what they say."""
    batch, steps, features = graph.shape(op.inputs[0])
    cells = graph.shape(op.inputs[INPUT_WEIGHTS[0]])[0]
    slots = (*INPUT_WEIGHTS, *RECURRENT_WEIGHTS, *BIASES)
    expected = [*[(cells, features)] * 4, *[(cells, cells)] * 4, *[(cells,)] * 4, (batch, steps, cells)]
    found = [graph.shape(index) for index in (*(op.inputs[slot] for slot in slots), op.outputs[0])]
    if found != expected:
        raise graph.error(
            op,
            f"weights, biases and output have shapes {found}; for input {[batch, steps, features]} and "
            f"{cells} cells expected {expected}: the file is damaged, export it again",
        )


def _stacked(graph: Graph, op: TfliteOperator, slots: range, dtype: str, what: str) -> Array:
    """The constants of the four gates as one array."""
    values = [graph.constant(op.inputs[slot]) if op.inputs[slot] >= 0 else None for slot in slots]
    arrays = [array for array in values if array is not None]
    kinds = sorted({str(array.dtype) for array in arrays})
    if len(arrays) < len(values) or kinds != [dtype]:
        said = "/".join(kinds) or "not constant"
        raise graph.error(
            op, f"its {what} are {said}, expected {dtype} constants for every gate; convert the model again"
        )
    return np.stack(arrays)


def _integer(graph: Graph, op: TfliteOperator) -> None:
    """A call of the kernel ``qlstm`` between the grids of input and output."""
    source, target = op.inputs[0], op.outputs[0]
    grid, out = graph.grid(source), graph.grid(target)
    if grid is None or out is None or {grid.dtype, out.dtype} != {"int8"}:
        raise graph.error(op, "its input or output is not int8; convert the model to int8, or to float")
    constants = [
        _stacked(graph, op, INPUT_WEIGHTS, "int8", "input weights"),
        _stacked(graph, op, RECURRENT_WEIGHTS, "int8", "recurrent weights"),
        _stacked(graph, op, BIASES, "int32", "biases"),
    ]
    params = {
        "in_scale": float(grid.scale),
        "in_zp": int(grid.zero_point),
        "out_scale": float(out.scale),
        "out_zp": int(out.zero_point),
        "input_scales": _scales(graph, op, INPUT_WEIGHTS),
        "recurrent_scales": _scales(graph, op, RECURRENT_WEIGHTS),
        "cell_exponent": _cell_exponent(graph, op, out),
        "cell_clip": float(op.options["cell_clip"]),
    }
    name = graph.names[target]
    args = [graph.codes(source), *map(ir.const, constants)]
    spec = TensorSpec(graph.shape(target), "int8")
    kernel = graph.kernel(build_kernel("qlstm", params, [ir.spec_of(arg) for arg in args], spec))
    var = graph.emit(relax.call_tir(kernel, args, relax.TensorType(spec.shape, spec.dtype)), name)
    graph.receive(target, var)


def _scales(graph: Graph, op: TfliteOperator, slots: range) -> list[float]:
    grids = [graph.grid(op.inputs[slot]) for slot in slots]
    if any(grid is None or grid.axis is not None or int(grid.zero_point) for grid in grids):
        raise graph.error(op, "its weights need one scale each and zero point 0; convert the model again")
    return [float(grid.scale) for grid in grids if grid is not None]


def _cell_exponent(graph: Graph, op: TfliteOperator, out: QuantParams) -> int:
    """The cell state's scale as a power of 2, once the hidden state's grids are seen to be the output's."""
    hidden, cell = (graph.tensor(index) for index in op.inputs[STATES])
    middle = graph.tensor(op.intermediates[HIDDEN_INTERMEDIATE]).quant
    if hidden.quant is None or middle is None or not (hidden.quant.same(out) and middle.same(out)):
        raise graph.error(
            op, "its output, its hidden state and intermediate 4 differ in their parameters; convert again"
        )
    scale = 0.0 if cell.quant is None or cell.dtype != "int16" else float(cell.quant.scale)
    exponent = math.frexp(scale)[1] - 1
    if scale != 2.0**exponent or exponent not in CELL_EXPONENTS:
        raise graph.error(
            op,
            f"its cell state is {cell.dtype} with scale {scale}; expected int16 with a power of 2 from "
            f"2**{CELL_EXPONENTS[0]} to 2**{CELL_EXPONENTS[-1]}: convert again",
        )
    return exponent


@dataclass(frozen=True)
class _Unrolled:
    """The float cell, step by step; gates are called ``<name>_t<step>_<gate>``."""

    graph: Graph
    name: str
    x: relax.Expr
    weights: Array
    recurrent: Array
    biases: Array
    clip: float

    @classmethod
    def of(cls, graph: Graph, op: TfliteOperator) -> _Unrolled:
        """Read the constants; those of other dtypes are refused."""
        return cls(
            graph,
            graph.names[op.outputs[0]],
            graph.real(op.inputs[0]),
            _stacked(graph, op, INPUT_WEIGHTS, "float32", "input weights"),
            _stacked(graph, op, RECURRENT_WEIGHTS, "float32", "recurrent weights"),
            _stacked(graph, op, BIASES, "float32", "biases"),
            float(op.options["cell_clip"]),
        )

    def sequence(self) -> relax.Expr:
        """All hidden states [N, T, C]."""
        batch, steps, _ = ir.spec_of(self.x).shape
        state: relax.Expr | None = None
        hidden: relax.Expr | None = None
        outputs = []
        for step in range(steps):
            hidden, state = self._step(step, hidden, state)
            shape = (batch, 1, self.biases.shape[1])
            outputs.append(self.graph.emit(relax.op.reshape(hidden, shape), f"{self.name}_t{step}_row"))
        return relax.op.concat(outputs, 1)

    def _emit(self, expr: relax.Expr, step: int, what: str) -> relax.Expr:
        return self.graph.emit(expr, f"{self.name}_t{step}_{what}")

    def _step(
        self, step: int, hidden: relax.Expr | None, state: relax.Expr | None
    ) -> tuple[relax.Expr, relax.Expr]:
        """The next hidden state and cell state, both [N, C]; None stands for zeros."""
        batch, _, features = ir.spec_of(self.x).shape
        row = self._emit(relax.op.strided_slice(self.x, [1], [step], [step + 1], [1]), step, "slice")
        x = self._emit(relax.op.reshape(row, (batch, features)), step, "x")
        gates: dict[str, Any] = {gate: self._gate(step, g, x, hidden) for g, gate in enumerate(GATES)}
        new = self._emit(gates["input"] * gates["cell"], step, "entered")
        if state is not None:
            new = self._emit(self._emit(gates["forget"] * state, step, "kept") + new, step, "sum")
        if self.clip > 0:
            new = self._emit(relax.op.clip(new, -self.clip, self.clip), step, "state")
        squashed = self._emit(relax.op.tanh(new), step, "squashed")
        return self._emit(gates["output"] * squashed, step, "hidden"), new

    def _gate(self, step: int, g: int, x: relax.Expr, hidden: relax.Expr | None) -> relax.Expr:
        """Products with the input and the hidden state, the bias, the activation."""
        gate = GATES[g]
        total = self._product(x, self.weights[g], step, f"{gate}_x")
        total = self._emit(relax.op.add(total, ir.const(self.biases[g])), step, f"{gate}_biased")
        if hidden is not None:
            other = self._product(hidden, self.recurrent[g], step, f"{gate}_h")
            total = self._emit(relax.op.add(total, other), step, f"{gate}_sum")
        activation = relax.op.tanh if gate == "cell" else relax.op.sigmoid
        return self._emit(activation(total), step, gate)

    def _product(self, x: relax.Expr, weight: Array, step: int, what: str) -> relax.Expr:
        return self._emit(relax.op.matmul(x, ir.const(np.ascontiguousarray(weight.T))), step, what)
