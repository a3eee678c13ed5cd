"""QuantizeIO: integer inputs and outputs."""

import json

import pytest
import tvm
from tvm import IRModule
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.passes.quantize_io import IO_PARAMS, QuantizeIO


@I.ir_module
class Relu:
    @R.function
    def main(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
        with R.dataflow():
            q = R.quantize(x, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
            a = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
            b = R.nn.relu(a)
            r = R.quantize(b, R.const(0.25, "float32"), R.const(-128, "int8"), out_dtype="int8")
            y = R.dequantize(r, R.const(0.25, "float32"), R.const(-128, "int8"))
            R.output(y)
        return y


def quantized(mod: IRModule, mode: str) -> tuple[IRModule, dict[str, list[dict[str, object] | None]]]:
    after = tvm.transform.Sequential([QuantizeIO(mode)])(mod)
    described = json.loads(after["main"].attrs[IO_PARAMS])
    after["main"] = after["main"].without_attr(IO_PARAMS)
    return tvm.relax.transform.CanonicalizeBindings()(after), described


def test_int8():
    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2,), "int8")) -> R.Tensor((2,), "int8"):
            with R.dataflow():
                a = R.dequantize(x, R.const(0.5, "float32"), R.const(1, "int8"))
                b = R.nn.relu(a)
                r = R.quantize(b, R.const(0.25, "float32"), R.const(-128, "int8"), out_dtype="int8")
                y = R.dequantize(r, R.const(0.25, "float32"), R.const(-128, "int8"))
                gv = R.quantize(y, R.const(0.25, "float32"), R.const(-128, "int8"), out_dtype="int8")
                R.output(gv)
            return gv

    after, described = quantized(Relu, "int8")
    tvm.ir.assert_structural_equal(after, Expected)
    assert described["inputs"] == [{"scale": 0.5, "zero_point": 1, "dtype": "int8", "axis": None}]


def test_uint8_moves_the_zero_point():
    after, described = quantized(Relu, "uint8")
    assert str(after["main"].params[0].ty.dtype) == str(after["main"].ret_ty.dtype) == "uint8"
    assert described["inputs"] == [{"scale": 0.5, "zero_point": 129, "dtype": "uint8", "axis": None}]
    assert described["outputs"] == [{"scale": 0.25, "zero_point": 0, "dtype": "uint8", "axis": None}]


def test_float_changes_nothing():
    tvm.ir.assert_structural_equal(tvm.transform.Sequential([QuantizeIO("float")])(Relu), Relu)


def test_an_input_that_is_returned_too_stays_float():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2,), "float32")) -> R.Tuple(
            R.Tensor((2,), "float32"), R.Tensor((2,), "float32")
        ):
            with R.dataflow():
                q = R.quantize(x, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
                y = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
                R.output(y)
            return (y, x)

    after, described = quantized(Mod, "int8")
    assert [str(t.dtype) for t in after["main"].ret_ty.fields] == ["int8", "float32"]
    assert described["inputs"] == [None] and described["outputs"][1] is None


def test_an_input_transposed_before_it_is_quantized():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((3, 2), "float32"):
            with R.dataflow():
                t = R.permute_dims(x, (1, 0))
                q = R.quantize(t, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
                y = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
                R.output(y)
            return y

    after, _ = quantized(Mod, "int8")
    assert str(after["main"].params[0].ty.dtype) == "int8"


def test_an_unknown_mode():
    with pytest.raises(RecipeError, match="io='int4': expected one of float, int8, uint8"):
        QuantizeIO("int4")
