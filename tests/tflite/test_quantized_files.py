"""Files of every scheme through the commands: quantize, build, run; the results beside LiteRT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tvm_qplugin import cli, demo
from tvm_qplugin.core.qparams import Array

# scheme: largest difference from LiteRT; 0.0 is to the last bit
SCHEMES = {"int8": 0.0, "int16x8": 0.0, "dynamic": 1e-5, "fp16": 1e-4}
MODELS = {"tiny_kws_dscnn_int8": 0.0, "tiny_kws_dscnn_hybrid_dynrange": 1e-6}


def call(*args: object) -> Any:
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.stderr
    return result


def outputs_of(artifact: Path, sample: Path, folder: Path) -> list[Array]:
    """What ``run`` saves of one sample."""
    call("run", artifact, "--input", sample, "-o", folder / "out.npz")
    with np.load(folder / "out.npz") as saved:
        return [saved[name] for name in saved.files]


def codes_of(litert: Any, file: bytes, image: Array) -> Array:
    """The image as the file takes it: in float, or as int8."""
    (given,) = litert.Interpreter(model_content=file).get_input_details()
    if given["dtype"] == np.float32:
        return image
    scale, zero = given["quantization"]
    return np.clip(np.rint(image / np.float32(scale)) + zero, -128, 127).astype("int8")


def compare(litert: Any, file: Path, image: Array, folder: Path, tolerance: float) -> None:
    np.save(folder / "image.npy", image)
    call("quantize", file, "-o", folder / "stage")
    call("build", folder / "stage", "-o", folder / "artifact")
    found = outputs_of(folder / "artifact", folder / "image.npy", folder)
    given = codes_of(litert, file.read_bytes(), image)
    for got, wanted in zip(found, litert.run(file.read_bytes(), given).outputs, strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_our_exports(litert: Any, tmp_path: Path, scheme: str) -> None:
    samples = ("--calibration", demo.calibration_path(), "--samples", 9) if scheme.startswith("int") else ()
    call("quantize", demo.model_path(), "--recipe", scheme, *samples, "-o", tmp_path / "ours")
    call("export", tmp_path / "ours", "-o", tmp_path / "model.tflite")
    image = demo.evaluation()[0][0].reshape(1, 8, 8, 1)
    compare(litert, tmp_path / "model.tflite", image, tmp_path, SCHEMES[scheme])


@pytest.mark.parametrize("name", MODELS)
def test_files_of_others(litert: Any, shared_data: Path, tmp_path: Path, name: str) -> None:
    file = shared_data / "models" / "tflite" / f"{name}.tflite"
    (given,) = litert.Interpreter(model_content=file.read_bytes()).get_input_details()
    values = np.random.default_rng(0).normal(size=given["shape"]).astype("float32")
    compare(litert, file, values, tmp_path, MODELS[name])


def test_a_stored_scheme_stays(tmp_path: Path) -> None:
    call("quantize", demo.model_path(), "--recipe", "fp16", "-o", tmp_path / "ours")
    call("export", tmp_path / "ours", "-o", tmp_path / "model.tflite")
    result = call("quantize", tmp_path / "model.tflite", "-o", tmp_path / "again", "--json")
    assert json.loads(result.stdout)["recipe"]["name"] == "fp16"
    assert "is quantized already (scheme fp16)" in result.stderr
