"""The kernel calls in a manifest: in order, named like the model, each operator in one of them."""

import numpy as np
import pytest
from tvm import IRModule

import tvm_qplugin as qp
from tvm_qplugin import demo
from tvm_qplugin.artifact import Artifact
from tvm_qplugin.core.attrs import MERGED
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.schedules.x86_kernel import TOO_LARGE

MIXED = {"name": "mixed", "scheme": "int8", "rules": [{"scope": "residual_second", "scheme": "float"}]}
RECIPES = {"float": None, "int8": "int8", "mixed": MIXED, "int16x8": "int16x8", "fp16": "fp16"}


@pytest.fixture(scope="module", params=RECIPES)
def module(request) -> IRModule:
    loaded, recipe = qp.load(demo.model_path()), RECIPES[request.param]
    return (
        loaded if recipe is None else qp.quantize(loaded, calibration=demo.calibration()[:8], recipe=recipe)
    )


@pytest.fixture(scope="module", params=[True, False], ids=["merged", "separate"])
def built(request, module) -> Artifact:
    return qp.build(module, merge=request.param)


def test_the_machine_makes_these_calls(built):
    found = []

    def note(_function, name, before, _result, *_args):
        if before and not name.startswith("vm.builtin."):
            found.append(name)
        return 0

    machine = built.machine()
    machine.set_instrument(note)
    machine["main"](*built.tensors())
    assert found == [call.function for call in built.manifest.calls]


def test_each_operator_is_in_one_call_but_views(built):
    operators = built.manifest.operators
    positions = [position for call in built.manifest.calls for position in call.operators]
    assert len(positions) == len(set(positions)) and positions == sorted(positions)
    left = [operators[i] for i in set(range(len(operators))) - set(positions)]
    assert {op.op for op in left} <= {"reshape"}


def test_calls_are_named_like_their_operators(built):
    operators = built.manifest.operators
    for call in built.manifest.calls:
        assert call.operators, call
        assert call.tensor.startswith(operators[call.operators[-1]].name)


def test_kernels_and_multiply_adds(built):
    operators = built.manifest.operators
    assert sum(op.macs for op in operators) == 5_028_096
    for call in built.manifest.calls:
        macs = sum(operators[position].macs for position in call.operators)
        if call.kernel != MERGED:
            kernel = str(call.kernel)[1:].removesuffix("_add").removesuffix("16")
            assert bool(macs) == (kernel in ("conv2d", "dense")), call


def test_merged_calls_have_the_dtype_of_their_largest_kernel(module):
    together, apart = (qp.build(module, merge=merge).manifest for merge in (True, False))
    for call in (call for call in together.calls if call.kernel == MERGED):
        inside = [single for single in apart.calls if set(single.operators) <= set(call.operators)]
        largest = max(inside, key=lambda single: sum(apart.operators[i].macs for i in single.operators))
        assert call.dtype == largest.dtype


@pytest.mark.parametrize(("target", "together"), [("x86-64-v4-vnni", True), ("x86-64", False)])
def test_an_addition_is_named_beside_the_convolution_that_does_it(target, together):
    module = qp.quantize(demo.model_path(), calibration=demo.calibration()[:8], target=target)
    manifest = qp.build(module, target=target, merge=False).manifest
    (add,) = (i for i, op in enumerate(manifest.operators) if op.op == "add")
    (call,) = (call for call in manifest.calls if add in call.operators)
    names = [manifest.operators[i].op for i in call.operators]
    assert names == (["conv2d", "add"] if together else ["add"])
    assert manifest.operators[add].kernel == call.kernel == ("qconv2d_add" if together else "qadd")


def test_bytes_are_those_of_operands_and_result():
    module = qp.load(demo.model_path())
    artifact = qp.build(module, target="x86-64", merge=False)
    call = next(call for call in artifact.manifest.calls if call.function == "max_pool2d")
    assert call.bytes == np.zeros((1, 8, 8, 64), "float32").nbytes + np.zeros((1, 4, 4, 64), "float32").nbytes
    assert call.dtype == "float32" and call.kernel is None


def test_conversions_that_the_model_does_not_have_have_no_operator():
    """An int8 output of a model that stores uint8 inside is shifted by a kernel of its own."""
    module = qp.quantize(demo.model_path(), calibration=demo.calibration()[:8], io="int8")
    last = qp.build(module, merge=False).manifest.calls[-1]
    assert (last.kernel, last.operators) == ("requantize", ())


WIDE = "vpmaddwd, 256 bits"


@pytest.mark.parametrize(
    ("target", "reduce_range", "expected"),
    [
        ("x86-64-v4-vnni", False, {"vpdpbusd, 512 bits"}),
        ("x86-64-v3", False, {WIDE, WIDE + TOO_LARGE, "vpmaddubsw, 256 bits"}),
        ("x86-64-v3", True, {WIDE, "vpmaddubsw, 256 bits"}),
        ("x86-64", False, set()),
    ],
)
def test_calls_name_the_instruction_that_multiplies(target, reduce_range, expected):
    recipe = Recipe(reduce_range=reduce_range)
    module = qp.quantize(demo.model_path(), calibration=demo.calibration()[:8], recipe=recipe)
    apart, together = (qp.build(module, target=target, merge=merge).manifest for merge in (False, True))
    assert {call.instruction for call in apart.calls} == {None, *expected}
    merged = {call.instruction for call in together.calls if call.kernel == MERGED and call.instruction}
    assert {name for text in merged for name in text.split("; ")} <= expected
