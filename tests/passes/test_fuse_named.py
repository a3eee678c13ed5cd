"""FuseNamed: what FuseOps makes, with the names that it forgets."""

import json

import tvm
from tvm import relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.attrs import CALLS
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.fuse_named import FuseNamed

LEGAL = [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern()]


@I.ir_module
class Twice:
    """Two chains of equal functions, and a function of two outputs."""

    @R.function
    def main(
        x: R.Tensor((4, 4), "float32"),
    ) -> R.Tuple(R.Tensor((4, 2), "float32"), R.Tensor((4, 4), "float32")):
        with R.dataflow():
            sum1 = R.add(x, R.const([1.0, 2, 3, 4], "float32"))
            relu1 = R.nn.relu(sum1)
            pool = R.max(relu1, axis=[1], keepdims=True)
            sum2 = R.add(relu1, pool)
            relu2 = R.nn.relu(sum2)
            halves = R.split(relu2, 2, axis=1)
            right = halves[1]
            R.output(right, relu2)
        return (right, relu2)


@I.ir_module
class Fields:
    """A group whose result is a tuple, read outside of it."""

    @R.function
    def main(x: R.Tensor((4, 4), "float32")) -> R.Tensor((4, 2), "float32"):
        with R.dataflow():
            relu0 = R.nn.relu(x)
            halves = R.split(relu0, 2, axis=1)
            left = halves[0]
            right = halves[1]
            pool = R.max(left, axis=[1], keepdims=True)
            sum1 = R.add(right, pool)
            relu1 = R.nn.relu(sum1)
            R.output(relu1)
        return relu1


@I.ir_module
class Siblings:
    """One function, called twice with the same operand."""

    @R.function
    def main(x: R.Tensor((4, 4), "float32")) -> R.Tensor((4, 4), "float32"):
        with R.dataflow():
            first = R.add(x, R.const([1.0, 2, 3, 4], "float32"))
            second = R.add(x, R.const([5.0, 6, 7, 8], "float32"))
            peak = R.max(second, axis=[1], keepdims=True)
            other = R.max(first, axis=[1], keepdims=True)
            y = R.multiply(peak, other)
            z = R.multiply(y, x)
            R.output(z)
        return z


def legal(mod: tvm.IRModule = Twice) -> tvm.IRModule:
    return tvm.transform.Sequential(LEGAL)(mod)


def test_calls_of_one_function_keep_their_own_names():
    calls = json.loads(FuseNamed()(legal(Siblings))["main"].attrs[CALLS])
    assert calls == [
        ["fused_add_max", ["first", "other"]],
        ["fused_add_max", ["second", "peak"]],
        ["fused_multiply_multiply1", ["y", "z"]],
    ]


def test_names_are_found_behind_the_fields_of_a_tuple():
    calls = json.loads(FuseNamed()(legal(Fields))["main"].attrs[CALLS])
    assert [names for _, names in calls] == [["relu0", "halves"], ["pool"], ["sum1", "relu1"]]


def test_fusion_is_tvms():
    after = FuseNamed()(legal())
    assert_structural_equal(ir.with_main_attr(after, CALLS, None), relax.transform.FuseOps()(legal()))


def test_every_call_has_the_names_that_it_stands_for():
    after = FuseNamed()(legal())
    calls = json.loads(after["main"].attrs[CALLS])
    assert calls == [
        ["fused_add_relu", ["sum1", "relu1"]],
        ["max", ["pool"]],
        ["fused_add1_relu", ["sum2", "relu2"]],
        ["fused_split", ["halves", "right"]],
    ]
    assert {name for name, _ in calls} <= {var.name_hint for var in after.get_global_vars()}
