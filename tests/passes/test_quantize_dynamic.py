"""QuantizeDynamic: int8 weights behind R.dequantize, and which stay float."""

import json

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.attrs import DYNAMIC
from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.passes.expand_weights import stored_arguments
from tvm_qplugin.passes.plan import REASONS
from tvm_qplugin.passes.quantize_dynamic import QuantizeDynamic

PER_TENSOR = Recipe("mine", "dynamic", per_channel=False)


@I.ir_module
class Layer:
    @R.function
    def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[127.0, 1.0], [-64.0, 2.0]], "float32"))
            y = R.add(a, R.const([3.0, 4.0], "float32"))
            R.output(y)
        return y


def run(mod: IRModule, recipe: Recipe | None = None, smallest: int = 1) -> IRModule:
    chosen = recipe or Recipe("dynamic", "dynamic")
    return tvm.transform.Sequential([QuantizeDynamic(chosen, smallest)])(mod)


def conv(groups: int) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", R.Tensor((1, 4, 4, 4), "float32"))
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 4 // groups)).astype("float32")
    layout = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
    with builder.function("main", [x]):
        with builder.dataflow():
            made = builder.emit(relax.op.nn.conv2d(x, relax.const(weight), groups=groups, **layout), "y")
            out = builder.emit_output(made)
        builder.emit_func_output(out)
    return builder.get()


def reasons(mod: IRModule) -> list[str]:
    return list(json.loads(str(mod["main"].attrs[REASONS])).values())


def test_a_dense_layer_has_a_scale_for_every_output():
    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
            R.func_attr({"qplugin.scheme": "dynamic"})
            with R.dataflow():
                w = R.dequantize(
                    R.const([[127, 64], [-64, 127]], "int8"),
                    R.const([1.0, 2 / 127], "float32"),
                    R.const([0, 0], "int8"),
                    axis=1,
                )
                a = R.matmul(x, w)
                y = R.add(a, R.const([3.0, 4.0], "float32"))
                R.output(y)
            return y

    assert_structural_equal(run(Layer), Expected)


@pytest.mark.parametrize(("groups", "axis"), [(1, None), (2, None), (4, 0)])
def test_one_scale_where_the_recipe_asks_for_it_but_not_in_depthwise(groups: int, axis: int | None):
    (weight,) = stored_arguments(run(conv(groups), PER_TENSOR)).values()
    assert weight.grid is not None and weight.grid.axis == axis
    (weight,) = stored_arguments(run(conv(groups))).values()
    assert weight.grid is not None and weight.grid.axis == 0 and abs(weight.array).max() == 127


def test_small_weights_stay_float():
    after = run(Layer, smallest=5)
    assert not stored_arguments(after)
    assert reasons(after) == ["its weight has 4 elements, fewer than 5"]


def test_layers_that_a_recipe_keeps_in_float():
    after = run(Layer, Recipe("mine", "dynamic", rules=(Rule("^y$", scheme="float"),)))
    assert not stored_arguments(after) and reasons(after) == ["the recipe keeps it in float"]


def test_rules_that_match_nothing():
    with pytest.raises(RecipeError, match="no kind of operator"):
        run(Layer, Recipe("mine", "dynamic", rules=(Rule(op="convolution", scheme="float"),)))


def test_products_of_two_tensors_are_named():
    def product(recipe: Recipe) -> object:
        builder = relax.BlockBuilder()
        x = relax.Var("x", R.Tensor((2, 2), "float32"))
        with builder.function("main", [x]):
            with builder.dataflow():
                out = builder.emit_output(builder.emit(relax.op.matmul(x, x), "y"))
            builder.emit_func_output(out)
        return run(builder.get(), recipe)["main"].attrs

    chosen = product(Recipe("dynamic", "dynamic"))
    assert json.loads(str(chosen[DYNAMIC])) == ["y"] and REASONS not in chosen
    kept = product(Recipe("mine", "dynamic", rules=(Rule(op="matmul", scheme="float"),)))
    assert DYNAMIC not in kept and json.loads(str(kept[REASONS])) == {"y": "the recipe keeps it in float"}
