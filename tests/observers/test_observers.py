"""Observers against numpy, and their algebra."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.observers import OBSERVERS, find_observer
from tvm_qplugin.observers.min_max import BLOCK, MinMax, extremes
from tvm_qplugin.observers.moving_average import MovingAverage

ARRAYS = hnp.arrays("float32", hnp.array_shapes(max_side=5), elements=st.floats(-1e6, 1e6, width=32))
SETS = st.lists(ARRAYS, min_size=1, max_size=6)


def _seen(kind, arrays):
    observer = kind()
    for array in arrays:
        observer.update(array)
    return observer


@given(SETS, SETS)
def test_min_max_merges_to_the_whole(first, second):
    merged = _seen(MinMax, first)
    merged.merge(_seen(MinMax, second))
    assert merged == _seen(MinMax, first + second)
    assert merged.range() == (min(a.min() for a in first + second), max(a.max() for a in first + second))


@given(SETS)
def test_moving_average_starts_as_a_mean(arrays):
    low, high = _seen(MovingAverage, arrays).range()
    assert low == pytest.approx(np.mean([a.min() for a in arrays], dtype="float64"), abs=1e-6, rel=1e-6)
    assert high == pytest.approx(np.mean([a.max() for a in arrays], dtype="float64"), abs=1e-6, rel=1e-6)


def test_moving_average_forgets():
    observer = MovingAverage.resume(0.0, 1.0, 1000)
    observer.update(np.float32([-1, 2]))
    assert observer.range() == pytest.approx((-0.01, 1.01)) and observer.count == 1001


def test_moving_average_merges_by_samples():
    a, b = MovingAverage.resume(-1, 1, 3), MovingAverage.resume(-5, 5, 1)
    a.merge(b)
    assert a == MovingAverage.resume(-2, 2, 4)


@pytest.mark.parametrize("name", list(OBSERVERS))
@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK])
def test_what_is_not_finite(name, bad, word, place):
    x = np.zeros(2 * BLOCK + 1, "float32")
    x[place] = bad
    observer = find_observer(name)()
    with pytest.raises(CalibrationError, match=word):
        observer.update(x)
    assert observer.count == 0


def test_edges():
    with pytest.raises(CalibrationError, match="no elements"):
        extremes(np.zeros((0, 3), "float32"))
    assert extremes(np.float32(3)) == (3, 3)
    for name in OBSERVERS:
        with pytest.raises(CalibrationError, match="no sample"):
            find_observer(name)().range()
    with pytest.raises(CalibrationError, match="'median' is unknown; use one of entropy, least_mse, min_max"):
        find_observer("median")
