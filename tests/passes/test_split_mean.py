"""SplitMean: golden modules, and the same mean in numbers."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.builder import compile_function
from tvm_qplugin.passes.split_mean import SplitMean, tile_of


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 8, 6, 3), "float32")) -> R.Tensor((1, 1, 1, 3), "float32"):
        with R.dataflow():
            y = R.mean(x, axis=[1, 2], keepdims=True)
            R.output(y)
        return y


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((1, 8, 6, 3), "float32")) -> R.Tensor((1, 1, 1, 3), "float32"):
        with R.dataflow():
            p = R.nn.avg_pool2d(
                x, pool_size=[2, 2], strides=[2, 2], padding=[0, 0, 0, 0], layout="NHWC", out_layout="NHWC"
            )
            y = R.mean(p, axis=[1, 2], keepdims=True)
            R.output(y)
        return y


def mean_of(shape: tuple[int, ...], axes: list[int]) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.mean(x, axes))
        builder.emit_func_output(out)
    return builder.get()


def test_a_large_mean() -> None:
    assert_structural_equal(SplitMean(limit=12)(Before), Expected)


@pytest.mark.parametrize(
    ("shape", "axes"), [((1, 64, 128, 3), [1, 2]), ((1, 500, 300, 3), [3]), ((3, 4000, 4), [1])]
)
def test_others_stay(shape: tuple[int, ...], axes: list[int]) -> None:
    module = mean_of(shape, axes)
    assert_structural_equal(SplitMean()(module), module)


@pytest.mark.parametrize("shape", [(1, 256, 128, 3), (1, 127, 97, 2), (1, 1, 9001, 1)])
def test_the_values_are_the_same(shape: tuple[int, ...]) -> None:
    module = mean_of(shape, [1, 2])
    split = SplitMean()(module)
    assert len(split["main"].body.blocks[0].bindings) > len(module["main"].body.blocks[0].bindings)
    x = np.random.default_rng(0).normal(1, 1, shape).astype("float32")
    (got,), (wanted,) = compile_function(split)([x]), compile_function(module)([x])
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_tiles() -> None:
    assert tile_of(256, 128, 8192) == (2, 2)
    assert tile_of(127, 97, 8192) == (1, 97)
    assert tile_of(10, 10, 100) == (1, 1)
