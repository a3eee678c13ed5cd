"""QuantizeWeightOnly: dense weights as codes and scales, and which stay float."""

import json

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import ExpandWeights, stored_arguments
from tvm_qplugin.passes.plan import REASONS
from tvm_qplugin.passes.quantize_weight_only import QuantizeWeightOnly


@I.ir_module
class Layer:
    @R.function
    def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 2), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[127.0, 1.0], [-64.0, 2.0], [0.0, -0.5]], "float32"))
            y = R.add(a, R.const([3.0, 4.0], "float32"))
            R.output(y)
        return y


def values(mod: IRModule) -> list[relax.Expr]:
    return [value for _, value in ir.bindings(mod["main"])]


def run(mod: IRModule, recipe: Recipe | None = None, smallest: int = 1) -> IRModule:
    chosen = recipe or Recipe("weight_int4", "weight_int4")
    return tvm.transform.Sequential([QuantizeWeightOnly(chosen, smallest)])(mod)


def expected(
    codes: list[list[int]], dtype: str, scale: list[list[float]], group: int, scheme: str
) -> IRModule:
    """The layer with its weight as a call of ``wexpand``."""
    bits = 8 if dtype == "int8" else 4
    arrays = [np.array(codes, dtype), np.array(scale, "float32" if group == 3 else "float16")]
    specs = [TensorSpec(a.shape, str(a.dtype)) for a in arrays]
    params = {"bits": bits, "group": group, "depth": 3}
    func = build_kernel("wexpand", params, specs, TensorSpec((3, 2), "float32"))
    builder = relax.BlockBuilder()
    x = relax.Var("x", R.Tensor((2, 3), "float32"))
    with builder.function("main", [x], attrs={"qplugin.scheme": scheme}):
        with builder.dataflow():
            known = builder.add_func(func.without_attr("global_symbol"), "wexpand")
            args = [relax.const(a, str(a.dtype)) for a in arrays]
            weight = builder.emit(relax.call_tir(known, args, R.Tensor((3, 2), "float32")), "a_weight")
            a = builder.emit(relax.op.matmul(x, weight), "a")
            y = builder.emit(relax.op.add(a, relax.const(np.array([3, 4], "float32"))), "y")
            out = builder.emit_output(y)
        builder.emit_func_output(out)
    return builder.get()


def test_eight_bits_have_a_scale_for_every_output():
    after = run(Layer, Recipe("mine", "weight_int8"))
    codes = [[127, -64, 0], [64, 127, -32]]
    assert_structural_equal(after, expected(codes, "int8", [[1], [2 / 127]], 3, "weight_int8"))


def test_four_bits_are_packed_with_scales_of_groups():
    (stored,) = stored_arguments(run(Layer, Recipe("mine", "weight_int4", group=2))).values()
    assert stored.grouped is not None
    codes, scale = stored.grouped.codes.tolist(), stored.grouped.scale.tolist()
    after = run(Layer, Recipe("mine", "weight_int4", group=2))
    assert_structural_equal(after, expected(codes, "uint8", scale, 2, "weight_int4"))
    np.testing.assert_array_equal(stored.grouped.values()[0], [-8, 4, 0])


def test_the_default_groups():
    builder = relax.BlockBuilder()
    x = relax.Var("x", R.Tensor((2, 96), "float32"))
    weight = np.random.default_rng(0).normal(size=(96, 4)).astype("float32")
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.matmul(x, relax.const(weight)), "y"))
    for scheme, group in (("weight_int4", 32), ("weight_int8", 96)):
        (stored,) = stored_arguments(run(builder.get(), Recipe("mine", scheme))).values()
        assert stored.grouped is not None and stored.grouped.group == group
        assert stored.arrays == (stored.grouped.codes, stored.grouped.scale)
        np.testing.assert_array_equal(stored.real(), stored.grouped.real().T)


def test_expanding_gives_an_ordinary_float_module():
    after = run(Layer, Recipe("mine", "weight_int8"))
    module = tvm.transform.Sequential([ExpandWeights(), relax.transform.DeadCodeElimination()])(after)
    weight = np.float32([[127, 64], [-64, 127], [0, -32]]) * np.float32([1, 2 / 127])

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 2), "float32"):
            with R.dataflow():
                a = R.matmul(x, R.const(weight))
                y = R.add(a, R.const([3.0, 4.0], "float32"))
                R.output(y)
            return y

    assert_structural_equal(module, Expected)
    kept = tvm.transform.Sequential([ExpandWeights(grouped=False)])(after)
    assert len(stored_arguments(kept)) == 1


def test_layers_that_share_a_weight_share_it_stored():
    """As every step of an unrolled cell does."""
    weight = relax.const(np.random.default_rng(0).normal(size=(8, 8)).astype("float32"))
    builder = relax.BlockBuilder()
    x = relax.Var("x", R.Tensor((2, 8), "float32"))
    with builder.function("main", [x]):
        first = builder.emit(relax.op.matmul(x, weight), "first")
        builder.emit_func_output(builder.emit(relax.op.matmul(first, weight), "second"))
    after = run(builder.get())
    assert set(stored_arguments(after)) == {("first", 1), ("second", 1)}
    assert sum(name == "relax.call_tir" for name in map(ir.op_name, values(after))) == 1


def test_small_weights_stay_float():
    after = run(Layer, smallest=7)
    assert not stored_arguments(after)
    reasons = json.loads(str(after["main"].attrs[REASONS]))
    assert reasons == {"a": "its weight has 6 elements, fewer than 7"}


def test_products_of_two_tensors_stay_float():
    @I.ir_module
    class Product:
        @R.function
        def main(x: R.Tensor((2, 3), "float32"), z: R.Tensor((3, 2), "float32")) -> R.Tensor(
            (2, 2), "float32"
        ):
            with R.dataflow():
                y = R.matmul(x, z)
                R.output(y)
            return y

    after = run(Product)
    assert json.loads(str(after["main"].attrs[REASONS])) == {"y": "its weight is not a constant"}


def test_layers_that_a_recipe_keeps_in_float():
    recipe = Recipe("mine", "weight_int4", rules=(Rule("^y$", scheme="float"),))
    assert not stored_arguments(run(Layer, recipe))
