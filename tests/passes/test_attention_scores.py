"""Scores of attention: float between integer products, masked or not, unless a rule asks for more."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import IRModule, relax

from tvm_qplugin.core.attrs import ANNOTATION
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.core.spec import Annotation, OpAnnotation
from tvm_qplugin.passes.annotate import Annotate
from tvm_qplugin.passes.attention_scores import MASKED, RESIDUAL, SCORES, WEIGHTS

WIDE = Recipe("wide", "int16x8")


def attention(masked: bool) -> IRModule:
    """``softmax(q @ k / 2 (+ m)) @ v`` and a softmax that is none of scores."""
    bb, op = relax.BlockBuilder(), relax.op
    shapes = {"q": (2, 4, 8), "k": (2, 8, 4), "v": (2, 4, 8), "m": (2, 1, 4)}
    q, k, v, m = params = [relax.Var(n, relax.TensorType(s, "float32")) for n, s in shapes.items()]
    with bb.function("main", params):
        with bb.dataflow():
            made = bb.emit(op.matmul(q, k), "scores")
            made = bb.emit(op.multiply(made, relax.const(0.5, "float32")), "scaled")
            made = bb.emit(op.add(made, m), "masked") if masked else made
            weights = bb.emit(op.nn.softmax(made), "weights")
            mixed = bb.emit(op.matmul(weights, v), "mixed")
            dense = bb.emit(op.matmul(mixed, relax.const(np.ones((8, 8), "float32"))), "dense")
            out = bb.emit_output(bb.emit(op.nn.softmax(dense), "y"))
        bb.emit_func_output(out)
    return bb.get()


def block(read_twice: bool) -> IRModule:
    """Two sums, each of what is before it and a layer of its norm; a layer may read the first one, too."""
    bb, op = relax.BlockBuilder(), relax.op
    square, ones = relax.const(np.ones((8, 8), "float32")), relax.const(np.ones(8, "float32"))
    x = relax.Var("x", relax.TensorType((2, 4, 8), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            made = bb.emit(op.matmul(x, square), "embedded")
            for name in ("first", "second"):
                normal = bb.emit(op.nn.rms_norm(made, ones), f"{name}_norm")
                made = bb.emit(op.add(made, bb.emit(op.matmul(normal, square), f"{name}_layer")), name)
                last = bb.emit(op.matmul(made, square), f"{name}_read") if read_twice else made
            out = bb.emit_output(bb.emit(op.nn.rms_norm(last, ones), "y"))
        bb.emit_func_output(out)
    return bb.get()


def operators(mod: IRModule, recipe: Recipe, wide_cells: bool = True) -> dict[str, OpAnnotation]:
    main = Annotate(recipe, wide_cells=wide_cells)(mod)["main"]
    return dict(Annotation.loads(str(main.attrs[ANNOTATION])).operators)


@pytest.mark.parametrize("masked", [False, True])
def test_scores_of_int8_models_are_float(masked: bool) -> None:
    found = operators(attention(masked), Recipe())
    steps = ["scaled", *(["masked"] if masked else []), "weights"]
    assert {name: op.reason for name, op in found.items() if not op.integer} == dict.fromkeys(steps, SCORES)
    assert {found[name].kind for name in ("scores", "mixed")} == {"matmul"}
    assert found["scores"].output_scheme == "int16x8"


@pytest.mark.parametrize(("recipe", "wide_cells"), [(WIDE, True), (Recipe(), False)])
def test_others_are_float_where_a_mask_takes_up_the_range(recipe: Recipe, wide_cells: bool) -> None:
    assert all(op.integer for op in operators(attention(False), recipe, wide_cells).values())
    found = operators(attention(True), recipe, wide_cells)
    reason = MASKED if recipe is WIDE else SCORES
    assert {op.reason for name, op in found.items() if not op.integer} == {reason}
    assert {name for name, op in found.items() if not op.integer} == {"scaled", "masked", "weights"}


def test_a_rule_asks_for_integers() -> None:
    recipe = Recipe(rules=(Rule("^(scaled|weights)$", scheme="int8"),))
    assert all(op.integer for op in operators(attention(False), recipe).values())


def positions(extent: int, expected: bool) -> IRModule:
    """The softmax of a map, as a result; with ``expected`` the mean of positions that it weighs."""
    bb, op = relax.BlockBuilder(), relax.op
    x = relax.Var("x", relax.TensorType((2, 4, extent // 4), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            flat = bb.emit(op.reshape(x, (2, extent)), "flat")
            map_ = bb.emit(op.reshape(bb.emit(op.nn.softmax(flat), "weights"), (2, 4, extent // 4)), "map")
            places = relax.const(np.arange(extent // 4, dtype="float32"))
            weighted = bb.emit(op.multiply(map_, places), "weighted") if expected else map_
            out = bb.emit_output(
                op.sum(weighted, [1, 2]) if expected else op.reshape(map_, (2, 2, extent // 2))
            )
        bb.emit_func_output(out)
    return bb.get()


def test_softmax_that_weighs_many_positions_is_float() -> None:
    found = operators(positions(512, True), Recipe())
    assert found["weights"].reason == WEIGHTS.format(512)
    for module in (positions(256, True), positions(512, False)):
        assert operators(module, Recipe())["weights"].integer
    assert operators(positions(512, True), WIDE)["weights"].integer
    assert operators(positions(512, True), Recipe(rules=(Rule("^weights$", scheme="int8"),)))[
        "weights"
    ].integer


@pytest.mark.parametrize("wide_cells", [False, True])
def test_sums_for_norms_are_float_where_no_layer_reads_them(wide_cells: bool) -> None:
    found = operators(block(False), Recipe(), wide_cells)
    sums = {found[name].reason for name in ("first", "second")}
    assert sums == ({RESIDUAL} if wide_cells else {""})
    assert all(op.integer for op in operators(block(True), Recipe()).values() if "norm" not in op.kind)


def test_a_rule_asks_for_sums_in_integers() -> None:
    found = operators(block(False), Recipe(rules=(Rule("^first$", scheme="int8"),)))
    assert found["first"].integer and not found["second"].integer
