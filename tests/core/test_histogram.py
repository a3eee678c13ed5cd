"""The histogram: exact against numpy, the same however the data is divided, bounded, and JSON."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tvm_qplugin.core.histogram import BINS, Histogram

ARRAYS = hnp.arrays(
    "float32", st.integers(1, 40), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True)
)
SETS = st.lists(ARRAYS, min_size=1, max_size=5)


def histogram(arrays):
    found = Histogram()
    for array in arrays:
        found.update(array, float(array.min()), float(array.max()))
    return found


@given(SETS, SETS)
@example([np.zeros(3, "float32")], [np.float32([1e30, -1e-30])])
@example([np.float32([1.0])], [np.float32([1.0 + 2**-23])])
def test_parts_give_the_whole(first, second):
    whole = histogram(first + second)
    merged = histogram(second)
    merged.merge(histogram(first))
    assert merged == whole == histogram([np.concatenate(first + second)])
    assert whole.total == sum(array.size for array in first + second)
    assert len(whole.counts) <= BINS


@given(SETS)
def test_counts_are_numpys(arrays):
    found = histogram(arrays)
    values = np.concatenate(arrays).astype("float64")
    index = np.floor(values / found.width) - found.first
    np.testing.assert_array_equal(
        found.counts, np.bincount(index.astype("int64"), minlength=len(found.counts))
    )
    assert found.zeros == (values == 0).sum()
    assert (found.low, found.high) == (values.min(), values.max()) == (found.edges[0], found.edges[-1])
    assert found.counts[0] and found.counts[-1]


def test_resolution():
    found = histogram([np.random.default_rng(0).normal(size=100_000).astype("float32")])
    assert BINS // 2 < len(found.counts) <= BINS


def test_an_empty_one_changes_nothing():
    found = histogram([np.float32([1, 2])])
    found.merge(Histogram())
    assert found == histogram([np.float32([1, 2])])
    empty = Histogram()
    empty.merge(found)
    assert empty == found


@given(SETS)
def test_round_trip(arrays):
    found = histogram(arrays)
    assert Histogram.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    "change", [{"counts": "00000"}, {"first": 3}, {"zeros": 9}, {"high": 1e9}, {"low": float("nan")}]
)
def test_damaged(change):
    with pytest.raises(ValueError):
        Histogram.from_json({**histogram([np.float32([1, 2, 3])]).to_json(), **change})
