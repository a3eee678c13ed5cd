"""SmoothQuant: golden rewrites, and the same function before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.builder import compile_function
from tvm_qplugin.calibrator import calibrate
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.frontend import load
from tvm_qplugin.passes.smooth_quant import SmoothQuant, smoothable
from tvm_qplugin.quantizer import annotated, quantize_module
from tvm_qplugin.smoothing import smooth
from tvm_qplugin.targets import find_profile

Array = np.ndarray[Any, Any]


@I.ir_module
class Inside:
    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            n = R.nn.layer_norm(x, R.const([1.0, 1.0], "float32"), R.const([2.0, 2.0], "float32"), axes=[-1])
            y = R.matmul(n, R.const([[1.0, 0.0], [0.0, 1.0]], "float32"))
            R.output(y)
        return y


@I.ir_module
class InsideSmooth:
    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            n = R.nn.layer_norm(x, R.const([0.5, 2.0], "float32"), R.const([1.0, 4.0], "float32"), axes=[-1])
            y = R.matmul(n, R.const([[2.0, 0.0], [0.0, 0.5]], "float32"))
            R.output(y)
        return y


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            n = R.nn.layer_norm(x, R.const([1.0, 1.0], "float32"), R.const([2.0, 2.0], "float32"), axes=[-1])
            a = R.matmul(n, R.const([[1.0, 0.0], [0.0, 1.0]], "float32"))
            y = R.add(a, n)
            R.output(y)
        return y


@I.ir_module
class BeforeSmooth:
    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            n = R.nn.layer_norm(x, R.const([1.0, 1.0], "float32"), R.const([2.0, 2.0], "float32"), axes=[-1])
            n_smooth = R.multiply(n, R.const([0.5, 2.0], "float32"))
            a = R.matmul(n_smooth, R.const([[2.0, 0.0], [0.0, 0.5]], "float32"))
            y = R.add(a, n)
            R.output(y)
        return y


SAMPLES = [np.random.default_rng(seed).normal(size=(1, 2)).astype("float32") for seed in range(5)]
MAXIMA = {"n": np.array([16.0, 1.0], "float32")}


@pytest.mark.parametrize(("before", "after"), [(Inside, InsideSmooth), (Before, BeforeSmooth)])
def test_golden(before: Any, after: Any) -> None:
    found = tvm.transform.Sequential([SmoothQuant(MAXIMA)])(before)
    tvm.ir.assert_structural_equal(found, after, map_free_vars=True)


@pytest.mark.parametrize("mod", [Inside, Before])
def test_the_function_stays(mod: Any) -> None:
    module = load(mod)
    changed = smooth(module, SAMPLES)
    with pytest.raises(ValueError, match="StructuralEqual"):
        tvm.ir.assert_structural_equal(module, changed)
    for sample in SAMPLES:
        exact, found = (compile_function(m)([sample])[0] for m in (module, changed))
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


def test_only_what_is_float_until_dense_layers_read_it() -> None:
    assert list(smoothable(Before["main"])) == ["n"]


def test_a_table_is_not_enough() -> None:
    module, recipe = load(Before), Recipe("mine", smooth=True)
    names = annotated(module, recipe, find_profile("host"))[1].observed()
    table = calibrate(module, SAMPLES, names=names)
    with pytest.raises(CalibrationError, match="equalizes or smooths, which needs samples"):
        quantize_module(module, recipe=recipe, calibration=table)
