"""What an integer model keeps in float: softmaxes of scores or over many positions, sums for norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tvm import relax

from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.core.spec import OpAnnotation
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import MOVEMENT, NORMS, WEIGHTED

MASKS = ("add", "subtract", "relax.where")
SCORES = (
    "attention scores stay in float: one step of int8 changes a weight by percents, and a mask takes up the "
    "whole range; a rule of a recipe can ask for it"
)
MASKED = (
    "masked scores of attention stay in float: the mask takes up the whole range; a rule of a recipe can "
    "ask for it"
)
RESIDUAL = (
    "it sums up what layers add, for norms in float: a step of int8 loses small addends; a rule of a recipe "
    "can ask for it"
)
MOST_WEIGHTS = 256
"""Of so many elements whose sum is 1 the mean is a step of int8."""
WEIGHTS = (
    "a softmax over {} positions that weighs others stays in float: most results are less than 1/256, the "
    "step of int8; a rule of a recipe can ask for it"
)


def float_weights(
    func: relax.Function, operators: Mapping[str, OpAnnotation], recipe: Recipe
) -> dict[str, OpAnnotation]:
    """Keep int8 softmaxes over many positions in float where something is computed from them.

    Expected positions of heat maps are such sums (soft-argmax). As a result of the model, or on the way to
    it, the largest of the values are what matters: they stay integer.
    """
    found = dict(operators)
    computing = {name for op in operators.values() if op.kind not in MOVEMENT for name in op.inputs}
    for op in reversed(list(operators.values())):
        if op.kind in MOVEMENT and op.output in computing:
            computing.update(op.inputs)
    for var, value in ir.definitions(func).items():
        made = found.get(var.name)
        if made is None or made.kind != "softmax" or made.scheme != "int8" or var.name not in computing:
            continue
        extent = ir.spec_of(var).shape[int(value.attrs.axis)]
        if extent > MOST_WEIGHTS:
            found[var.name] = _in_float(made, recipe, WEIGHTS.format(extent))
    return found


def float_scores(
    operators: Mapping[str, OpAnnotation], recipe: Recipe, always: bool
) -> dict[str, OpAnnotation]:
    """Keep softmaxes of products of two activations in float, with what is between.

    In int16x8, or unless ``always``, only those of masked scores. Operators that a rule of the recipe asks
    for stay as they are. The products themselves are integer: the ranges of scores are observed before masks.
    """
    found = dict(operators)
    behind: dict[str, set[str]] = {}
    for name, op in operators.items():
        if op.kind == "matmul":
            behind[name] = set()
            continue
        read = [behind[source] for source in op.inputs if source in behind]
        if not read or op.kind in WEIGHTED:
            continue
        path = set().union(*read, {name})
        if op.kind != "softmax":
            behind[name] = path
            continue
        masked = any(operators[step].kind in MASKS for step in path)
        if masked or (always and op.scheme == "int8"):
            reason = SCORES if op.scheme == "int8" else MASKED
            found |= {step: _in_float(operators[step], recipe, reason) for step in path}
    return found


def float_residuals(operators: Mapping[str, OpAnnotation], recipe: Recipe) -> dict[str, OpAnnotation]:
    """Sums of an int8 model that only norms in float and such sums read, kept in float.

    They are what the layers of a transformer add to, one after the other; none adds to an input of the
    model. Operators that a rule of the recipe asks for stay as they are.
    """
    found: dict[str, OpAnnotation] = {}
    for name, op in reversed(list(operators.items())):
        if not op.integer or (op.kind, op.scheme) != ("add", "int8"):
            continue
        readers = [other for other in operators.values() if name in other.inputs]
        norms = any(other.kind.endswith(NORMS) for other in readers)
        alone = all(other.kind.endswith(NORMS) or other.output in found for other in readers)
        computed = all(source in operators for source in op.inputs)
        if computed and norms and alone:
            found[name] = _in_float(op, recipe, RESIDUAL)
    return found


def _in_float(op: OpAnnotation, recipe: Recipe, reason: str) -> OpAnnotation:
    if not op.integer or recipe.asks_for(op.kind, op.output):
        return op
    return replace(op, integer=False, reason=reason, weight=None)
