"""match: what becomes of each operator between dequantize and quantize."""

from collections.abc import Callable

import numpy as np
import pytest
from tvm import relax

from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.match_integer import match
from tvm_qplugin.passes.plan import Plan

op = relax.op
GRID, OTHER = QuantParams.of(0.5, 3), QuantParams.of(0.25, -7)
Make = Callable[[relax.BlockBuilder, relax.Expr, relax.Expr], relax.Expr]


def plan_of(make: Make, out: QuantParams = GRID, storage: str = "int8", shape=(1, 4, 4, 2)) -> Plan | None:
    """The plan for ``quantize(make(dequantize(q), dequantize(r)))``; q on GRID, r on OTHER."""
    bb = relax.BlockBuilder()
    q, r = (relax.Var(name, relax.TensorType(shape, "int8")) for name in "qr")
    with bb.function("main", [q, r]):
        with bb.dataflow():
            x, y = bb.emit(ir.dequantize(q, GRID)), bb.emit(ir.dequantize(r, OTHER))
            value = make(bb, x, y)
            result = bb.emit_output(
                ir.quantize(value if isinstance(value, relax.Var) else bb.emit(value), out)
            )
        bb.emit_func_output(result)
    func = bb.get()["main"]
    defined = ir.definitions(func)
    return match(defined[ir.output_vars(func)[0]], defined, storage)


def weight(bb: relax.BlockBuilder, values: np.ndarray, params: QuantParams) -> relax.Var:
    return bb.emit(ir.dequantize(ir.const(values), params))


def conv(bb: relax.BlockBuilder, x: relax.Expr, values: np.ndarray | None = None, zero: int = 0) -> relax.Var:
    values = np.arange(6, dtype="int8").reshape(3, 1, 1, 2) if values is None else values
    w = weight(bb, values, QuantParams.of(np.float32([1, 2, 4]), zero, str(values.dtype), 0))
    return bb.emit(op.nn.conv2d(x, w, padding=(1, 0, 2, 3), data_layout="NHWC", kernel_layout="OHWI"))


def test_convolution_with_float_bias_and_relu():
    def make(bb, x, _):
        return op.nn.relu(bb.emit(op.add(conv(bb, x), ir.const([1.0, 2.0, 3.0], "float32"))))

    plan = plan_of(make)
    assert plan is not None and plan.kernel == "qconv2d"
    assert plan.params["padding"] == [1, 0, 2, 3] and plan.params["groups"] == 1
    assert (plan.params["in_zp"], plan.params["out_zp"], plan.params["lo"]) == (3, 3, 3)
    values, bias, factor = plan.constants
    np.testing.assert_array_equal(values, np.arange(6).reshape(3, 1, 1, 2))
    np.testing.assert_array_equal(bias, [2, 2, 2])
    np.testing.assert_array_equal(factor, [1, 2, 4])


def test_a_convolution_of_int8_with_a_result_in_int16():
    plan = plan_of(lambda bb, x, _: conv(bb, x), QuantParams.of(2.0**-8, 0, "int16"), "uint8")
    assert plan is not None and (plan.kernel, plan.out.dtype) == ("qconv2d", "int16")
    assert (plan.params["in_zp"], plan.params["out_zp"], plan.params["hi"]) == (131, 0, 32767)


def test_unsigned_weights_around_128():
    values = np.uint8([128, 129, 127, 128, 255, 0]).reshape(3, 1, 1, 2)
    plan = plan_of(lambda bb, x, _: conv(bb, x, values, 128))
    assert plan is not None and plan.constants[0].reshape(-1).tolist() == [0, 1, -1, 0, 127, -128]


def test_unsigned_weights_too_far_from_zero():
    assert (
        plan_of(lambda bb, x, _: conv(bb, x, np.uint8([0, 0, 0, 0, 0, 200]).reshape(3, 1, 1, 2), 0)) is None
    )


def test_a_bias_of_higher_rank_is_none():
    def make(bb, x, _):
        w = weight(bb, np.ones((2, 3), "int8"), QuantParams.of(np.float32([1, 2, 4]), 0, "int8", 1))
        return op.add(bb.emit(op.matmul(x, w)), ir.const(np.zeros((1, 1, 1, 1, 3)), "float32"))

    assert plan_of(make) is None


@pytest.mark.parametrize("name", ["add", "subtract"])
def test_addition(name: str):
    plan = plan_of(lambda bb, x, y: getattr(op, name)(x, y))
    assert plan is not None and plan.kernel == "qadd"
    assert (plan.params["a_zp"], plan.params["b_zp"], plan.params["a_mul"]) == (3, -7, 2**20)
    assert plan.params["b_mul"] == (2**19 if name == "add" else -(2**19)) and plan.params["shift"] == 20


def test_addition_whose_scales_are_too_far_apart():
    assert plan_of(lambda bb, x, y: op.add(x, y), QuantParams.of(1e7, 0)) is None


def test_multiplication():
    plan = plan_of(lambda bb, x, y: op.multiply(x, y))
    assert plan is not None and plan.kernel == "qmul" and plan.params["multiplier"] == 0.25


def test_mean_divides_in_the_multiplier():
    plan = plan_of(lambda bb, x, _: op.mean(x, [1, 2], keepdims=True), OTHER)
    assert plan is not None and plan.params["multiplier"] == 2 / 16 and plan.params["axes"] == [1, 2]


def test_ceil_mode_becomes_padding():
    plan = plan_of(lambda bb, x, _: op.nn.max_pool2d(x, (3, 3), (2, 2), ceil_mode=True, layout="NHWC"))
    assert plan is not None and plan.params["padding"] == [0, 0, 1, 1]


def test_global_maximum_is_one_window():
    plan = plan_of(lambda bb, x, _: op.max(x, [1, 2], keepdims=True))
    assert plan is not None and plan.kernel == "qmaxpool2d" and plan.params["pool"] == [4, 4]


def test_a_clamp_on_one_grid_and_a_table_between_two():
    same, other = (plan_of(lambda bb, x, _: op.nn.relu(x), grid) for grid in (GRID, OTHER))
    assert same is not None and same.kernel == "qclamp" and same.params == {"lo": 3, "hi": 127}
    assert other is not None and other.kernel == "qlut"


def test_clamps_add_up():
    def make(bb, x, _):
        return op.clip(bb.emit(op.clip(bb.emit(op.nn.relu(x)), -5, 10)), 2, 100)

    plan = plan_of(make)
    assert plan is not None and (plan.params["lo"], plan.params["hi"]) == (7, 23)


@pytest.mark.parametrize(
    "inner",
    [lambda x: op.nn.softmax(x), lambda x: op.image.resize2d(x, (8, 8), layout="NHWC", method="linear")],
)
def test_no_clamp_behind_softmax_and_resize(inner):
    assert plan_of(lambda bb, x, _: inner(x)) is not None
    assert plan_of(lambda bb, x, _: op.clip(bb.emit(inner(x)), 0.25, 0.5)) is None


def test_one_grid_to_another():
    plan = plan_of(lambda bb, x, _: x, OTHER)
    assert plan is not None and plan.kernel == "requantize"
    identity = plan_of(lambda bb, x, _: x)
    assert identity is not None and identity.kind == "identity"


def test_storage_shifts_zero_points():
    plan = plan_of(lambda bb, x, y: op.multiply(x, y), storage="uint8")
    assert plan is not None and plan.out.dtype == "uint8"
    assert (plan.params["a_zp"], plan.params["out_zp"], plan.params["lo"]) == (131, 131, 0)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("reshape", lambda bb, x, _: op.reshape(x, (4, 8))),
        ("permute_dims", lambda bb, x, _: op.permute_dims(x, (0, 3, 1, 2))),
        ("strided_slice", lambda bb, x, _: op.strided_slice(x, [1], [0], [2])),
        ("take", lambda bb, x, _: op.take(x, ir.const([1, 0], "int64"), 3)),
        ("split", lambda bb, x, _: relax.TupleGetItem(bb.emit(op.split(x, 2, 3)), 1)),
    ],
)
def test_movement(kind: str, make: Make):
    plan = plan_of(make)
    assert plan is not None and (plan.kind, plan.kernel) == (kind, "") and plan.sources[0].want.same(GRID)


def test_concatenation_brings_its_parts_onto_one_grid():
    plan = plan_of(lambda bb, x, y: op.concat([x, y], 3))
    assert plan is not None and [s.have.same(s.want) for s in plan.sources] == [True, False]


def test_padding_with_the_zero_point():
    plan = plan_of(lambda bb, x, _: op.nn.pad(x, (0, 0, 1, 1, 1, 1, 0, 0)))
    assert plan is not None and plan.kernel == "qpad" and plan.params["value"] == 3


def test_what_reads_a_float_tensor_is_not_matched():
    assert plan_of(lambda bb, x, _: op.concat([x, bb.emit(op.sum(x, [3], keepdims=True))], 3)) is None


def test_per_channel_activations_and_other_dtypes_are_not_matched():
    assert plan_of(lambda bb, x, _: op.nn.relu(x), QuantParams.of(0.5, 0, "int16")) is None
    assert plan_of(lambda bb, x, _: op.nn.relu(x), QuantParams.of(np.float32([1, 2]), 0, "int8", 3)) is None


@pytest.mark.parametrize(("operator", "largest"), [(op.maximum, True), (op.minimum, False)])
def test_extremes_are_taken_on_the_grid_of_the_output(operator, largest: bool):
    plan = plan_of(lambda _bb, x, y: operator(x, y))
    assert plan is not None and (plan.kernel, plan.params["largest"]) == ("qextreme", largest)
    assert all(source.want.same(GRID) for source in plan.sources)
    assert [source.have.same(GRID) for source in plan.sources] == [True, False]


@pytest.mark.parametrize(("axes", "kernel"), [([1, 2], "qmaxpool2d"), ([2, 3], "qreduce"), (None, "qreduce")])
def test_maxima_over_height_and_width_are_pools(axes, kernel: str):
    plan = plan_of(lambda _bb, x, _y: op.max(x, axes, keepdims=True))
    assert plan is not None and plan.kernel == kernel
    assert kernel == "qmaxpool2d" or plan.params["axes"] == (axes or [0, 1, 2, 3])


def test_a_sum_has_the_ratio_of_the_scales_as_multiplier():
    plan = plan_of(lambda _bb, x, _y: op.sum(x, [1, 2]), OTHER)
    assert plan is not None and (plan.kernel, plan.params["multiplier"]) == ("qsum", 2.0)


def test_a_number_that_pads_is_on_the_grid():
    plan = plan_of(lambda _bb, x, _y: op.nn.pad(x, [0, 0, 1, 1, 0, 0, 0, 0], pad_value=2.0))
    assert plan is not None and plan.params["value"] == 7
