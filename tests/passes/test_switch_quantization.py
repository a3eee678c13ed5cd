"""SwitchQuantization: golden module, and both ends of the switches."""

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.passes.switch_quantization import Quantized, Switch, SwitchQuantization


@I.ir_module
class Float:
    @R.function
    def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[0.5, -1.0], [0.25, 1.0]], "float32"))
            b = R.exp(a)
            R.output(b)
        return b


@I.ir_module
class QDQ:
    """The weight is rounded to a grid, ``a`` leaves the integers, ``b`` stays float."""

    @R.function
    def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
        with R.dataflow():
            x_q = R.quantize(x, R.const(0.5, "float32"), R.const(3, "int8"), out_dtype="int8")
            x_dq = R.dequantize(x_q, R.const(0.5, "float32"), R.const(3, "int8"), out_dtype="float32")
            w = R.dequantize(
                R.const([[1, -2], [0, 2]], "int8"), R.const(0.5, "float32"), R.const(0, "int8"), axis=-1
            )
            a = R.matmul(x_dq, w)
            a_q = R.quantize(a, R.const(0.25, "float32"), R.const(0, "int8"), out_dtype="int8")
            a_dq = R.dequantize(a_q, R.const(0.25, "float32"), R.const(0, "int8"), out_dtype="float32")
            b = R.exp(a_dq)
            R.output(b)
        return b


X = np.random.default_rng(0).normal(size=(2, 2)).astype("float32") * 20
GRID, RESULT = QuantParams.of(0.5, 3), QuantParams.of(0.25, 0)
WEIGHT = np.float32([[0.5, -1.0], [0.25, 1.0]])
ROUNDED = np.float32([[0.5, -1.0], [0.0, 1.0]])


def run(*switches: float) -> list[np.ndarray]:
    module = tvm.transform.Sequential([SwitchQuantization(QDQ, ("x", "a"))])(Float)
    return compile_function(module)([X, np.float32(switches)])


def test_golden() -> None:
    """One tensor that is read as integers: plain value plus switched change."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
            with R.dataflow():
                a = R.exp(x)
                R.output(a)
            return a

    @I.ir_module
    class Model:
        @R.function
        def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
            with R.dataflow():
                x_q = R.quantize(x, R.const(0.5, "float32"), R.const(3, "int8"), out_dtype="int8")
                x_dq = R.dequantize(x_q, R.const(0.5, "float32"), R.const(3, "int8"), out_dtype="float32")
                a = R.exp(x_dq)
                R.output(a)
            return a

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 2), "float32"), switches: R.Tensor((1,), "float32")) -> R.Tuple(
            R.Tensor((2, 2), "float32")
        ):
            with R.dataflow():
                steps = R.divide(x, R.const(0.5, "float32"))
                whole = R.round(steps)
                inside = R.clip(whole, -131.0, 124.0)
                x_rounded = R.multiply(inside, R.const(0.5, "float32"))
                x_switch = R.strided_slice(switches, axes=[0], begin=[0], end=[1])
                difference = R.subtract(x_rounded, x)
                x_change = R.multiply(x_switch, difference)
                x_switched = R.add(x, x_change)
                a = R.exp(x_switched)
                out = (a,)
                R.output(out)
            return out

    found = tvm.transform.Sequential([SwitchQuantization(Model)])(Before)
    tvm.ir.assert_structural_equal(found, Expected)


def test_order_of_switches() -> None:
    assert Quantized(QDQ, Float["main"]).switches == [
        Switch("int8", "x"),
        Switch("weight", "a"),
        Switch("int8", "a"),
    ]


@pytest.mark.parametrize("x", [0, 1])
@pytest.mark.parametrize("w", [0, 1])
@pytest.mark.parametrize("a", [0, 1])
def test_each_switch_rounds_what_it_stands_for(x: int, w: int, a: int) -> None:
    source = GRID.fake_quant(X) if x else X
    made = source @ (ROUNDED if w else WEIGHT)
    made = RESULT.fake_quant(made) if a else made
    out, seen, product = run(x, w, a)
    np.testing.assert_allclose(seen, source, rtol=1e-6)
    np.testing.assert_allclose(product, made, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out, np.exp(made), rtol=1e-4)


def test_a_float_reader_sees_the_float_tensor() -> None:
    """Where a layer is kept in float its tensor is rounded for integer readers only."""

    @I.ir_module
    class Two:
        @R.function
        def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
            with R.dataflow():
                x_q = R.quantize(x, R.const(0.5, "float32"), R.const(3, "int8"), out_dtype="int8")
                x_dq = R.dequantize(x_q, R.const(0.5, "float32"), R.const(3, "int8"), out_dtype="float32")
                a = R.exp(x_dq)
                b = R.add(x, a)
                R.output(b)
            return b

    @I.ir_module
    class Plain:
        @R.function
        def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
            with R.dataflow():
                a = R.exp(x)
                b = R.add(x, a)
                R.output(b)
            return b

    module = tvm.transform.Sequential([SwitchQuantization(Two)])(Plain)
    small = X / 20
    (found,) = compile_function(module)([small, np.float32([1])])
    np.testing.assert_allclose(found, small + np.exp(GRID.fake_quant(small)), rtol=1e-6)


def test_modules_that_do_not_belong_together() -> None:
    @I.ir_module
    class Other:
        @R.function
        def main(y: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
            with R.dataflow():
                b = R.exp(y)
                R.output(b)
            return b

    with pytest.raises(ModelError, match="was not made of this float module, or has integer inputs"):
        tvm.transform.Sequential([SwitchQuantization(QDQ)])(Other)
