"""Simulator: the oracle for integers, compiled float islands, each as a whole."""

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax

from tvm_qplugin.builder import compile_function
from tvm_qplugin.core import dynamic
from tvm_qplugin.core.errors import InputError
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import stored_arguments
from tvm_qplugin.passes.quantize_dynamic import QuantizeDynamic
from tvm_qplugin.simulator import Simulator, simulate, steps_of

GRID = QuantParams.of(0.05, 3)
X = np.random.default_rng(0).normal(size=(2, 6)).astype("float32")
op = relax.op


def module_of(make) -> IRModule:
    """``make(builder, dequantized input)`` gives the outputs."""
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(X.shape, "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            outputs = make(bb, pair(bb, x))
            out = bb.emit_output(relax.Tuple(outputs))
        bb.emit_func_output(out)
    return bb.get()


def pair(bb: relax.BlockBuilder, x: relax.Expr) -> relax.Var:
    value = x if isinstance(x, relax.Var) else bb.emit(x)
    return bb.emit(ir.dequantize(bb.emit(ir.quantize(value, GRID)), GRID))


def both(module: IRModule) -> tuple[list[Array], list[Array]]:
    return compile_function(module)([X]), simulate(module, X)


def norm(bb: relax.BlockBuilder, x: relax.Expr) -> relax.Var:
    ones, zeros = ir.const(np.ones(6), "float32"), ir.const(np.zeros(6), "float32")
    return bb.emit(op.nn.layer_norm(x, ones, zeros, axes=[-1]))


def test_integers_come_from_the_oracle():
    module = module_of(lambda bb, x: [pair(bb, op.nn.relu(x))])
    np.testing.assert_array_equal(simulate(module, X)[0], np.maximum(GRID.fake_quant(X), 0))


@pytest.mark.parametrize(
    ("start", "stop", "step"), [(-1, -(2**31), -1), (4, 0, -2), (1, 2**31 - 1, 2), (-3, -1, 1)]
)
def test_slices(start: int, stop: int, step: int):
    module = module_of(lambda bb, x: [pair(bb, op.strided_slice(x, [1], [start], [stop], [step]))])
    (real,), (wanted,) = both(module)
    np.testing.assert_array_equal(real, wanted)


def test_islands_that_feed_each_other_through_integers():
    def make(bb, x):
        first = norm(bb, x)
        second = norm(bb, pair(bb, op.nn.relu(pair(bb, first))))
        third = bb.emit(op.add(bb.emit(op.multiply(second, relax.const(np.float32(0.3)))), first))
        return [pair(bb, third), first, second]

    for real, wanted in zip(*both(module_of(make)), strict=True):
        np.testing.assert_array_equal(real, wanted)


def test_a_tuple_inside_an_island():
    def make(bb, x):
        parts = bb.emit(op.split(norm(bb, x), 2, 1))
        return [pair(bb, relax.TupleGetItem(parts, 1)), bb.emit(relax.TupleGetItem(parts, 0))]

    for real, wanted in zip(*both(module_of(make)), strict=True):
        np.testing.assert_array_equal(real, wanted)


def test_floats_of_one_depth_run_together():
    def make(bb, x):
        return [bb.emit(op.add(norm(bb, x), relax.const(np.float32(1)))), norm(bb, x)]

    lowered = Simulator(module_of(make)).module
    assert [type(step).__name__ for step in steps_of(lowered)] == ["_Integer", "_Integer", "Island"]


def test_intermediate_tensors_by_name():
    tensors = Simulator(module_of(lambda bb, x: [pair(bb, op.nn.relu(x))])).tensors(X)
    np.testing.assert_array_equal(tensors["x"], GRID.quantize(X))


@pytest.mark.parametrize("arrays", [(), (X, X), (X[:1],), (X.astype("float64"),), ("x",)])
def test_inputs_that_do_not_fit(arrays: tuple[Array, ...]):
    with pytest.raises(InputError, match=r"expected x: float32 \(2, 6\)"):
        simulate(module_of(lambda bb, x: [pair(bb, op.nn.relu(x))]), *arrays)


def test_calls_of_other_functions_inside_an_island():
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(X.shape, "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            doubled = bb.emit_te(tvm.topi.add, x, x)
            out = bb.emit_output(pair(bb, doubled))
        bb.emit_func_output(out)
    np.testing.assert_array_equal(simulate(bb.get(), X)[0], GRID.fake_quant(X + X))


def test_dynamic_layers_are_quantized_as_they_run():
    """Float operators around them are compiled; the layer in between is LiteRT's."""
    weight, bias = np.arange(-9, 9).reshape(6, 3).astype("float32"), np.ones(3, "float32")
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(X.shape, "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            product = bb.emit(op.matmul(bb.emit(op.exp(x), "e"), ir.const(weight)), "product")
            layer = bb.emit(op.nn.relu(bb.emit(op.add(product, ir.const(bias)), "sum")), "layer")
            out = bb.emit_output(relax.Tuple([bb.emit(op.sqrt(layer), "root"), layer]))
        bb.emit_func_output(out)
    module = tvm.transform.Sequential([QuantizeDynamic(smallest=1)])(bb.get())
    (stored,) = stored_arguments(module).values()
    assert stored.grid is not None
    root, found = simulate(module, X)
    (exp,) = compile_function(module_of_exp())([X])
    wanted = dynamic.dense({"lo": 0.0, "hi": None}, exp, stored.array.T, stored.grid.scale, bias)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(root, np.sqrt(wanted), rtol=1e-6)
    assert 0 < abs(found - compile_function(module, "x86-64")([X])[1]).max() < 0.5


def module_of_exp() -> IRModule:
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(X.shape, "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            out = bb.emit_output(op.exp(x))
        bb.emit_func_output(out)
    return bb.get()


def test_integers_looked_up_by_computed_indices():
    codes = np.arange(-60, 60, dtype="int8").reshape(12, 10)
    bb, index = relax.BlockBuilder(), relax.Var("index", relax.TensorType((2, 3), "int32"))
    with bb.function("main", [index]):
        with bb.dataflow():
            rows = bb.emit(op.take(ir.const(codes), index, 0))
            out = bb.emit_output(op.astype(rows, "float32"))
        bb.emit_func_output(out)
    at = np.array([[0, 3, 11], [11, 7, 0]], "int32")
    np.testing.assert_array_equal(simulate(bb.get(), at)[0], codes[at].astype("float32"))
