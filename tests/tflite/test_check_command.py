"""``tvm-qplugin check``: tables, JSON, exit codes, and what it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tvm_qplugin import cli, demo

IMAGE = (1, 8, 8, 4)


def call(*args: object) -> Any:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], env={"COLUMNS": "200"})


@pytest.fixture
def model(litert: Any, tmp_path: Path) -> Path:
    """RELU, HARD_SWISH, RELU."""
    tensors = {name: litert.Tensor(IMAGE, "int8", 0.5) for name in "abcd"}
    codes = [litert.Builtin.RELU, litert.Builtin.HARD_SWISH, litert.Builtin.RELU]
    nodes = [litert.Node(code, (a,), (b,)) for code, a, b in zip(codes, "abc", "bcd", strict=True)]
    path = tmp_path / "model.tflite"
    path.write_bytes(litert.write(tensors, nodes, ["a"], ["d"]))
    return path


def test_tables(model: Path) -> None:
    result = call("check", model)
    assert result.exit_code == 0
    for text in (
        "Mapped to Edge TPU",
        "Operation not supported",
        "More than one subgraph is not supported",
        "x * RELU6(x + 3) / 6",
        "1 of 3 operators map to Edge TPU",
        "cut at operator 1",
        "This is a prediction",
    ):
        assert text in result.stdout


def test_json(model: Path) -> None:
    data = json.loads(call("check", model, "--json").stdout)
    assert (data["mapped"], data["total"], data["cut"], data["complete"]) == (1, 3, 1, False)
    assert [op["placed"] for op in data["operators"]] == ["mapped", "cpu", "cpu"]
    assert data["operators"][2]["cut_off"] and data["on_chip_bytes"] == 8_074_035


def test_strict(model: Path) -> None:
    result = call("check", model, "--strict", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["mapped"] == 1
    assert "2 of 3 operators stay on the CPU, and --strict allows none" in result.stderr
    assert call("check", model, "--strict", "--target", "litert-hexagon").exit_code == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--target", "tpu"), "device 'tpu' is unknown; use one of edgetpu"),
        (("--runtime", "3"), "runtime 3 of Edge TPU is unknown; expected 10 to 14"),
        (("--target", "litert-gpu", "--runtime", "3"), "it has no runtime versions: leave the option out"),
    ],
)
def test_wrong_options(model: Path, options: tuple[str, ...], text: str) -> None:
    result = call("check", model, *options)
    assert result.exit_code == 1 and text in result.stderr


def test_wrong_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"not a model at all")
    for path, text in [(broken, "is not a .tflite file"), (tmp_path / "absent.tflite", "cannot be read")]:
        result = call("check", path)
        assert result.exit_code == 1 and text in result.stderr


def test_a_quantized_model_is_exported_first(litert: Any, tmp_path: Path) -> None:
    options = ("--calibration", demo.calibration_path(), "--samples", 9, "-o", tmp_path / "q")
    assert call("quantize", demo.model_path(), *options, "--io", "int8").exit_code == 0
    assert call("check", tmp_path / "q", "--target", "ethos-u", "--strict").exit_code == 0


def test_the_edgetpu_recipe_maps_fully(litert: Any, tmp_path: Path) -> None:
    """From the float model to a file that is predicted to run on the device whole."""
    stage, file = tmp_path / "stage", tmp_path / "digits.tflite"
    calibration = ("--calibration", demo.calibration_path(), "--samples", 8)
    quantized = call("quantize", demo.model_path(), *calibration, "--recipe", "edgetpu", "-o", stage)
    assert quantized.exit_code == 0, quantized.output
    exported = call("export", stage, "-o", file, "--io", "int8", "--no-per-channel-dense")
    assert exported.exit_code == 0, exported.output
    assert call("check", file, "--strict").exit_code == 0
