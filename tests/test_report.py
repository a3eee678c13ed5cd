"""Numbers as people read them, and tables that show everything they are given."""

import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from tvm_qplugin import report
from tvm_qplugin.core.manifest import Manifest, OperatorInfo, TensorInfo
from tvm_qplugin.core.qparams import QuantParams

ACTIVATION = QuantParams.of(0.5, -3).to_json()
WEIGHT = QuantParams.of([0.25, 0.125], 0, axis=0).to_json()
MANIFEST = Manifest(
    "net",
    (TensorInfo("image", (1, 3, 4, 4), "int8", ACTIVATION),),
    (TensorInfo("logits", (1, 2), "float32"),),
    tensors={"conv_out": ACTIVATION, "conv_out_weight": WEIGHT},
    operators=(
        OperatorInfo("conv_out", "conv2d", "qconv2d", True, None, (1, 4, 4, 2), 1_500, 2_000_000),
        OperatorInfo("[red]", "erf", None, False, "erf has no integer kernel", (1, 4, 4, 2)),
        OperatorInfo("last", "erf", None, False, "erf has no integer kernel", (1, 2)),
    ),
    sizes={"model.so": 70_000, "weights": 1_500},
    sha256={"model.so": "0" * 64},
)


def shown(part: RenderableType, width: int = 160) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(part)
    return capture.get()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 KB"), (999_949, "999.9 KB"), (2_500_000, "2.5 MB")],
)
def test_size(count, text):
    assert report.size(count) == text


@pytest.mark.parametrize(("count", "text"), [(0, "-"), (12, "12"), (1_280, "1.3 k"), (41_000_000, "41.0 M")])
def test_amount(count, text):
    assert report.amount(count) == text


def test_small_pieces():
    assert report.percent(0.98765) == "98.77 %" and report.percent(None) == "-"
    assert report.shape((1, 3, 224)) == "1x3x224" and report.shape(()) == "scalar"
    assert report.grid(None) == "-"
    assert report.grid(ACTIVATION) == "0.5, -3"
    assert report.grid(WEIGHT) == "0.125..0.25, 0"


def test_totals_and_islands():
    assert report.totals(MANIFEST.operators) == {
        "operators": 3, "integer": 1, "float": 2, "weight_bytes": 1_500, "macs": 2_000_000,
        "integer_macs": 2_000_000,
    }  # fmt: skip
    assert [item["name"] for item in report.islands(MANIFEST.operators)] == ["[red]", "last"]


def test_summary_gives_a_share_only_where_all_multiplications_are_known():
    text = str(report.summary(MANIFEST.operators))
    assert text == "1 of 3 operators run on integers, 100.0 % of 2.0 M multiply-adds"
    unknown = OperatorInfo("d", "dense", None, False, "the recipe keeps it in float", (1, 2))
    assert "%" not in str(report.summary([*MANIFEST.operators, unknown]))
    assert str(report.summary([unknown])) == "1 operators, all in float"


def test_artifact_bytes_are_files_and_manifest():
    assert report.artifact_bytes(MANIFEST) == 70_000 + len(MANIFEST.dumps())


def test_operators_json_has_the_parameters():
    entries = report.operators_json(MANIFEST)
    assert json.loads(json.dumps(entries)) == entries
    assert entries[0]["qparams"] == ACTIVATION
    weight = {"scale": [0.25, 0.125], "zero_point": [0, 0], "dtype": "int8", "axis": 0}
    assert entries[0]["weight_qparams"] == weight
    assert entries[1]["qparams"] is None and entries[1]["reason"] == "erf has no integer kernel"


@pytest.mark.parametrize("width", [80, 160])
def test_operators_table(width):
    text = shown(report.operators_table(MANIFEST), width)
    for part in ("conv_out", "qconv2d", "1x4x4x2", "0.5, -3", "1.5 KB", "2.0 M", "[red]", "int8", "float"):
        assert part in text


def test_columns_of_which_nothing_is_known_are_left_out():
    operators = tuple(op for op in MANIFEST.operators if not op.integer)
    text = shown(report.operators_table(Manifest("net", (), (), operators=operators)))
    assert "output" in text and "kernel" not in text and "weights" not in text


def test_islands_are_grouped_by_reason():
    lines = shown(report.islands_table(MANIFEST.operators)).splitlines()
    row = next(line for line in lines if "no integer kernel" in line)
    assert "[red], last" in row


def test_tensors_table():
    text = shown(report.tensors_table(MANIFEST))
    assert "image" in text and "1x3x4x4" in text and "int8" in text and "0.5, -3" in text


def test_columns_table_takes_text_as_it_is():
    text = shown(report.columns_table("results [b]", [{"what": "[i]", "value": "1"}]))
    assert "[i]" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("inf"), None),
        (float("nan"), None),
        ((1, 2.5), [1, 2.5]),
        ({"a": (float("-inf"),)}, {"a": [None]}),
    ],
)
def test_plain(value: Any, expected: Any):
    assert report.plain(value) == expected


def test_plain_leaves_numpy_to_the_caller():
    assert report.plain(np.int64(3).item()) == 3


def test_layers_that_share_a_weight_store_it_small_too() -> None:
    steps = [("step0", 64, "stored"), ("step1", 0, "stored"), ("head", 0, "too small")]
    made = [OperatorInfo(name, "dense", None, False, why, (1, 4), size) for name, size, why in steps]
    text = report.stored(made, {"step0", "step1"}).plain
    assert text == "2 of 3 layers store their weights small, 64 B; in float32 stay\n  head: too small"
