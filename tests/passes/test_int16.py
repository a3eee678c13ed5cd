"""The scheme int16x8 in the passes: pairs, kernels, and what stays float."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core import lite16, oracle16
from tvm_qplugin.core.attrs import ANNOTATION, KERNEL
from tvm_qplugin.core.fixed_point import reduced_factors
from tvm_qplugin.core.interpolated import UNIT
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.core.recipe import Recipe, find_recipe
from tvm_qplugin.core.spec import Annotation
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import Annotate
from tvm_qplugin.passes.insert_qdq import InsertQDQ
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.match_integer import match
from tvm_qplugin.passes.plan import Plan
from tvm_qplugin.passes.quantize_io import QuantizeIO
from tvm_qplugin.passes.unify_scales import UnifyScales

op = relax.op
GRID, OTHER, EIGHT = (QuantParams.of(s, 0, d) for s, d in ((0.5, "int16"), (0.25, "int16"), (64.0, "int8")))


@I.ir_module
class Dense:
    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 1), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[127.0], [-127.0]], "float32"))
            y = R.add(a, R.const([3.0], "float32"))
            R.output(y)
        return y


@I.ir_module
class QuantizedDense:
    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 1), "float32"):
        with R.dataflow():
            x_q = R.quantize(x, R.const(1.0, "float32"), R.const(0, "int16"), axis=-1, out_dtype="int16")
            x_dq = R.dequantize(x_q, R.const(1.0, "float32"), R.const(0, "int16"), axis=-1)
            w = R.dequantize(
                R.const([[127], [-127]], "int8"), R.const([1.0], "float32"), R.const([0], "int8"), axis=1
            )
            a = R.matmul(x_dq, w)
            b = R.dequantize(R.const([3], "int32"), R.const([1.0], "float32"), R.const([0], "int32"), axis=0)
            y = R.add(a, b)
            y_q = R.quantize(y, R.const(2.0, "float32"), R.const(0, "int16"), axis=-1, out_dtype="int16")
            gv = R.dequantize(y_q, R.const(2.0, "float32"), R.const(0, "int16"), axis=-1)
            R.output(gv)
        return gv


def insert(mod: IRModule, ranges: dict[str, tuple[float, float]]) -> IRModule:
    passes = [Annotate(find_recipe("int16x8")), UnifyScales(), InsertQDQ(ranges)]
    return tvm.transform.Sequential(passes)(mod)


def test_activations_are_symmetric() -> None:
    after = insert(Dense, {"x": (-3, 32767), "y": (-65534, 510)})
    tvm.ir.assert_structural_equal(relax.transform.CanonicalizeBindings()(after), QuantizedDense)


def kernels(mod: IRModule) -> list[str]:
    lowered = tvm.transform.Sequential([LowerInteger("uint8")])(mod)
    calls = [value for _, value in ir.bindings(lowered["main"]) if ir.op_name(value) == "relax.call_tir"]
    return [str(lowered[call.args[0]].attrs[KERNEL]) for call in calls]


def test_the_storage_of_bytes_does_not_matter() -> None:
    assert kernels(QuantizedDense) == ["quantize", "qdense16", "dequantize"]


def test_inputs_and_outputs() -> None:
    typed = tvm.transform.Sequential([QuantizeIO("int16")])(QuantizedDense)
    assert str(typed["main"].params[0].ty.dtype) == str(typed["main"].ret_ty.dtype) == "int16"
    assert kernels(typed) == ["qdense16"]


@I.ir_module
class Functions:
    @R.function
    def main(x: R.Tensor((2, 4), "float32")) -> R.Tensor((2, 4), "float32"):
        with R.dataflow():
            a = R.sigmoid(x)
            b = R.multiply(x, a)
            c = R.divide(b, R.const(3.0, "float32"))
            d = R.clip(R.tanh(c), 0.0, 0.5)
            e = R.floor(d)
            R.output(e)
        return e


def annotated(recipe: Recipe) -> Annotation:
    mod = relax.transform.Normalize()(Functions)
    return Annotation.loads(tvm.transform.Sequential([Annotate(recipe)])(mod)["main"].attrs[ANNOTATION])


def test_elementwise_operators_are_not_chained() -> None:
    operators = annotated(find_recipe("int16x8")).operators.values()
    assert [(o.kind, o.integer) for o in operators] == [
        ("sigmoid", True),
        ("multiply", True),
        ("multiply", True),
        ("tanh", True),
        ("clamp", True),
        ("relax.floor", False),
    ]
    assert [o.reason for o in operators if o.reason] == ["relax.floor has no integer kernel"]
    assert [o.kind for o in annotated(Recipe()).operators.values()] == ["lut", "relax.floor"]


def test_fixed_outputs() -> None:
    tensors = annotated(find_recipe("int16x8")).tensors
    assert tensors["a"].params().same(QuantParams.of(UNIT, 0, "int16"))  # type: ignore[union-attr, call-arg]


def test_a_division_by_a_number_is_a_multiplication() -> None:
    text = insert(relax.transform.Normalize()(Functions), unit_ranges()).script(show_meta=True)
    assert "R.divide" not in text and text.count("R.multiply") == 2 and "32767" in text


def unit_ranges() -> dict[str, tuple[float, float]]:
    return {name: (-1.0, 1.0) for name in annotated(find_recipe("int16x8")).observed()}


def plan_of(
    make: Any, out: QuantParams = GRID, source: QuantParams = GRID, shape: tuple[int, ...] = (1, 4, 4, 2)
) -> Plan | None:
    """The plan for ``quantize(make(dequantize(q), dequantize(r)))``; q on ``source``, r on OTHER."""
    bb = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType(shape, source.dtype))
    r = relax.Var("r", relax.TensorType(shape, "int16"))
    with bb.function("main", [q, r]):
        with bb.dataflow():
            x, y = bb.emit(ir.dequantize(q, source)), bb.emit(ir.dequantize(r, OTHER))
            value = make(bb, x, y)
            value = value if isinstance(value, relax.Var) else bb.emit(value)
            result = bb.emit_output(ir.quantize(value, out))
        bb.emit_func_output(result)
    func = bb.get()["main"]
    defined = ir.definitions(func)
    return match(defined[ir.output_vars(func)[0]], defined, "uint8")


def conv(bb: relax.BlockBuilder, x: relax.Expr, scale: float = 1.0, weight: int = 1) -> relax.Var:
    values = np.full((3, 1, 1, 2), weight, "int8")
    w = bb.emit(ir.dequantize(ir.const(values), QuantParams.of(np.float32([1, 2, 4]) * scale, 0, "int8", 0)))
    return bb.emit(op.nn.conv2d(x, w, data_layout="NHWC", kernel_layout="OHWI"))


def test_a_convolution() -> None:
    plan = plan_of(
        lambda bb, x, _: op.nn.relu(bb.emit(op.add(conv(bb, x), ir.const([1.0, 2.0, 9.0], "float32"))))
    )
    assert plan is not None and (plan.kernel, plan.params["wide"], plan.params["lo"]) == (
        "qconv2d16",
        False,
        0,
    )
    _, bias, factor, shift = plan.constants
    assert bias.dtype == "int64" and bias.tolist() == [2, 2, 4]
    np.testing.assert_array_equal((factor, shift), reduced_factors(np.array([1.0, 2.0, 4.0])))


def test_a_multiplier_beyond_litert_stays_float() -> None:
    assert plan_of(lambda bb, x, _: conv(bb, x, 64.0)) is None


@pytest.mark.parametrize(("depth", "wide"), [(516, False), (517, True)])
def test_sums_that_may_leave_int32_are_told(depth: int, wide: bool) -> None:
    def make(bb: relax.BlockBuilder, x: relax.Expr, _: relax.Expr) -> relax.Call:
        values = ir.const(np.full((depth, 2), 127, "int8"))
        return op.matmul(x, bb.emit(ir.dequantize(values, QuantParams.of(1e-4))))

    plan = plan_of(make, shape=(3, depth))
    assert plan is not None and (plan.kernel, plan.params["wide"]) == ("qdense16", wide)
    np.testing.assert_array_equal(plan.constants[2], [float(np.float32(1e-4))] * 2)


@pytest.mark.parametrize(("subtract", "front"), [(False, 32), (True, 0)])
def test_additions(subtract: bool, front: int) -> None:
    plan = plan_of(lambda _bb, x, y: (op.subtract if subtract else op.add)(x, y))
    assert plan is not None and plan.kernel == "qadd16"
    wanted = oracle16.add_multipliers(0.5, 0.25, 0.5)
    assert {key: plan.params[key] for key in wanted} == wanted
    assert (plan.params["subtract"], plan.params["vectorized"]) == (subtract, front)


@pytest.mark.parametrize(
    ("make", "out", "kernel"),
    [
        (lambda _bb, x, y: op.multiply(x, y), GRID, "qmul16"),
        (lambda _bb, x, y: op.multiply(x, y), QuantParams.of(2.0**-5, 0, "int16"), ""),
        (lambda _bb, x, _y: op.mean(x, [1, 2]), OTHER, "qmean16"),
        (lambda _bb, x, _y: op.nn.softmax(x), QuantParams.of(UNIT, 0, "int16"), "qsoftmax16"),
        (lambda _bb, x, _y: op.nn.softmax(x), GRID, ""),
        (lambda _bb, x, _y: op.nn.avg_pool2d(x, (2, 2), layout="NHWC"), GRID, "qavgpool2d"),
        (lambda _bb, x, _y: op.sigmoid(x), QuantParams.of(UNIT, 0, "int16"), "qlut"),
        (lambda _bb, x, _y: op.sigmoid(x), OTHER, ""),
        (lambda _bb, x, _y: op.nn.gelu(x), GRID, "qlut"),
        (lambda _bb, x, y: op.maximum(x, y), GRID, "qextreme"),
        (lambda _bb, x, _y: op.max(x, [3]), OTHER, "qreduce"),
        (lambda _bb, x, _y: op.max(x, [1, 2], keepdims=True), OTHER, "qmaxpool2d"),
        (lambda _bb, x, _y: op.min(x, [1]), GRID, "qreduce"),
        (lambda _bb, x, _y: op.sum(x, [1]), OTHER, "qsum16"),
        (lambda _bb, x, _y: op.nn.pad(x, [0, 0, 1, 1, 0, 0, 0, 0], pad_value=2.0), GRID, "qpad"),
        (lambda _bb, x, _y: op.nn.relu(x), GRID, "qclamp"),
        (lambda _bb, x, _y: op.nn.relu(x), OTHER, "qlut"),
        (lambda _bb, x, _y: x, OTHER, "requantize16"),
        (lambda _bb, x, _y: x, EIGHT, "requantize16"),
        (lambda _bb, x, _y: x, QuantParams.of(0.5, 7, "int16"), ""),
    ],
)
def test_operators(make: Any, out: QuantParams, kernel: str) -> None:
    plan = plan_of(make, out)
    assert (plan.kernel if plan else "") == kernel


def test_widths_do_not_mix() -> None:
    assert plan_of(lambda _bb, x, y: op.add(x, y), source=EIGHT) is None
    plan = plan_of(lambda _bb, x, _y: x, source=EIGHT)
    assert plan is not None and plan.kernel == "requantize16"


def test_tables_are_litert_s() -> None:
    plan = plan_of(lambda _bb, x, _y: op.nn.leakyrelu(x, 0.1), OTHER)
    assert plan is not None and plan.function == {"operators": ["nn.leakyrelu"], "alpha": pytest.approx(0.1)}
    np.testing.assert_array_equal(plan.constants[0], lite16.leaky_relu(plan.function["alpha"], GRID, OTHER))


def test_other_tables_are_correctly_rounded() -> None:
    plan = plan_of(lambda _bb, x, _y: op.abs(x), OTHER)
    assert plan is not None
    codes = np.arange(-32768, 32768)
    np.testing.assert_array_equal(plan.constants[0], np.minimum(np.abs(codes) * 2, 32767))


def test_bilinear_resizing_by_litert_s_coordinates() -> None:
    def resize(mode: str) -> Any:
        return lambda _bb, x, _y: op.image.resize2d(
            x, (8, 8), layout="NHWC", method="linear", coordinate_transformation_mode=mode
        )

    for mode in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
        plan = plan_of(resize(mode))
        assert plan is not None and plan.kernel == "qresize2d16"
        assert plan.params["coordinate"] == mode.removeprefix("pytorch_")


def test_reasons_survive_lowering() -> None:
    mod = insert(relax.transform.Normalize()(Functions), unit_ranges())
    lowered = tvm.transform.Sequential([LowerInteger()])(mod)
    report = json.loads(lowered["main"].attrs["qplugin.report"])
    assert [e["reason"] for e in report if not e["integer"]] == ["relax.floor has no integer kernel"]
