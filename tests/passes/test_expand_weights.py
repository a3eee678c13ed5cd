"""ExpandWeights: what schemes store becomes float32 again."""

import numpy as np
import tvm
from tvm import IRModule
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.passes.expand_weights import ExpandWeights, stored_arguments
from tvm_qplugin.passes.fold_constants import FoldConstants


@I.ir_module
class Stored:
    @R.function
    def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
        R.func_attr({"qplugin.scheme": "dynamic"})
        with R.dataflow():
            w = R.dequantize(
                R.const([[2, 4], [6, -8]], "int8"),
                R.const([0.5, 0.25], "float32"),
                R.const([0, 0], "int8"),
                axis=1,
            )
            a = R.matmul(x, w)
            b = R.astype(R.const([1.0, 0.5], "float16"), "float32")
            y = R.add(a, b)
            R.output(y)
        return y


def run(mod: IRModule, a_pass: tvm.transform.Pass) -> IRModule:
    return tvm.transform.Sequential([a_pass])(mod)


def test_stored_constants():
    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
            with R.dataflow():
                a = R.matmul(x, R.const([[1.0, 1.0], [3.0, -2.0]], "float32"))
                y = R.add(a, R.const([1.0, 0.5], "float32"))
                R.output(y)
            return y

    assert_structural_equal(run(Stored, ExpandWeights()), Expected)


def test_what_they_are():
    found = stored_arguments(Stored)
    assert list(found) == [("a", 1), ("y", 1)]
    np.testing.assert_array_equal(found["a", 1].real(), [[1, 1], [3, -2]])
    assert found["y", 1].array.dtype == "float16"


def test_of_other_modules_only_float16_is_expanded():
    """There a dequantized weight may be that of an integer layer."""

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
            with R.dataflow():
                w = R.dequantize(
                    R.const([[2, 4], [6, -8]], "int8"),
                    R.const([0.5, 0.25], "float32"),
                    R.const([0, 0], "int8"),
                    axis=1,
                )
                a = R.matmul(x, w)
                y = R.add(a, R.const([1.0, 0.5], "float32"))
                R.output(y)
            return y

    plain = Stored.clone()
    plain["main"] = plain["main"].without_attr("qplugin.scheme")
    expanded = run(plain, ExpandWeights())
    assert_structural_equal(expanded, Expected)
    assert run(expanded, ExpandWeights()).same_as(expanded)


def test_folding_constants_keeps_them():
    assert_structural_equal(run(Stored, FoldConstants()), Stored)
