"""spread_qdq: parameters behind data movement."""

import tvm
from tvm import IRModule
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.passes.spread_qdq import spread_qdq


def spread(mod: IRModule) -> IRModule:
    return tvm.relax.transform.CanonicalizeBindings()(spread_qdq(mod))


def test_a_flatten_before_a_layer():
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 2, 2), "int8")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
                b = R.reshape(a, (1, 4))
                c = R.exp(b)
                R.output(c)
            return c

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 2, 2), "int8")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
                b = R.reshape(a, (1, 4))
                b_q = R.quantize(b, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
                b_dq = R.dequantize(b_q, R.const(0.5, "float32"), R.const(1, "int8"))
                c = R.exp(b_dq)
                R.output(c)
            return c

    tvm.ir.assert_structural_equal(spread(Before), Expected)


def test_what_is_quantized_already_stays():
    @I.ir_module
    class Mod:
        @R.function
        def main(q: R.Tensor((1, 2, 2), "int8")) -> R.Tensor((1, 4), "int8"):
            with R.dataflow():
                a = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
                b = R.reshape(a, (1, 4))
                c = R.quantize(b, R.const(0.25, "float32"), R.const(1, "int8"), out_dtype="int8")
                R.output(c)
            return c

    tvm.ir.assert_structural_equal(spread(Mod), Mod)


def test_parts_on_different_grids_stay():
    @I.ir_module
    class Mod:
        @R.function
        def main(q: R.Tensor((2,), "int8")) -> R.Tensor((4,), "float32"):
            with R.dataflow():
                a = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
                b = R.dequantize(q, R.const(0.25, "float32"), R.const(1, "int8"))
                c = R.concat((a, b), axis=0)
                d = R.exp(c)
                R.output(d)
            return d

    tvm.ir.assert_structural_equal(spread(Mod), Mod)
