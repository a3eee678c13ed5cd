"""LeakyToPRelu: golden modules, and how close the integers are."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.builder import compile_function
from tvm_qplugin.core import lite
from tvm_qplugin.core.oracle import qprelu
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.passes.leaky_to_prelu import LeakyToPRelu

CODES = np.arange(-128, 128, dtype="int8")


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 4, 4, 3), "float32")) -> R.Tensor((1, 4, 4, 3), "float32"):
        with R.dataflow():
            y = R.nn.leakyrelu(x, alpha=0.25)
            R.output(y)
        return y


def expected() -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 4, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            slopes = relax.const(np.full(3, 0.25, "float32"))
            out = builder.emit_output(relax.op.nn.prelu(x, slopes, axis=3))
        builder.emit_func_output(out)
    return builder.get()


def test_one_slope_a_channel() -> None:
    assert_structural_equal(LeakyToPRelu()(Before), expected())


def test_other_activations_stay() -> None:
    module = expected()
    assert_structural_equal(LeakyToPRelu()(module), module)


def test_floats_are_the_same() -> None:
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype("float32")
    got, wanted = (compile_function(m)([x])[0] for m in (LeakyToPRelu()(Before), Before))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.25, 0.3, 0.9])
def test_integers_are_within_three_quarters_of_a_step(alpha: float) -> None:
    rng, worst = np.random.default_rng(2), 0.0
    slope = QuantParams.of(np.float32(alpha) / np.float32(127))
    for _ in range(40):
        source = QuantParams.of(2.0 ** rng.uniform(-8, -3), rng.integers(-100, 100))
        target = QuantParams.of(source.scale * np.float32(2.0 ** rng.uniform(-1, 2)), rng.integers(-100, 100))
        above, below = lite.prelu_multipliers(source, slope, target) or pytest.fail(
            "scales are too far apart"
        )
        zero = {"in_zp": int(source.zero_point), "out_zp": int(target.zero_point), "alpha_zp": 0}
        p = {**zero, "positive": above, "negative": below, "lo": -128, "hi": 127}
        codes = qprelu(p, CODES.reshape(-1, 1), np.array([127], "int8"), "int8").reshape(-1)
        x = source.dequantize(CODES).astype("float64")
        real = np.where(x > 0, x, alpha * x) / float(target.scale) + int(target.zero_point)
        inside = (real > -128) & (real < 127)
        worst = max(worst, float(np.abs(codes - real)[inside].max()))
        leaky = lite.leaky_relu(alpha, source, target).astype("int64")
        assert np.abs(codes - leaky)[inside].max() <= 1
    assert 0.5 < worst <= 0.75
