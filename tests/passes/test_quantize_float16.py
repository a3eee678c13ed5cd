"""QuantizeFloat16: constants behind R.astype, and which stay as they are."""

import json

import numpy as np
import tvm
from tvm import IRModule
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.passes.expand_weights import stored_arguments
from tvm_qplugin.passes.plan import REASONS
from tvm_qplugin.passes.quantize_float16 import QuantizeFloat16


@I.ir_module
class Layer:
    @R.function
    def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[1.0, 0.1], [2.0, -3.0]], "float32"))
            y = R.add(a, R.const([3.0, 4.0], "float32"))
            R.output(y)
        return y


def run(mod: IRModule, recipe: Recipe | None = None, smallest: int = 3) -> IRModule:
    chosen = recipe or Recipe("fp16", "fp16")
    return tvm.transform.Sequential([QuantizeFloat16(chosen, smallest)])(mod)


def layer(weight: np.ndarray) -> IRModule:
    """The module above with another weight."""
    builder = tvm.relax.BlockBuilder()
    x = tvm.relax.Var("x", R.Tensor((2, 2), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            made = builder.emit(tvm.relax.op.matmul(x, tvm.relax.const(weight)), "a")
            out = builder.emit_output(made)
        builder.emit_func_output(out)
    return builder.get()


def test_large_constants():
    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
            R.func_attr({"qplugin.scheme": "fp16"})
            with R.dataflow():
                a_half1 = R.astype(R.const([[1.0, 0.1], [2.0, -3.0]], "float16"), "float32")
                a = R.matmul(x, a_half1)
                y = R.add(a, R.const([3.0, 4.0], "float32"))
                R.output(y)
            return y

    assert_structural_equal(run(Layer), Expected)


def test_values_that_float16_cannot_hold():
    weight = np.array([[1, 7e4], [2, 3]], "float32")
    after = run(layer(weight))
    assert not stored_arguments(after)
    (reason,) = json.loads(str(after["main"].attrs[REASONS])).values()
    assert reason == "its constant reaches 70000, and the largest float16 is 65504: kept as float32"
    weight[0, 1] = 65504
    assert len(stored_arguments(run(layer(weight)))) == 1


def test_infinities_are_kept():
    stored = stored_arguments(run(layer(np.array([[1, -np.inf], [2, 3]], "float32"))))
    assert [constant.array[0, 1] for constant in stored.values()] == [-np.inf]


def test_layers_that_a_recipe_keeps_in_float():
    recipe = Recipe("mine", "fp16", rules=(Rule(op="dense", scheme="float"),))
    assert not stored_arguments(run(Layer, recipe))
