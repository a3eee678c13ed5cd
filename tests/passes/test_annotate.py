"""Annotate: which bindings become one operator, and which of them become integer."""

import pytest
import tvm
from tvm import IRModule
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.attrs import ANNOTATION
from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.core.spec import Annotation, FixedSpec, OpAnnotation
from tvm_qplugin.passes.annotate import Annotate
from tvm_qplugin.targets import find_profile


def annotate(mod: IRModule, recipe: Recipe | None = None) -> Annotation:
    passes = tvm.transform.Sequential([Annotate(recipe or Recipe(), find_profile("host").explain)])
    return Annotation.loads(passes(mod)["main"].attrs[ANNOTATION])


def only(mod: IRModule, recipe: Recipe | None = None) -> OpAnnotation:
    (op,) = annotate(mod, recipe).operators.values()
    return op


@I.ir_module
class Dense:
    @R.function
    def main(x: R.Tensor((2, 4), "float32")) -> R.Tensor((2, 3), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[1.0, 1.0, 1.0]] * 4, "float32"))
            b = R.add(a, R.const([1.0, 2.0, 3.0], "float32"))
            c = R.nn.relu(b)
            R.output(c)
        return c


def test_bias_and_activation_belong_to_the_layer():
    op = only(Dense)
    assert (op.kind, op.inputs, op.members, op.output) == ("dense", ("x",), ("a", "b", "c"), "c")
    assert op.integer and op.weight is not None and op.weight.axis == 1


def test_only_what_a_layer_reads_and_writes_gets_a_range():
    assert list(annotate(Dense).tensors) == ["x", "c"]


def test_per_tensor_weights_by_a_rule():
    weight = only(Dense, Recipe(rules=(Rule(op="dense", per_channel=False),))).weight
    assert weight is not None and weight.axis is None


def test_a_recipe_keeps_layers_in_float():
    op = only(Dense, Recipe(rules=(Rule(scope="^c$", scheme="float"),)))
    assert not op.integer and op.reason == "the recipe keeps it in float"


def test_the_class_of_an_error_survives_the_pass():
    with pytest.raises(RecipeError, match=r"'conv3d', which is no kind of operator; use one of .*conv2d"):
        annotate(Dense, Recipe(rules=(Rule(op="conv3d"),)))


def test_a_value_with_two_readers_ends_the_layer():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tuple(
            R.Tensor((2, 3), "float32"), R.Tensor((2, 3), "float32")
        ):
            with R.dataflow():
                a = R.matmul(x, R.const([[1.0, 1.0, 1.0]] * 3, "float32"))
                b = R.nn.relu(a)
                R.output(a, b)
            return (a, b)

    kinds = {op.output: (op.kind, op.members) for op in annotate(Mod).operators.values()}
    assert kinds == {"a": ("dense", ("a",)), "b": ("clamp", ("b",))}


def test_an_elementwise_chain_is_one_table():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 3), "float32"):
            with R.dataflow():
                a = R.add(x, R.const(3.0, "float32"))
                b = R.clip(a, 0, 6)
                c = R.multiply(x, b)
                R.output(c)
            return c

    op = only(Mod)
    assert (op.kind, op.inputs, op.members) == ("lut", ("x",), ("a", "b", "c"))


def test_softmax_fixes_its_output():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 3), "float32"):
            with R.dataflow():
                a = R.nn.softmax(x)
                R.output(a)
            return a

    assert annotate(Mod).tensors["a"] == FixedSpec(1 / 256, -128)


def test_moving_float_data_stays_float():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((3, 2), "float32"):
            with R.dataflow():
                a = R.permute_dims(x)
                R.output(a)
            return a

    op = only(Mod)
    assert not op.integer and op.reason == "it only moves data of the model's input"
    assert not annotate(Mod).tensors


def test_what_is_unknown_is_named():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2,), "float32"):
            with R.dataflow():
                a = R.prod(x, axis=[1])
                R.output(a)
            return a

    assert only(Mod).reason == "relax.prod has no integer kernel"


def test_inputs_are_quantized_before_they_are_moved():
    """For integer readers; a transposition is done on the way."""

    @I.ir_module
    class Moved:
        @R.function
        def main(x: R.Tensor((2, 6), "float32"), w: R.Tensor((2, 6), "float32")) -> R.Tuple(
            R.Tensor((4, 2), "float32"), R.Tensor((3, 4), "float32")
        ):
            with R.dataflow():
                t = R.permute_dims(x, axes=[1, 0])
                a = R.reshape(t, (4, 3))
                b = R.strided_slice(a, (1,), (0,), (2,))
                y = R.matmul(b, R.const([[1.0, 2.0], [3.0, 4.0]], "float32"))
                z = R.reshape(w, (3, 4))
                R.output(y, z)
            return (y, z)

    found = {op.output: op.integer for op in annotate(Moved).operators.values()}
    assert found == {"t": False, "a": True, "b": True, "y": True, "z": False}


def test_a_sum_with_a_transposed_input_is_integer():
    @I.ir_module
    class Shifted:
        @R.function
        def main(x: R.Tensor((1, 2, 3, 3), "float32")) -> R.Tensor((1, 3, 3, 2), "float32"):
            with R.dataflow():
                moved = R.permute_dims(x, axes=[0, 2, 3, 1])
                shifted = R.add(moved, R.const([1.0, 2.0], "float32"))
                out = R.nn.relu(shifted)
                R.output(out)
            return out

    found = {name: op.integer for name, op in annotate(Shifted).operators.items()}
    assert found == {"moved": False, "out": True}
