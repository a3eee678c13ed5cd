"""PReLU on its way: NHWC, QDQ, the kernel; what has none stays float and says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.frontend import load
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import Annotate, group
from tvm_qplugin.passes.insert_qdq import InsertQDQ
from tvm_qplugin.passes.match_integer import match
from tvm_qplugin.passes.to_nhwc import ToNHWC
from tvm_qplugin.simulator import simulate


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            y = R.nn.prelu(x, R.const([127.0, -64.0], "float32"), axis=1)
            R.output(y)
        return y


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            x_q = R.quantize(x, R.const(1.0, "float32"), R.const(0, "int8"), axis=-1, out_dtype="int8")
            x_dq = R.dequantize(x_q, R.const(1.0, "float32"), R.const(0, "int8"), axis=-1)
            w = R.dequantize(
                R.const([127, -64], "int8"), R.const(1.0, "float32"), R.const(0, "int8"), axis=-1
            )
            y = R.nn.prelu(x_dq, w, axis=1)
            y_q = R.quantize(y, R.const(2.0, "float32"), R.const(-128, "int8"), axis=-1, out_dtype="int8")
            gv = R.dequantize(y_q, R.const(2.0, "float32"), R.const(-128, "int8"), axis=-1)
            R.output(gv)
        return gv


def test_slopes_have_one_scale() -> None:
    passes = [Annotate(Recipe()), InsertQDQ({"x": (-128, 127), "y": (0, 510)})]
    after = tvm.transform.Sequential(passes)(Before)
    main = after["main"].without_attr("qplugin.reasons") if after["main"].attrs else after["main"]
    assert_structural_equal(_plain(IRModule({"main": main})), Expected)


def _plain(mod: IRModule) -> IRModule:
    return relax.transform.CanonicalizeBindings()(mod)


@I.ir_module
class Nchw:
    @R.function
    def main(x: R.Tensor((1, 2, 3, 4), "float32")) -> R.Tensor((1, 2, 3, 4), "float32"):
        with R.dataflow():
            p = R.nn.max_pool2d(x, pool_size=[1, 1], padding=[0, 0, 0, 0])
            y = R.nn.prelu(p, R.const([0.5, 0.25], "float32"), axis=1)
            R.output(y)
        return y


@I.ir_module
class Nhwc:
    @R.function
    def main(x: R.Tensor((1, 2, 3, 4), "float32")) -> R.Tensor((1, 2, 3, 4), "float32"):
        with R.dataflow():
            t = R.permute_dims(x, axes=[0, 2, 3, 1])
            p = R.nn.max_pool2d(t, pool_size=[1, 1], padding=[0, 0, 0, 0], layout="NHWC", out_layout="NHWC")
            q = R.nn.prelu(p, R.const([0.5, 0.25], "float32"), axis=3)
            y = R.permute_dims(q, axes=[0, 3, 1, 2])
            R.output(y)
        return y


def test_slopes_follow_the_channels() -> None:
    assert_structural_equal(ToNHWC()(Nchw), Nhwc)


def between(slope: Callable[[relax.BlockBuilder], Any], scale: float = 0.5) -> Any:
    """The plan for a prelu of 4 channels between dequantize and quantize."""
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((1, 3, 3, 4), "int8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            x = builder.emit(ir.dequantize(q, QuantParams.of(0.5, 3)))
            y = builder.emit(relax.op.nn.prelu(x, slope(builder), axis=3))
            out = builder.emit_output(ir.quantize(y, QuantParams.of(scale, -7)))
        builder.emit_func_output(out)
    func = builder.get()["main"]
    defined = ir.definitions(func)
    return match(defined[ir.output_vars(func)[0]], defined, "int8")


def stored(grid: QuantParams) -> Callable[[relax.BlockBuilder], Any]:
    return lambda builder: builder.emit(
        ir.dequantize(ir.const(np.array([1, -2, 3, 0]).astype(grid.dtype)), grid)
    )


def test_the_plan() -> None:
    plan = between(stored(QuantParams.of(0.25, 5)))
    assert plan is not None and plan.kernel == "qprelu" and plan.kind == "prelu"
    assert plan.params == {
        **{"in_zp": 3, "out_zp": -7, "alpha_zp": 5, "lo": -128, "hi": 127},
        **{"positive": [1 << 30, 1], "negative": [1 << 30, -1]},
    }
    np.testing.assert_array_equal(plan.constants[0], [1, -2, 3, 0])
    assert plan.weight is not None and plan.weight.same(QuantParams.of(0.25, 5))


@pytest.mark.parametrize(
    "slope",
    [
        lambda _builder: ir.const(np.ones(4, "float32")),
        stored(QuantParams.of([0.1, 0.2, 0.3, 0.4], 0, "int8", 0)),
        stored(QuantParams.of(0.1, 3, "uint8")),
    ],
    ids=["float slopes", "a scale a channel", "uint8"],
)
def test_no_plan(slope: Callable[[relax.BlockBuilder], Any]) -> None:
    assert between(slope) is None


def test_no_plan_for_scales_that_could_overflow() -> None:
    assert between(stored(QuantParams.of(0.25)), scale=0.5 / 2**7) is None
    assert between(stored(QuantParams.of(0.25)), scale=0.51 / 2**7) is not None


def test_other_axes_have_no_kernel() -> None:
    (op,) = group(Nchw["main"])[1:]
    assert (op.kind, op.reason) == ("prelu", "its slopes are not along the last axis")


def quantized_slopes() -> tuple[Any, Array]:
    """An ONNX model whose input, slopes and output are quantized."""
    slopes = np.array([[[100]], [[-50]], [[3]]], "int8")
    weights = {"s": slopes, "one": np.float32(0.01), "zero": np.int8(0), "grid": np.float32(0.05)}
    pair = ("QuantizeLinear", "DequantizeLinear")
    nodes = [
        *(
            helper.make_node(k, [a, "grid", "zero"], [b])
            for k, a, b in zip(pair, ("x", "a"), ("a", "b"), strict=True)
        ),
        helper.make_node("DequantizeLinear", ["s", "one", "zero"], ["slopes"]),
        helper.make_node("PRelu", ["b", "slopes"], ["c"]),
        *(
            helper.make_node(k, [a, "grid", "zero"], [b])
            for k, a, b in zip(pair, ("c", "d"), ("d", "y"), strict=True)
        ),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 3, 4, 4)) for n in "xy"]
    graph = helper.make_graph(
        nodes,
        "prelu",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), slopes


def test_a_model_that_comes_quantized() -> None:
    model, slopes = quantized_slopes()
    module = load(model)
    x = np.random.default_rng(0).uniform(-6, 6, (1, 3, 4, 4)).astype("float32")
    (got,) = simulate(module, x)
    np.testing.assert_array_equal(got, compile_function(module)([x])[0])
    codes = np.clip(np.rint(x / np.float32(0.05)), -128, 127) * 0.05
    wanted = np.where(codes < 0, codes * slopes * 0.01, codes)
    assert np.abs(got - np.clip(wanted, -6.4, 6.35)).max() <= 0.05 * 0.75 + 1e-6
