"""UnifyScales: who shares parameters with whom."""

import pytest

from tvm_qplugin.core.spec import ACTIVATION, ACTIVATION16, FIXED, Annotation, OpAnnotation, SharedSpec, Spec
from tvm_qplugin.passes.unify_scales import unify


def operator(kind: str, output: str, *inputs: str, integer: bool = True) -> OpAnnotation:
    return OpAnnotation(kind, output, inputs, (output,), integer=integer)


def unified(operators: list[OpAnnotation], fixed: dict[str, Spec] | None = None) -> dict[str, Spec]:
    names = dict.fromkeys(name for op in operators for name in (*op.inputs, op.output))
    tensors: dict[str, Spec] = {name: ACTIVATION for name in names} | (fixed or {})
    return dict(unify(Annotation({op.output: op for op in operators}, tensors)).tensors)


@pytest.mark.parametrize("kind", ["max_pool2d", "avg_pool2d", "reshape", "pad", "resize2d", "clamp"])
def test_input_and_output_share(kind: str) -> None:
    assert unified([operator(kind, "y", "x")]) == {"x": SharedSpec("y"), "y": ACTIVATION}


@pytest.mark.parametrize("kind", ["conv2d", "add", "mean", "softmax", "lut"])
def test_operators_that_requantize_share_nothing(kind: str) -> None:
    assert unified([operator(kind, "y", "x")]) == {"x": ACTIVATION, "y": ACTIVATION}


def test_groups_grow_along_a_chain() -> None:
    specs = unified([operator("reshape", "b", "a"), operator("max_pool2d", "c", "b")])
    assert sorted(type(spec).__name__ for spec in specs.values()) == ["QuantSpec", "SharedSpec", "SharedSpec"]
    assert len({spec.tensor for spec in specs.values() if isinstance(spec, SharedSpec)}) == 1


def test_all_parts_of_a_concatenation_share() -> None:
    specs = unified([operator("concat", "y", "a", "b", "c")])
    assert specs == {"a": SharedSpec("y"), "b": SharedSpec("y"), "c": SharedSpec("y"), "y": ACTIVATION}


def test_a_fixed_part_is_requantized() -> None:
    specs = unified([operator("concat", "y", "a", "b")], {"a": FIXED["sigmoid"]})
    assert specs == {"a": FIXED["sigmoid"], "b": SharedSpec("y"), "y": ACTIVATION}


def test_parts_fixed_alike_fix_the_concatenation() -> None:
    specs = unified([operator("concat", "y", "a", "b")], dict.fromkeys(("a", "b"), FIXED["sigmoid"]))
    roots = [name for name, spec in specs.items() if spec == FIXED["sigmoid"]]
    assert len(roots) == 1
    assert all(spec == SharedSpec(roots[0]) for name, spec in specs.items() if name != roots[0])


def test_a_fixed_input_prevails() -> None:
    assert unified([operator("reshape", "y", "x")], {"x": FIXED["tanh"]})["y"] == SharedSpec("x")


def test_steps_of_a_cell_share() -> None:
    operators = [operator("add", "a_t0", "x"), operator("add", "a_t1", "a_t0"), operator("add", "y", "a_t1")]
    names = ("x", "a_t0", "a_t1", "y")
    annotation = Annotation({op.output: op for op in operators}, dict.fromkeys(names, ACTIVATION))
    found = unify(annotation, {"a_t0": (-9, 9), "a_t1": (-1, 1)}, {"a_t0": "a", "a_t1": "a"}).tensors
    assert found == {**dict.fromkeys(names, ACTIVATION), "a_t1": SharedSpec("a_t0")}


def test_steps_share_on_every_grid() -> None:
    operators = [operator("add", "a_t1", "a_t0"), operator("add", "y", "a_t1")]
    wide = dict.fromkeys(("a_t0", "a_t1", "y"), ACTIVATION16)
    tensors = {**wide, "a_t0 as int8": ACTIVATION, "a_t1 as int8": ACTIVATION}
    annotation = Annotation({op.output: op for op in operators}, tensors)
    found = unify(annotation, steps={"a_t0": "a", "a_t1": "a"}).tensors
    shared = {"a_t1": SharedSpec("a_t0"), "a_t1 as int8": SharedSpec("a_t0 as int8")}
    assert found == {**tensors, **shared}


def test_dtypes_are_never_mixed() -> None:
    specs = unified([operator("reshape", "y", "x")], {"x": ACTIVATION16})
    assert specs == {"x": ACTIVATION16, "y": ACTIVATION}


def test_float_operators_share_nothing() -> None:
    assert unified([operator("reshape", "y", "x", integer=False)]) == {"x": ACTIVATION, "y": ACTIVATION}
