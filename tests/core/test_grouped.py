"""Weights in 8 and 4 bits with scales of groups: what is stored, and how near it is to what was given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_qplugin.core.grouped import Grouped, pack_nibbles, quantize_grouped, unpack_nibbles
from tvm_qplugin.core.qparams import Array


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def distance(weight: Array, stored: Array) -> float:
    """Signal to noise in dB."""
    return float(10 * np.log10(np.square(weight).sum() / np.square(weight - stored).sum()))


@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 40))
def test_nibbles_round_trip(seed: int, rows: int, depth: int):
    codes = np.random.default_rng(seed).integers(-8, 8, (rows, depth)).astype("int8")
    packed = pack_nibbles(codes)
    assert packed.dtype == "uint8" and packed.shape == (rows, (depth + 1) // 2)
    np.testing.assert_array_equal(unpack_nibbles(packed, depth), codes)


def test_the_first_of_two_is_in_the_low_nibble():
    np.testing.assert_array_equal(pack_nibbles(np.array([[1, -2, -8]], "int8")), [[0xE1, 0x08]])


@given(
    st.integers(0, 999), st.integers(1, 9), st.integers(1, 70), st.integers(0, 40), st.sampled_from([4, 8])
)
def test_no_weight_is_far_from_what_was_given(seed: int, rows: int, depth: int, group: int, bits: int):
    weight = normal(seed, rows, depth)
    stored = quantize_grouped(weight, bits, group)
    size = group if 0 < group < depth else depth
    assert (stored.group, stored.bits, stored.scale.shape) == (size, bits, (rows, -(-depth // size)))
    largest = np.repeat(np.abs(stored.scale.astype("float32")), size, axis=1)[:, :depth]
    inside = np.abs(weight) <= (127 if bits == 8 else 7) * largest
    assert (np.abs(weight - stored.real()) <= np.where(inside, 0.502 * largest, np.inf)).all()
    loss = np.square(weight - stored.real()).sum()
    assert loss <= np.square(weight).sum() * (1e-4 if bits == 8 else 0.04)


@given(st.integers(0, 999), st.integers(1, 40), st.sampled_from([4, 8]))
def test_a_stored_weight_is_a_product_of_float32(seed: int, depth: int, bits: int):
    stored = quantize_grouped(normal(seed, 3, depth), bits, 8)
    for n, k in np.ndindex(3, depth):
        byte = int(stored.codes[n, k // 2 if bits == 4 else k])
        code = byte if bits == 8 else ((byte >> 4 * (k % 2)) & 15 ^ 8) - 8
        assert stored.real()[n, k] == np.float32(code) * np.float32(stored.scale[n, k // stored.group])


def test_choosing_scales_beats_the_range_of_minus_7_to_7():
    weight = normal(0, 64, 256)
    blocks = weight.reshape(64, 8, 32)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / 7
    plain = (np.rint(blocks / scale) * scale).reshape(weight.shape)
    assert distance(weight, quantize_grouped(weight, 4, 32).real()) > distance(weight, plain) + 1.2


def test_sizes():
    four, eight = (quantize_grouped(normal(0, 64, 256), *how) for how in ((4, 32), (8,)))
    assert sum(array.nbytes for array in four.arrays) * 8 == 4.5 * 64 * 256
    assert sum(array.nbytes for array in eight.arrays) == 64 * (256 + 4)


@pytest.mark.parametrize(("size", "dtype"), [(1.0, "float16"), (1e-5, "float32"), (1e7, "float32")])
def test_scales_are_float16_where_that_keeps_their_digits(size: float, dtype: str):
    weight = normal(0, 8, 64) * np.float32(size)
    stored = quantize_grouped(weight, 4, 32)
    assert stored.scale.dtype == dtype and distance(weight, stored.real()) > 20


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros(bits: int):
    weight = normal(0, 4, 64)
    weight[1], weight[2, :32] = 0, 0
    stored = quantize_grouped(weight, bits, 32).real()
    assert (stored[weight == 0] == 0).all() and np.isfinite(stored).all()


def test_one_scale_for_a_row_is_float32():
    stored = quantize_grouped(normal(0, 4, 64), 8)
    assert stored.scale.dtype == "float32" and isinstance(stored, Grouped)
    assert (np.abs(stored.codes).max(axis=1) == 127).all()
