"""InsertQDQ: pairs, weights and biases; and what it leaves alone."""

import json

import numpy as np
import pytest
import tvm
from tvm import IRModule
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import Annotate
from tvm_qplugin.passes.insert_qdq import InsertQDQ
from tvm_qplugin.passes.plan import REASONS
from tvm_qplugin.passes.unify_scales import UnifyScales

Ranges = dict[str, tuple[float, float]]


def insert(mod: IRModule, ranges: Ranges, recipe: Recipe | None = None) -> IRModule:
    return tvm.transform.Sequential([Annotate(recipe or Recipe()), UnifyScales(), InsertQDQ(ranges)])(mod)


def test_a_dense_layer_with_bias():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 1), "float32"):
            with R.dataflow():
                a = R.matmul(x, R.const([[127.0], [-127.0]], "float32"))
                y = R.add(a, R.const([3.0], "float32"))
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 1), "float32"):
            with R.dataflow():
                x_q = R.quantize(x, R.const(1.0, "float32"), R.const(0, "int8"), axis=-1, out_dtype="int8")
                x_dq = R.dequantize(x_q, R.const(1.0, "float32"), R.const(0, "int8"), axis=-1)
                w = R.dequantize(
                    R.const([[127], [-127]], "int8"), R.const([1.0], "float32"), R.const([0], "int8"), axis=1
                )
                a = R.matmul(x_dq, w)
                b = R.dequantize(
                    R.const([3], "int32"), R.const([1.0], "float32"), R.const([0], "int32"), axis=0
                )
                y = R.add(a, b)
                y_q = R.quantize(y, R.const(2.0, "float32"), R.const(-128, "int8"), axis=-1, out_dtype="int8")
                gv = R.dequantize(y_q, R.const(2.0, "float32"), R.const(-128, "int8"), axis=-1)
                R.output(gv)
            return gv

    after = insert(Before, {"x": (-128, 127), "y": (0, 510)})
    tvm.ir.assert_structural_equal(without_alias(after), Expected)


@pytest.mark.parametrize("recipe", [Recipe(reduce_range=True), Recipe(rules=(Rule("y", reduce_range=True),))])
def test_a_dense_layer_of_reduced_range(recipe: Recipe):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 1), "float32"):
            with R.dataflow():
                y = R.matmul(x, R.const([[64.0], [-3.0]], "float32"))
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 1), "float32"):
            with R.dataflow():
                x_q = R.quantize(x, R.const(1.0, "float32"), R.const(0, "int8"), axis=-1, out_dtype="int8")
                x_dq = R.dequantize(x_q, R.const(1.0, "float32"), R.const(0, "int8"), axis=-1)
                w = R.dequantize(
                    R.const([[64], [-3]], "int8"), R.const([1.0], "float32"), R.const([0], "int8"), axis=1
                )
                y = R.matmul(x_dq, w)
                y_q = R.quantize(y, R.const(2.0, "float32"), R.const(-128, "int8"), axis=-1, out_dtype="int8")
                gv = R.dequantize(y_q, R.const(2.0, "float32"), R.const(-128, "int8"), axis=-1)
                R.output(gv)
            return gv

    after = insert(Before, {"x": (-128, 127), "y": (0, 510)}, recipe)
    tvm.ir.assert_structural_equal(without_alias(after), Expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_depthwise_weights_keep_their_range(groups: int):
    bb = tvm.relax.BlockBuilder()
    x = tvm.relax.Var("x", tvm.relax.TensorType((1, 2, 2, 2), "float32"))
    weight = tvm.relax.const(np.full((2, 1, 1, 2 // groups), 127, "float32"))
    conv = tvm.relax.op.nn.conv2d(x, weight, groups=groups, data_layout="NHWC", kernel_layout="OHWI")
    with bb.function("main", [x]):
        with bb.dataflow():
            y = bb.emit_output(conv, "y")
        bb.emit_func_output(y)
    after = insert(bb.get(), {"x": (-1, 1), "y": (-1, 1)}, Recipe(reduce_range=True))
    codes = [
        int(value.args[0].value.numpy().max())
        for _, value in ir.bindings(after["main"])
        if ir.op_name(value) == "relax.dequantize" and ir.const_value(value.args[0]) is not None
    ]
    assert codes == [64 if groups == 1 else 127]


def without_alias(mod: IRModule) -> IRModule:
    return tvm.relax.transform.CanonicalizeBindings()(mod)


@I.ir_module
class Shift:
    @R.function
    def main(x: R.Tensor((3,), "float32")) -> R.Tensor((3,), "float32"):
        with R.dataflow():
            y = R.add(x, R.const([0.0, 51.0, 255.0], "float32"))
            R.output(y)
        return y


def test_a_constant_operand_is_quantized_by_its_own_range():
    text = insert(Shift, {"x": (0, 255), "y": (0, 255)}).script(show_meta=True)
    assert "y_operand_dq" in text and text.count("R.dequantize") == 3


def test_the_constant_of_a_maximum_is_on_the_grid_of_the_result():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            with R.dataflow():
                y = R.maximum(x, R.const([-1000.0, 3.0], "float32"))
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            with R.dataflow():
                x_q = R.quantize(x, R.const(1.0, "float32"), R.const(0, "int8"), axis=-1, out_dtype="int8")
                x_dq = R.dequantize(x_q, R.const(1.0, "float32"), R.const(0, "int8"), axis=-1)
                bound = R.dequantize(
                    R.const([-128, 3], "int8"), R.const(1.0, "float32"), R.const(0, "int8"), axis=-1
                )
                y = R.maximum(x_dq, bound)
                y_q = R.quantize(y, R.const(1.0, "float32"), R.const(0, "int8"), axis=-1, out_dtype="int8")
                gv = R.dequantize(y_q, R.const(1.0, "float32"), R.const(0, "int8"), axis=-1)
                R.output(gv)
            return gv

    after = insert(Before, {"x": (-128, 127), "y": (-100, 127)})
    tvm.ir.assert_structural_equal(without_alias(after), Expected)


def test_a_division_by_constants_becomes_a_product():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            with R.dataflow():
                y = R.divide(x, R.const([2.0, -0.5], "float32"))
                R.output(y)
            return y

    text = insert(Mod, {"x": (-1, 1), "y": (-2, 2)}).script()
    assert "R.multiply(x_dq, y_operand_dq" in text and "R.divide" not in text


def test_a_layer_kept_in_float_is_untouched_and_says_why():
    recipe = Recipe(rules=(Rule(scope="y", scheme="float"),))
    after = insert(Shift, {}, recipe)
    assert json.loads(after["main"].attrs[REASONS]) == {"y": "the recipe keeps it in float"}
    tvm.ir.assert_structural_equal(
        without_alias(after)["main"].without_attr(REASONS).body, without_alias(Shift)["main"].body
    )


def test_a_missing_range_keeps_its_class_through_the_pass():
    with pytest.raises(CalibrationError, match="no calibrated range for tensor 'y'"):
        insert(Shift, {"x": (0, 1)})


def test_interleaved_layers_keep_their_own_bias_scales():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((1, 1), "float32")) -> R.Tuple(
            R.Tensor((1, 1), "float32"), R.Tensor((1, 1), "float32")
        ):
            with R.dataflow():
                a = R.matmul(x, R.const([[127.0]], "float32"))
                b = R.matmul(x, R.const([[1270.0]], "float32"))
                c = R.add(a, R.const([30.0], "float32"))
                d = R.add(b, R.const([30.0], "float32"))
                R.output(c, d)
            return (c, d)

    after = insert(Mod, {"x": (-128, 127), "c": (-1, 1), "d": (-1, 1)})
    values = {var.name: value for block in after["main"].body.blocks for var, value in
              ((binding.var, binding.value) for binding in block.bindings)}  # fmt: skip
    assert values["c_bias_dq"].args[0].value.numpy().tolist() == [30]
    assert values["d_bias_dq"].args[0].value.numpy().tolist() == [3]


def test_an_output_read_inside_and_an_input_returned():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2,), "float32")) -> R.Tuple(
            R.Tensor((2,), "float32"), R.Tensor((2,), "float32"), R.Tensor((2,), "float32")
        ):
            with R.dataflow():
                a = R.add(x, x)
                b = R.sigmoid(a)
                R.output(a, b)
            return (a, b, x)

    after = insert(Mod, {"x": (-1, 1), "a": (-2, 2), "b": (0, 1)})
    fields = after["main"].body.blocks[0].bindings[-1].value.fields
    assert [field.name for field in fields] == ["a_dq", "b_dq", "x"]
