"""The command ``debug``, and ``--int16`` and ``--keep-float`` of ``quantize``, on the embedded model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tvm_qplugin import cli, debug_pictures, demo
from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.inspection import read_module
from tvm_qplugin.simulator import Simulator

MODEL, SAMPLES, TEST = (str(p) for p in (demo.model_path(), demo.calibration_path(), demo.evaluation_path()))
DEBUG = ("debug", MODEL, "--calibration", SAMPLES, "--samples", "20", "--layer-samples", "1")


def call(*args: object) -> Any:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], env={"COLUMNS": "200"})


def data(*args: object) -> dict[str, Any]:
    result = call(*args, "--json")
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    assert result.stdout.count("\n") == 1
    return dict(json.loads(result.stdout))


def operators(folder: Path) -> dict[str, dict[str, Any]]:
    return {op["name"]: op for op in data("inspect", folder)["operators"] if op["kernel"] != "quantize"}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A table in which the range of one convolution's tensor is a hundred times too wide, and its name."""
    path = tmp_path_factory.mktemp("table") / "table.json"
    assert call("calibrate", MODEL, "--calibration", SAMPLES, "--samples", "20", "-o", path).exit_code == 0
    known = CalibrationTable.load(path)
    found = data("inspect", MODEL)["operators"]
    name = [op["name"] for op in found if op["op"] == "conv2d"][1]
    content = json.loads(path.read_text())
    for edge in ("low", "high"):
        content["ranges"][name][edge] *= 100
    path.write_text(json.dumps(content))
    assert CalibrationTable.load(path).ranges.keys() == known.ranges.keys()
    return path, name


def test_a_broken_layer_is_found_and_mended(tmp_path: Path, table: tuple[Path, str]) -> None:
    path, name = table
    out, mended = tmp_path / "report", tmp_path / "mended"
    options = ("--table", path, "--data", TEST, "--compare", "60", "--layer-samples", "1")
    budget = ("--sqnr", "20", "--max-loss", "2")
    found = data("debug", MODEL, *options, *budget, "-o", out, "--apply", mended)
    assert found["ranking"][0] == name
    assert found["proposal"]["met"] and name in found["proposal"]["layers"]
    accuracy = found["proposal"]["found"]
    assert accuracy["reference_accuracy"] - accuracy["accuracy"] <= 0.02 and accuracy["sqnr_db"] >= 20
    assert found["found"]["sqnr_db"] < 20
    names = ("layers.json", "recipe.json", "layers.png", "ranges.png")
    assert sorted(names) == sorted(p.name for p in out.iterdir())
    assert found["written"] == [*(str(out / name) for name in names), str(mended)]
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in names[2:])
    written = json.loads((out / "layers.json").read_text())
    assert written["ranking"] == found["ranking"]

    again = tmp_path / "again"
    assert (
        call("quantize", MODEL, "--table", path, "--recipe", out / "recipe.json", "-o", again).exit_code == 0
    )
    x = np.load(TEST)["x"][:1]
    first, second = (Simulator(read_module(folder)) for folder in (mended, again))
    shaped = x.reshape([int(d) for d in first.module["main"].params[0].ty.shape]).astype("float32")
    np.testing.assert_array_equal(first.run(shaped)[0], second.run(shaped)[0])
    scheme = operators(mended)[name]["scheme"] if name in operators(mended) else "float"
    assert scheme == found["proposal"]["layers"][name]


def test_what_a_terminal_shows() -> None:
    result = call(*DEBUG, "--compare", "8", "--sqnr", "5")
    assert result.exit_code == 0
    assert "layers, the worst first" in result.stdout and "the budget is met" in result.stdout
    failing = call(*DEBUG, "--compare", "8", "--sqnr", "45", "--no-int16")
    assert failing.exit_code == 0 and "as proposed" in failing.stdout and "int16x8 to" not in failing.stdout


def test_pictures_need_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug_pictures, "find_spec", lambda _: None)
    result = call(*DEBUG, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "pip install 'tvm-qplugin[debug]', or leave them out with --no-pictures" in result.stderr
    found = data(*DEBUG, "--compare", "4", "--no-pictures", "-o", tmp_path / "out")
    assert found["written"] == [str(tmp_path / "out" / "layers.json")]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((MODEL,), 2, "give samples with --calibration, or a --table"),
        ((MODEL, "--calibration", SAMPLES, "--max-loss", "1"), 2, "give --data"),
        ((MODEL, "--calibration", SAMPLES, "--sqnr", "nan"), 2, "nan is no number of decibels"),
        ((MODEL, "--calibration", SAMPLES, "--sqnr", "inf"), 2, "inf is no number of decibels"),
        ((MODEL, "--table", "t.json"), 2, "a table holds no samples to compare on: give --data"),
        ((MODEL, "--calibration", SAMPLES, "--recipe", "fp16"), 1, "'fp16' computes in float"),
    ],
)
def test_wrong_arguments(args: tuple[str, ...], code: int, message: str) -> None:
    result = call("debug", *args)
    assert result.exit_code == code and message in result.stderr


def test_schemes_by_options(tmp_path: Path) -> None:
    names = [op["name"] for op in data("inspect", MODEL)["operators"] if op["op"] == "conv2d"]
    folder = tmp_path / "q"
    options = ("--calibration", SAMPLES, "--samples", "10", "--int16", f"^{names[0]}$")
    found = data("quantize", MODEL, *options, "--keep-float", f"^{names[1]}$", "-o", folder)
    rules = [(rule["scope"], rule["scheme"]) for rule in found["recipe"]["rules"]]
    assert rules == [(f"^{names[1]}$", "float"), (f"^{names[0]}$", "int16x8")]
    assert found["schemes"]["int16x8"] == 1 and found["schemes"]["float"] and found["schemes"]["int8"]
    described = operators(folder)
    assert described[names[0]]["scheme"] == "int16x8" and described[names[0]]["kernel"] == "qconv2d16"
    assert described[names[1]]["scheme"] == "float" if names[1] in described else True
    assert "int16x8" in call("inspect", folder).stdout
    wrong = call("quantize", MODEL, "--calibration", SAMPLES, "--int16", "nonesuch", "-o", tmp_path / "w")
    assert wrong.exit_code == 1 and "'nonesuch' matches no layer" in wrong.stderr
