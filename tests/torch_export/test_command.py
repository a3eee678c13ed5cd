"""A ``.pt2`` file through the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typer.testing import CliRunner

from tvm_qplugin import cli


def call(*args: object) -> Any:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], env={"COLUMNS": "200"})


def test_from_a_file_to_a_result(case_of: Any, tmp_path: Path) -> None:
    case = case_of.named("resnet")
    file, samples = tmp_path / "model.pt2", tmp_path / "samples.npz"
    torch.export.save(case.program, file)
    labels = [int(case.wanted(sample)[0].argmax()) for sample in case.samples(8)]
    np.savez(samples, x=np.concatenate([sample[0] for sample in case.samples(8)]), y=labels)
    for step in (
        ("inspect", file),
        ("quantize", file, "--calibration", samples, "-o", tmp_path / "q"),
        ("build", tmp_path / "q", "-o", tmp_path / "a"),
        ("run", tmp_path / "a", "--input", samples, "--index", 2, "-o", tmp_path / "out.npz"),
        ("evaluate", tmp_path / "a", "--data", samples, "--reference", file, "--json"),
    ):
        result = call(*step)
        assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["samples"] == 8, said
    with np.load(tmp_path / "out.npz") as saved:
        (found,) = saved.values()
    (wanted,) = case.wanted(case.samples(8)[2])
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=0.05)


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_text("nothing")
    result = call("quantize", tmp_path / "model.pt2", "--recipe", "dynamic", "-o", tmp_path / "q")
    assert result.exit_code == 1
    assert "was not written by torch.export.save" in result.stderr
