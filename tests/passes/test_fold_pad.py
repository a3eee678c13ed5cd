"""FoldPad: golden modules, and the same integers."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.passes.fold_pad import FoldPad
from tvm_qplugin.quantizer import quantize_module
from tvm_qplugin.simulator import simulate


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 5, 6, 2), "float32"), w: R.Tensor((3, 3, 3, 2), "float32")) -> R.Tensor(
        (1, 3, 3, 3), "float32"
    ):
        with R.dataflow():
            p = R.nn.pad(x, pad_width=[0, 0, 1, 0, 0, 1, 0, 0])
            y = R.nn.conv2d(p, w, strides=2, padding=[0, 0, 1, 0], data_layout="NHWC", kernel_layout="OHWI")
            R.output(y)
        return y


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((1, 5, 6, 2), "float32"), w: R.Tensor((3, 3, 3, 2), "float32")) -> R.Tensor(
        (1, 3, 3, 3), "float32"
    ):
        with R.dataflow():
            y = R.nn.conv2d(x, w, strides=2, padding=[1, 0, 1, 1], data_layout="NHWC", kernel_layout="OHWI")
            R.output(y)
        return y


def padded(widths: list[int], value: float = 0.0, mode: str = "constant") -> IRModule:
    """A depthwise 3x3 convolution behind a pool and a pad."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 7, 7, 4), "float32"))
    depth = 4 + sum(widths[6:])
    weight = np.random.default_rng(0).normal(size=(depth, 3, 3, 1)).astype("float32")
    with builder.function("main", [x]):
        with builder.dataflow():
            pooled = builder.emit(relax.op.nn.max_pool2d(x, (2, 2), layout="NHWC"), "pooled")
            p = builder.emit(relax.op.nn.pad(pooled, widths, mode, value), "p")
            layout = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
            conv = relax.op.nn.conv2d(p, relax.const(weight), padding=[0] * 4, groups=depth, **layout)
            out = builder.emit_output(conv, "out")
        builder.emit_func_output(out)
    return builder.get()


def test_zeros_around_an_image() -> None:
    assert_structural_equal(FoldPad()(Before), Expected)


@pytest.mark.parametrize(
    ("widths", "value", "mode"),
    [
        ([0, 0, 1, 1, 1, 1, 0, 0], 1.0, "constant"),
        ([0, 0, 1, 1, 1, 1, 0, 0], 0.0, "reflect"),
        ([0, 0, 1, 1, 1, 1, 0, 2], 0.0, "constant"),
    ],
    ids=["ones", "reflected", "channels"],
)
def test_others_stay(widths: list[int], value: float, mode: str) -> None:
    module = padded(widths, value, mode)
    assert_structural_equal(FoldPad()(module), module)


def test_the_integers_are_the_same() -> None:
    rng = np.random.default_rng(1)
    module = padded([0, 0, 1, 1, 2, 0, 0, 0])
    samples = [rng.normal(size=(1, 7, 7, 4)).astype("float32") for _ in range(3)]
    before, after = (quantize_module(m, calibration=samples, io="int8") for m in (module, FoldPad()(module)))
    assert "nn.pad" in before.script() and "nn.pad" not in after.script()
    x = rng.integers(-128, 128, (1, 7, 7, 4)).astype("int8")
    np.testing.assert_array_equal(simulate(before, x)[0], simulate(after, x)[0])
