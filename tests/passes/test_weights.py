"""Weights and biases as integers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tvm_qplugin.core.spec import WEIGHT, QuantSpec
from tvm_qplugin.passes.weights import quantize_bias, quantize_weight

PER_TENSOR = QuantSpec(symmetric=True, narrow=True)
ONE = np.float32(1)
VALUES = st.floats(-100, 100, width=32)


@given(arrays("float32", (3, 2, 2), elements=VALUES))
def test_error_is_half_a_step_and_the_lowest_code_is_not_used(weight: np.ndarray) -> None:
    q, params = quantize_weight(weight, WEIGHT, None, np.float32(1))
    assert q.dtype == np.int8 and q.min() >= -127
    step = params.scale.reshape(3, 1, 1)
    assert (np.abs(params.dequantize(q) - weight) <= step * 0.5001 + 1e-30).all()


def test_one_scale_per_output_channel() -> None:
    weight = np.float32([[1, 0], [127, 0]])
    q, params = quantize_weight(weight, WEIGHT, None, np.float32(1))
    np.testing.assert_array_equal(q, [[127, 0], [127, 0]])
    np.testing.assert_allclose(params.scale, [1 / 127, 1], rtol=1e-6)


@given(arrays("float32", (3, 2, 2), elements=VALUES))
def test_reduced_weights_fit_in_pairs(weight: np.ndarray) -> None:
    q, params = quantize_weight(weight, replace(WEIGHT, reduced=True), None, np.float32(1))
    assert 255 * 2 * np.abs(q.astype("int32")).max() <= np.iinfo("int16").max
    step = params.scale.reshape(3, 1, 1)
    assert (np.abs(params.dequantize(q) - weight) <= step * 0.5001 + 1e-30).all()


@pytest.mark.parametrize("spec", [WEIGHT, PER_TENSOR])
def test_reduced_weights_use_all_of_their_range(spec: QuantSpec) -> None:
    q, params = quantize_weight(np.float32([[64, -1], [-32, 16]]), replace(spec, reduced=True), None, ONE)
    expected = [[64, -1], [-64, 32]] if spec.axis == 0 else [[64, -1], [-32, 16]]
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(params.scale, [1, 0.5] if spec.axis == 0 else 1)


def test_a_channel_of_zeros_takes_the_largest_scale() -> None:
    _, params = quantize_weight(np.float32([[0, 0], [127, 0], [254, 0]]), WEIGHT, None, np.float32(1))
    np.testing.assert_array_equal(params.scale, [2, 1, 2])


def test_nothing_but_zeros() -> None:
    q, params = quantize_weight(np.zeros((2, 3), "float32"), WEIGHT, None, np.float32(1))
    assert not q.any() and (params.scale == 1).all()


@pytest.mark.parametrize("spec", [WEIGHT, PER_TENSOR])
def test_a_large_bias_widens_the_scale_of_a_small_channel(spec: QuantSpec) -> None:
    weight, bias, s_in = np.float32([[1e-9, 0], [1, 0.5]]), np.float32([1000, 1]), np.float32(0.01)
    q, params = quantize_weight(weight, spec, bias, s_in)
    integers, grid = quantize_bias(bias, s_in, params)
    assert np.abs(integers.astype("int64")).max() <= 2**30 + 1
    np.testing.assert_allclose(grid.dequantize(integers), bias, rtol=1e-4, atol=float(np.max(grid.scale)))
    assert q.dtype == np.int8


def test_the_scale_of_a_bias_is_the_product() -> None:
    _, weight = quantize_weight(np.float32([[127, 0], [254, 0]]), WEIGHT, None, np.float32(1))
    integers, grid = quantize_bias(np.float32([3, 3]), np.float32(0.5), weight)
    np.testing.assert_array_equal(grid.scale, [0.5, 1])
    np.testing.assert_array_equal(integers, [6, 3])
    assert grid.dtype == "int32" and grid.axis == 0
