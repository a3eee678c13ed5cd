"""Tables of unary functions as the TFLite operators that give the same 256 results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tvm_qplugin.core import lite, lite16
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes.lut import UNARY
from tvm_qplugin.passes.match_int16 import UNIT_GRID
from tvm_qplugin.tflite.node import ACTIVATIONS, Node
from tvm_qplugin.tflite.writer import Value

Grids = tuple[QuantParams, QuantParams]


@dataclass(frozen=True)
class Candidate:
    """An operator, what LiteRT computes by it, and its options."""

    code: str
    table: Callable[[QuantParams, QuantParams], Array | None]
    options: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


def table(node: Node) -> Value:
    """The first operator whose results are exactly those of the table."""
    x, results = node.value(0), node.array(1)
    if x.grid is None:
        raise node.refuse("the scale of its input is not known")
    candidates = _candidates16 if node.wide else _candidates
    for candidate in candidates(node, (x.grid, node.grid)):
        found = candidate.table(x.grid, node.grid)
        if found is not None and np.array_equal(found, results):
            return node.emit(candidate.code, [x], candidate.options, **candidate.fields)
    names = ", ".join(node.function.get("operators", ())) or "its table"
    raise node.refuse(
        f"no TFLite operator computes {names} with the same integers: use an activation that TFLite has "
        "(relu, relu6, leaky relu, hard swish, sigmoid, tanh, exp, gelu), or build() for model.so"
    )


def _candidates(node: Node, grids: Grids) -> Iterator[Candidate]:
    """Operators in the order of preference; fixed outputs only where the grid is TFLite's."""
    yield Candidate("QUANTIZE", lite.requantized)
    for name, bounds in ACTIVATIONS.items():
        if name != "NONE":
            yield Candidate(name, _clipped(*bounds))
    if "alpha" in node.function:
        alpha = float(node.function["alpha"])
        fields = {"alpha": alpha}
        yield Candidate("LEAKY_RELU", lambda a, b: lite.leaky_relu(alpha, a, b), "LeakyReluOptions", fields)
    yield Candidate("HARD_SWISH", lite.hard_swish)
    for code, (scale, zero_point) in {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}.items():
        if grids[1].same(QuantParams.of(scale, zero_point)):
            yield Candidate(code, _filled({"LOGISTIC": "sigmoid", "TANH": "tanh"}[code]))
    yield Candidate("EXP", _filled("exp"), "ExpOptions")
    yield Candidate("GELU", _filled("nn.gelu"), "GeluOptions", {"approximate": False})
    yield Candidate("GELU", _filled("nn.gelu_tanh"), "GeluOptions", {"approximate": True})


def _candidates16(node: Node, grids: Grids) -> Iterator[Candidate]:
    """The same for int16."""
    yield Candidate("QUANTIZE", lite16.requantized)
    for name in ("RELU", "RELU6"):
        yield Candidate(name, partial(lite16.clipped, *ACTIVATIONS[name]))
    if "alpha" in node.function:
        fields = {"alpha": float(node.function["alpha"])}
        yield Candidate("LEAKY_RELU", partial(lite16.leaky_relu, fields["alpha"]), "LeakyReluOptions", fields)
    if grids[1].same(UNIT_GRID):
        yield Candidate("LOGISTIC", lite16.logistic)
        yield Candidate("TANH", lite16.tanh)
    yield Candidate("EXP", partial(lite16.smooth, UNARY["exp"]), "ExpOptions")


def _clipped(low: float | None, high: float | None) -> Callable[[QuantParams, QuantParams], Array]:
    return lambda source, target: lite.clipped(low, high, source, target)


def _filled(name: str) -> Callable[[QuantParams, QuantParams], Array]:
    return lambda source, target: lite.float_table(UNARY[name], source, target)
