"""Rewrites for small devices, quantized: the codes of the original, or as near as each pass says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from tvm import IRModule, relax

from tvm_qplugin.calibrator import float_tensors, model_hash
from tvm_qplugin.core.calibration import CalibrationTable, TensorRange
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes.dense_on_rows import DenseOnRows
from tvm_qplugin.passes.equal_dilation import EqualDilation
from tvm_qplugin.passes.leaky_to_prelu import LeakyToPRelu
from tvm_qplugin.passes.split_mean import SplitMean
from tvm_qplugin.quantizer import quantize_module
from tvm_qplugin.simulator import simulate

Make = Callable[[Any, Any], Any]
RANGE = {"x": (-3.0, 2.0), "y": (-2.0, 4.0), "y_shaped": (-2.0, 4.0)}
OTHERS = (-3.0, 2.0)
"""Of what a rewrite puts in between: where data is only moved or averaged, that of the input."""


def module(shape: tuple[int, ...], make: Make) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(make(builder, x), "y")
        builder.emit_func_output(out)
    return builder.get()


def simulated(mod: IRModule, x: Array) -> Array:
    """The oracle's codes with the ranges above."""
    ranges = {name: TensorRange(*RANGE.get(name, OTHERS), "min_max", 1) for name in float_tensors(mod)}
    table = CalibrationTable(model_hash(mod), 1, ranges)
    return simulate(quantize_module(mod, calibration=table, io="int8"), x)[0]


def normal(*shape: int) -> Any:
    return relax.const(np.random.default_rng(1).normal(size=shape).astype("float32") * 0.2)


def dilated(_builder: Any, x: Any) -> Any:
    layout = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}
    return relax.op.nn.conv2d(x, normal(5, 3, 2, 4), padding=[2, 0, 2, 1], dilation=(2, 1), **layout)


def dense(builder: Any, x: Any) -> Any:
    product = builder.emit(relax.op.matmul(x, normal(12, 7)), "product")
    return relax.op.nn.relu(builder.emit(relax.op.add(product, normal(7)), "sum"))


EXACT: dict[str, tuple[Any, tuple[int, ...], Make]] = {
    "dilation": (EqualDilation(), (1, 9, 8, 4), dilated),
    "dense": (DenseOnRows(), (1, 1, 1, 12), dense),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_codes_are_the_same(name: str) -> None:
    rewrite, shape, make = EXACT[name]
    before = module(shape, make)
    after = rewrite(before)
    assert not tvm_ffi.structural_equal(before, after)
    x = np.random.default_rng(0).integers(-128, 128, shape).astype("int8")
    np.testing.assert_array_equal(simulated(after, x), simulated(before, x))


def steps(rewrite: Any, shape: tuple[int, ...], make: Make) -> float:
    """By how many steps of the output a rewrite differs at most from the original."""
    before = module(shape, make)
    after = rewrite(before)
    assert not tvm_ffi.structural_equal(before, after)
    x = np.random.default_rng(0).integers(-128, 128, shape).astype("int8")
    return float(np.abs(simulated(after, x).astype(int) - simulated(before, x).astype(int)).max())


def test_a_split_mean_is_within_half_a_step_of_its_input() -> None:
    ratio = float(QuantParams.from_range(*RANGE["x"]).scale / QuantParams.from_range(*RANGE["y"]).scale)
    found = steps(SplitMean(limit=12), (1, 8, 6, 3), lambda _b, x: relax.op.mean(x, [1, 2]))
    assert found <= 0.5 * ratio + 1


def test_a_leaky_relu_is_within_a_step() -> None:
    assert steps(LeakyToPRelu(), (1, 16, 16, 3), lambda _b, x: relax.op.nn.leakyrelu(x, 0.1)) <= 1
