"""EqualDilation: golden modules, and the same convolution in numbers."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal

from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.equal_dilation import EqualDilation

GRID = QuantParams.of([0.5, 0.25], 0, "int8", 0)


def weight_of(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def conv(weight: Array, dilation: tuple[int, int], grid: QuantParams | None = None) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 9, 11, weight.shape[3]), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = ir.const(weight)
            if grid is not None:
                w = builder.emit(ir.dequantize(w, grid), "w_dq")
            layout = ("NHWC", "OHWI", "NHWC")
            out = relax.op.nn.conv2d(x, w, (1, 2), [1, 0, 2, 3], dilation, 1, *layout, out_dtype="float32")
            result = builder.emit_output(out)
        builder.emit_func_output(result)
    return builder.get()


def spread(weight: Array) -> Array:
    out = np.zeros((weight.shape[0], 5, 7, weight.shape[3]), weight.dtype)
    out[:, ::2, ::3] = weight
    return out


def test_zeros_between_the_taps() -> None:
    weight = weight_of(2, 3, 3, 4)
    assert_structural_equal(EqualDilation()(conv(weight, (2, 3))), conv(spread(weight), (1, 1)))


def test_a_dequantized_weight() -> None:
    weight = (weight_of(2, 3, 3, 4) * 40).astype("int8")
    assert_structural_equal(EqualDilation()(conv(weight, (2, 3), GRID)), conv(spread(weight), (1, 1), GRID))


@pytest.mark.parametrize(("shape", "given", "equal"), [((3, 1), (2, 1), (2, 2)), ((1, 3), (1, 4), (4, 4))])
def test_the_dilation_of_one_tap_is_free(
    shape: tuple[int, int], given: tuple[int, int], equal: tuple[int, int]
) -> None:
    weight = weight_of(2, *shape, 4)
    assert_structural_equal(EqualDilation()(conv(weight, given)), conv(weight, equal))


def test_others_stay() -> None:
    shifted = QuantParams.of(0.5, 3, "int8")
    weight = (weight_of(2, 3, 3, 4) * 40).astype("int8")
    for module in (conv(weight_of(2, 3, 3, 4), (2, 2)), conv(weight, (2, 3), shifted)):
        assert_structural_equal(EqualDilation()(module), module)


@pytest.mark.parametrize("taps", [(3, 3), (3, 1), (2, 3)])
def test_the_values_are_the_same(taps: tuple[int, int]) -> None:
    module = conv(weight_of(2, *taps, 4), (2, 1))
    x = np.random.default_rng(1).normal(size=(1, 9, 11, 4)).astype("float32")
    (got,), (wanted,) = compile_function(EqualDilation()(module))([x]), compile_function(module)([x])
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
