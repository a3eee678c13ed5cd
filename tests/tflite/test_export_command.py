"""``tvm-qplugin export`` on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tvm_qplugin import cli, demo
from tvm_qplugin.tflite.file import load


def call(*args: object) -> Any:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "q"
    result = call(
        "quantize", demo.model_path(), "--calibration", demo.calibration_path(), "--samples", 9, "-o", folder
    )
    assert result.exit_code == 0, result.stderr
    return folder


def test_int16x8(litert: Any, tmp_path: Path) -> None:
    samples = ("--calibration", demo.calibration_path(), "--samples", 9, "--recipe", "int16x8")
    for step in (
        ("quantize", demo.model_path(), *samples, "-o", tmp_path / "q"),
        ("export", tmp_path / "q", "-o", tmp_path / "m.tflite", "--io", "int16"),
        ("quantize", tmp_path / "m.tflite", "-o", tmp_path / "again"),
    ):
        result = call(*step)
        assert result.exit_code == 0, result.stderr
    image = demo.evaluation()[0][0].reshape(1, 8, 8, 1)
    runner = litert.Interpreter(model_content=(tmp_path / "m.tflite").read_bytes())
    (given,) = runner.get_input_details()
    assert given["dtype"] == np.int16
    codes = np.rint(image / given["quantization"][0]).clip(-32768, 32767).astype("int16")
    (logits,) = litert.run((tmp_path / "m.tflite").read_bytes(), codes).outputs
    assert logits.dtype == np.int16 and logits.argmax() == demo.evaluation()[1][0]


def test_exported_file_runs(litert: Any, stage: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    result = call("export", stage, "-o", path, "--io", "uint8", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["bytes"] == path.stat().st_size and data["operators"]["CONV_2D"] > 0
    (given,), (made,) = data["inputs"], data["outputs"]
    assert (given["name"], given["shape"], given["dtype"]) == ("image", [1, 8, 8, 1], "uint8")
    codes = np.rint(demo.evaluation()[0][0].reshape(1, 8, 8, 1) / given["scale"]) + given["zero point"]
    (logits,) = litert.run(path.read_bytes(), codes.astype("uint8")).outputs
    assert logits.shape == tuple(made["shape"]) and logits.argmax() == demo.evaluation()[1][0]


def test_shown(litert: Any, stage: Path, tmp_path: Path) -> None:
    text = call("export", stage, "-o", tmp_path / "model.tflite").stdout
    assert "1x8x8x1" in text and "operators: " in text and "CONV_2D" in text


def test_a_float_model(litert: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    result = call("export", demo.model_path(), "-o", path, "--json")
    assert result.exit_code == 0, result.stderr
    assert "QUANTIZE" not in json.loads(result.stdout)["operators"]
    image = demo.evaluation()[0][0].reshape(1, 8, 8, 1)
    (logits,) = litert.run(path.read_bytes(), image).outputs
    assert logits.dtype == "float32" and logits.argmax() == demo.evaluation()[1][0]
    result = call("export", demo.model_path(), "-o", tmp_path / "other.tflite", "--io", "int8")
    assert result.exit_code == 1 and "quantize it to int8 first" in result.stderr
    assert not (tmp_path / "other.tflite").exists()


@pytest.mark.parametrize(("recipe", "dtype"), [("dynamic", "int8"), ("fp16", "float16")])
def test_schemes_that_need_no_samples(litert: Any, tmp_path: Path, recipe: str, dtype: str) -> None:
    folder, path = tmp_path / "q", tmp_path / "model.tflite"
    options = ("--recipe", recipe, "-o", folder, "--calibration", demo.calibration_path())
    result = call("quantize", demo.model_path(), *options)
    assert result.exit_code == 0, result.stderr
    assert "needs no calibration" in result.stderr
    assert f"tvm-qplugin build {folder} --target host -o artifact" in " ".join(result.stdout.split())
    assert call("inspect", folder).exit_code == 0
    assert call("export", folder, "-o", path).exit_code == 0
    assert dtype in {tensor.dtype for tensor in load(path).tensors}
    image = demo.evaluation()[0][0].reshape(1, 8, 8, 1)
    (logits,) = litert.run(path.read_bytes(), image).outputs
    assert logits.argmax() == demo.evaluation()[1][0]
    result = call("quantize", demo.model_path(), "--recipe", recipe, "-o", tmp_path / "io", "--io", "int8")
    assert result.exit_code == 1 and "computes in float" in result.stderr
