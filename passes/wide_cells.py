"""What an int8 model keeps in int16 or in float: recurrent cells, what is before them, what floats read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from tvm import relax

from tvm_qplugin.core.attrs import STEPS
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.core.spec import OpAnnotation
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import MOVEMENT, WEIGHTED, obstacle16

FRONT = "it comes before a recurrent cell, whose state sums up its errors; a rule of a recipe can ask for it"


def steps_of(func: relax.Function) -> dict[str, str]:
    """Tensors of unrolled cells, and what each of them is in every step; empty without cells."""
    found: dict[str, str] = json.loads(str((func.attrs or {}).get(STEPS, "{}")))
    return found


def widened(func: relax.Function, operators: Mapping[str, OpAnnotation]) -> dict[str, OpAnnotation]:
    """Operators with the schemes that they have among wide tensors: products read int8 and give int16."""
    wide = _wide_tensors(func, operators)
    return {name: _widened(op, wide) for name, op in operators.items()}


def _widened(op: OpAnnotation, wide: set[str]) -> OpAnnotation:
    if not op.integer or op.scheme == "int16x8" or not wide & {*op.inputs, op.output}:
        return op
    if op.kind in WEIGHTED:
        return replace(op, result="int16x8") if op.output in wide else op
    reason = obstacle16(op.kind)
    if reason:
        return replace(op, integer=False, reason=f"{reason}, and its cell is in int16")
    return replace(op, scheme="int16x8")


def _wide_tensors(func: relax.Function, operators: Mapping[str, OpAnnotation]) -> set[str]:
    """Tensors that an int8 model keeps in int16.

    A state that is added to at every step loses what is smaller than its resolution, and a gate's sum has a
    range far beyond where the gate is steep: those of cells are int16 (as in LiteRT's integer LSTM), and so
    is what operators without a weight compute of them or for them. So is, in a model with attention, the
    result of a product that only float operators read (residual sums, scores): nothing there has to be
    narrow.
    """
    wide = set(steps_of(func))
    if any(op.kind == "matmul" for op in operators.values()):
        wide |= _read_by_floats(operators, {var.name for var in ir.output_vars(func)})
    found = -1
    while found != len(wide):
        found = len(wide)
        for op in operators.values():
            tensors = {*op.inputs, op.output}
            if op.integer and op.kind not in WEIGHTED and tensors & wide:
                wide |= tensors
    return wide


SPREADING = frozenset({"power", "square", "exp", "log", "sqrt", "rsqrt"})
"""Functions behind or before which small values matter that the grid of the largest one does not have."""


def float_front(
    func: relax.Function, operators: Mapping[str, OpAnnotation], recipe: Recipe
) -> dict[str, OpAnnotation]:
    """Keep in float what is computed before the first cell, unless a rule of the recipe asks for more.

    An int16x8 model whose front is integer as a whole stays integer, but for spectra and the like.
    """
    front = _front(set(steps_of(func)), operators)
    known = [operators[name] for name in front]
    if all(op.integer and op.scheme == "int16x8" and op.kind not in SPREADING for op in known):
        return dict(operators)
    asked = {name for name in front if recipe.asks_for(operators[name].kind, name)}
    return {
        name: replace(op, integer=False, reason=FRONT, weight=None)
        if op.integer and name in front - asked
        else op
        for name, op in operators.items()
    }


def _front(cells: set[str], operators: Mapping[str, OpAnnotation]) -> set[str]:
    """What computes for a cell and depends on none."""
    behind: set[str] = set()
    for name, op in operators.items():
        if {name, *op.inputs} & (behind | cells):
            behind.add(name)
    needed = {i for name in cells & set(operators) for i in operators[name].inputs}
    for name, op in reversed(list(operators.items())):
        if name in needed:
            needed.update(op.inputs)
    return {name for name, op in operators.items() if name in needed - behind and op.kind not in MOVEMENT}


def _read_by_floats(operators: Mapping[str, OpAnnotation], outputs: set[str]) -> set[str]:
    """Results of integer matrix products that end, moved or not, in float operators and are no outputs."""
    into: dict[str, bool] = {}
    for name in reversed(list(operators)):
        readers = [other for other in operators.values() if name in other.inputs]
        into[name] = (
            bool(readers)
            and name not in outputs
            and all(
                into[other.output] if other.integer and other.kind in MOVEMENT else not other.integer
                for other in readers
            )
        )
    return {
        name for name, op in operators.items() if op.integer and op.kind in ("dense", "matmul") and into[name]
    }
