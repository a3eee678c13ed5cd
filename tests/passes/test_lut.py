"""Elementwise functions as tables of 256 results."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir, lut

IN, OUT = QuantParams.of(0.05, 10), QuantParams.of(0.05, -20)
op = relax.op
REAL = IN.dequantize(np.arange(-128, 128))


def table(make, source: QuantParams = IN, target: QuantParams = OUT) -> Array | None:
    """The table of ``make(dequantized)``, None where it is no function of one tensor."""
    bb = relax.BlockBuilder()
    q, r = (relax.Var(name, relax.TensorType((2, 3), source.dtype)) for name in "qr")
    with bb.function("main", [q, r]):
        with bb.dataflow():
            leaf = bb.emit(ir.dequantize(q, source))
            other = bb.emit(ir.dequantize(r, source))
            out = bb.emit_output(make(bb, leaf, other))
        bb.emit_func_output(out)
    func = bb.get()["main"]
    defined = ir.definitions(func)
    var = ir.output_vars(func)[0]
    leaf = lut.unary_slice(var, defined)
    return None if leaf is None else lut.table(var, leaf, defined, (source, target))


@pytest.mark.parametrize(
    ("make", "function"),
    [
        (op.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
        (op.tanh, np.tanh),
        (op.nn.silu, lambda x: x / (1 + np.exp(-x))),
        (op.abs, np.abs),
        (op.exp, np.exp),
        (lambda x: op.nn.leakyrelu(x, 0.1), lambda x: np.where(x > 0, x, 0.1 * x)),
        (lambda x: op.clip(x, -1, 1), lambda x: np.clip(x, -1, 1)),
        (lambda x: op.subtract(relax.const(1.0), x), lambda x: 1 - x),
        (lambda x: op.power(x, relax.const(2.0)), lambda x: x**2),
        (lambda x: op.nn.softplus(x, 1.0, 20.0), lambda x: np.log1p(np.exp(x))),
    ],
)
def test_functions(make, function) -> None:
    wanted = OUT.quantize(function(REAL.astype("float64")))
    found = table(lambda bb, x, _: make(x))
    assert found is not None and np.abs(found.astype(int) - wanted).max() <= 1
    assert np.mean(found != wanted) < 0.06  # LiteRT keeps 8 bits of a slope


def test_a_chain_that_reads_its_input_twice() -> None:
    found = table(lambda bb, x, _: op.multiply(x, bb.emit(op.sigmoid(x))))
    np.testing.assert_array_equal(found, table(lambda bb, x, _: op.nn.silu(x)))


def test_unsigned_input_starts_at_zero() -> None:
    source = QuantParams.of(0.05, 138, "uint8")
    np.testing.assert_array_equal(
        table(lambda bb, x, _: op.tanh(x), source), table(lambda bb, x, _: op.tanh(x))
    )


def test_undefined_values_take_the_end_of_the_range() -> None:
    found = table(lambda bb, x, _: op.log(x))
    assert found is not None and (found[REAL <= 0] == -128).all()


def test_two_tensors_or_a_vector_are_no_table() -> None:
    assert table(lambda bb, x, y: op.add(x, y)) is None
    assert table(lambda bb, x, _: op.add(x, ir.const(np.zeros(3), "float32"))) is None
    assert table(lambda bb, x, _: op.nn.softmax(x)) is None


@I.ir_module
class Reshaped:
    @R.function
    def main(q: R.Tensor((2, 3), "int8")) -> R.Tensor((3, 2), "float32"):
        with R.dataflow():
            a = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
            b = R.reshape(a, (3, 2))
            c = R.exp(b)
            R.output(c)
        return c


def test_movement_inside_is_no_table() -> None:
    assert isinstance(Reshaped, tvm.IRModule)
    func = Reshaped["main"]
    assert lut.unary_slice(ir.output_vars(func)[0], ir.definitions(func)) is None
