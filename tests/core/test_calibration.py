"""Calibration tables: round trip, merge, files."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_qplugin.core.calibration import CalibrationTable, TensorRange
from tvm_qplugin.core.errors import CalibrationError

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
RANGES = st.builds(
    lambda a, b, observer, count: TensorRange(min(a, b), max(a, b), observer, count),
    FLOATS,
    FLOATS,
    st.sampled_from(["min_max", "moving_average"]),
    st.integers(1, 10**6),
)
TABLES = st.builds(CalibrationTable, st.text(), st.integers(0), st.dictionaries(st.text(), RANGES))
TABLE = CalibrationTable(
    "abc", 3, {"x": TensorRange(-1, 2, "min_max", 3), "y": TensorRange(0, 4, "moving_average", 3)}
)


@given(TABLES)
def test_round_trip(table):
    assert CalibrationTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_save_and_load(tmp_path):
    path = tmp_path / "t.json"
    TABLE.save(path)
    assert CalibrationTable.load(path) == TABLE and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(CalibrationError, match="cannot write"):
        TABLE.save(tmp_path / "missing" / "t.json")
    (tmp_path / "directory").mkdir()
    with pytest.raises(CalibrationError, match="cannot write"):
        TABLE.save(tmp_path / "directory")
    assert [p.name for p in tmp_path.iterdir()] == ["directory"]


def test_merge():
    other = CalibrationTable(
        "abc", 1, {"x": TensorRange(-5, 0, "min_max", 1), "y": TensorRange(4, 8, "moving_average", 1)}
    )
    merged = TABLE.merge(other)
    assert merged.samples == 4
    assert merged.ranges["x"] == TensorRange(-5, 2, "min_max", 4)
    assert merged.ranges["y"] == TensorRange(1, 5, "moving_average", 4)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(TABLE, model_hash="def"), "different models.*abc and def"),
        (replace(TABLE, ranges={"x": TABLE.ranges["x"]}), "different tensors.*'y'"),
        (replace(TABLE, ranges={**TABLE.ranges, "y": TABLE.ranges["x"]}), "'y' was observed by"),
    ],
)
def test_what_cannot_be_merged(other, message):
    with pytest.raises(CalibrationError, match=message):
        TABLE.merge(other)


def test_check():
    TABLE.check("abc", ["x"])
    with pytest.raises(CalibrationError, match="of abc, this model is def; calibrate"):
        TABLE.check("def", ["x"])
    with pytest.raises(CalibrationError, match="no range for 'z'"):
        TABLE.check("abc", ["x", "z"])


def _changed(**change):
    return json.dumps({**TABLE.to_json(), **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("\udcff", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("[1]", "not a calibration table"),
        ('{"format": "other"}', "not a calibration table"),
        (_changed(version=2), "version 2, this program reads version 1"),
        (_changed(samples="3"), "damaged"),
        (_changed(model_hash=None), "damaged"),
        (_changed(ranges=[]), "damaged"),
        (_changed(ranges={"x": {"low": 1}}), "damaged"),
        (_changed(ranges={"x": {"low": 1, "high": 0, "observer": "min_max", "count": 1}}), "damaged"),
        (_changed(ranges={"x": {"low": 0, "high": 1, "observer": "min_max", "count": 0}}), "damaged"),
        (_changed(samples=-1), "samples -1"),
    ],
)
def test_damaged_files(tmp_path, text, message):
    path = tmp_path / "t.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CalibrationError, match=message) as caught:
        CalibrationTable.load(path)
    assert str(path) in str(caught.value)


def test_a_range_beyond_float32():
    table = replace(TABLE, ranges={"x": TensorRange(-1e39, 0, "min_max", 1)})
    with pytest.raises(CalibrationError, match=r"the range \[-1e\+39, 0\] of 'x' is beyond float32"):
        table.check("abc", ["x"])


def test_missing_file(tmp_path):
    with pytest.raises(CalibrationError, match=r"none\.json cannot be read"):
        CalibrationTable.load(tmp_path / "none.json")
