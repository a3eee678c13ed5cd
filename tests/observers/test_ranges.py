"""Observers that choose a range: against exhaustive search and numpy, and how they merge."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tvm_qplugin.core.calibration import CalibrationTable, TensorRange
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.spec import ACTIVATION, ACTIVATION16
from tvm_qplugin.observers import find_observer, range_of
from tvm_qplugin.observers.least_mse import LeastMSE
from tvm_qplugin.observers.per_channel import PerChannel
from tvm_qplugin.observers.percentile import Percentile

CHOOSING = ("percentile", "entropy", "least_mse")
RNG = np.random.default_rng(3)
NORMAL = RNG.normal(0.3, 1, 200_000).astype("float32")
OUTLIERS = np.concatenate([NORMAL, np.float32([12, -11])])
RELU = np.maximum(OUTLIERS, 0)
ARRAYS = st.lists(
    hnp.arrays("float32", st.integers(1, 30), elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=4
)


def seen(name, *arrays):
    observer = find_observer(name)()
    for array in arrays:
        observer.update(array)
    return observer


def error(x, low, high, spec=ACTIVATION):
    return float(np.square(spec.params(low, high).fake_quant(x).astype("float64") - x).mean())


@given(ARRAYS, ARRAYS)
@settings(max_examples=25)
def test_merging_is_exact(first, second):
    for name in CHOOSING:
        merged = seen(name, *second)
        merged.merge(seen(name, *first))
        assert merged == seen(name, *first, *second)
        low, high = merged.range()
        assert merged.histogram.low <= low or low == 0
        assert high <= merged.histogram.high or high == 0


@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize("x", [OUTLIERS, RELU], ids=["two sides", "relu"])
def test_outliers_are_left_out(name, x):
    low, high = seen(name, x).range()
    assert 3 < high < 11 and -11 < low < 0.01
    assert (low > -0.01) == (x is RELU)
    typical = x[np.abs(x) < 3]
    assert error(typical, low, high) < error(typical, x.min(), x.max())


@pytest.mark.parametrize("x", [OUTLIERS, RELU, NORMAL, RNG.uniform(0, 6, 50_000).astype("float32")])
def test_no_range_on_a_finer_grid_has_a_smaller_error(x):
    low, high = seen("least_mse", x).range()
    found = error(x, low, high)
    tried = [
        error(x, x.min() * a, x.max() * b)
        for a in (np.linspace(0.03, 1, 25) if x.min() < 0 else [0.0])
        for b in np.linspace(0.03, 1, 25)
    ]
    assert found <= 1.05 * min(tried)


def test_uniform_values_are_not_clipped():
    x = np.linspace(0, 6, 100_001, dtype="float32")
    assert seen("least_mse", x).range() == (0, 6)
    assert seen("entropy", x).range()[1] > 5.9


def test_percentiles_are_numpys():
    low, high = seen("percentile", OUTLIERS[:1000], OUTLIERS[1000:]).range()
    width = seen("percentile", OUTLIERS).histogram.width
    wanted = np.quantile(OUTLIERS, [Percentile.outside, 1 - Percentile.outside])
    assert np.abs(np.array([low, high]) - wanted).max() <= 2 * width


def test_symmetric_ranges():
    low, high = seen("least_mse", OUTLIERS).range(ACTIVATION16)
    assert low == -high
    best = error(OUTLIERS, low, high, ACTIVATION16)
    assert best <= error(OUTLIERS, OUTLIERS.min(), OUTLIERS.max(), ACTIVATION16)


@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize("value", [0.0, -2.5, 1e-30])
def test_a_constant(name, value):
    assert seen(name, np.full(9, value, "float32")).range() == (np.float32(value), np.float32(value))


@pytest.mark.parametrize("name", CHOOSING)
def test_tables_keep_histograms(name, tmp_path):
    parts = [seen(name, x) for x in (NORMAL[:5000], OUTLIERS[-5000:])]
    tables = [
        CalibrationTable("m", 1, {"x": TensorRange(o.histogram.low, o.histogram.high, name, 1, o.histogram)})
        for o in parts
    ]
    tables[0].merge(tables[1]).save(tmp_path / "t.json")
    found = CalibrationTable.load(tmp_path / "t.json").ranges["x"]
    whole = seen(name, NORMAL[:5000], OUTLIERS[-5000:])
    assert found.histogram == whole.histogram and found.count == 2
    for spec in (ACTIVATION, ACTIVATION16):
        assert range_of(found, spec) == whole.range(spec)
    assert tables[0].ranges["x"].histogram == parts[0].histogram


def test_a_range_is_no_histogram():
    with pytest.raises(CalibrationError, match="no histogram to go on from"):
        LeastMSE.resume(-1, 1, 5)


@given(
    st.lists(hnp.arrays("float32", (3, 2, 4), elements=st.floats(-9, 9, width=32)), min_size=2, max_size=5)
)
def test_per_channel(arrays):
    observer, rest = seen("per_channel", arrays[0]), seen("per_channel", *arrays[1:])
    observer.merge(PerChannel())
    observer.merge(rest)
    whole = np.concatenate(arrays)
    np.testing.assert_array_equal(observer.low, whole.min((0, 1)))
    np.testing.assert_array_equal(observer.high, whole.max((0, 1)))
    assert observer.range() == (whole.min(), whole.max()) and observer.count == len(arrays)


def test_channels_that_change():
    with pytest.raises(CalibrationError, match="it has 3 channels, and 4 were observed before"):
        seen("per_channel", np.ones((2, 4), "float32"), np.ones((2, 3), "float32"))
