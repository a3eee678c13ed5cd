"""What no input is to blame for: Ctrl-C, a full disk, our own mistakes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tvm_qplugin import cli, cli_debug, demo
from tvm_qplugin.core.errors import QPluginError

MODEL = str(demo.model_path())
QUANTIZE = ("quantize", MODEL, "--calibration", str(demo.calibration_path()), "--samples", "20")


def call(*args: object):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """``q``: a quantized model, ``a``: its artifact, ``t.json``: its table."""
    folder = tmp_path_factory.mktemp("made")
    assert call(*QUANTIZE, "-o", folder / "q", "--save-table", folder / "t.json").exit_code == 0
    assert call("build", folder / "q", "-o", folder / "a").exit_code == 0
    return folder


def _raises(error: Exception):
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    return fail


def _press(*_args, **_kwargs):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    "place",
    [
        "tvm_qplugin.passes.insert_qdq.tensor_params",  # inside a pass: TVM changes the exception's class
        "tvm_qplugin.calibrator.ObservedModel.observe",
        "tvm_qplugin.core.calibration.CalibrationTable.save",  # half of the output is written
        "tvm_qplugin.frontend.canonicalize",
    ],
)
def test_ctrl_c_leaves_nothing(place, tmp_path, monkeypatch):
    monkeypatch.setattr(place, _press)
    result = call(*QUANTIZE, "-o", tmp_path / "q", "--save-table", tmp_path / "t.json")
    assert result.exit_code == 130, result.stderr
    assert "Interrupted" in result.stderr and "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == []


def test_ctrl_c_while_an_artifact_is_written(made, tmp_path, monkeypatch):
    monkeypatch.setattr("tvm_qplugin.store._swap", _press)
    assert call("build", made / "q", "-o", tmp_path / "a").exit_code == 130
    assert os.listdir(tmp_path) == []


def test_ctrl_c_does_not_wait_for_a_measurement(made):
    args = [sys.executable, "-m", "tvm_qplugin", "bench", str(made / "a"), "--repeat", "100000000"]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "loading" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=30)
    assert process.returncode == 130, messages
    assert "Interrupted" in messages and "Traceback" not in messages


def test_what_we_did_not_foresee_is_said_to_be_our_fault(monkeypatch, tmp_path):
    error = ZeroDivisionError("first line\nthe reason")
    monkeypatch.setattr("tvm_qplugin.cli_build.inspect_source", _raises(error))
    result = call("inspect", tmp_path)
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    assert "ZeroDivisionError: the reason" in result.stderr and "report" in result.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [(PermissionError(13, "Permission denied", "x"), "permissions"), (MemoryError(), "not enough memory")],
)
def test_the_machine_is_at_fault(error, said, monkeypatch, tmp_path):
    monkeypatch.setattr("tvm_qplugin.cli_build.inspect_source", _raises(error))
    result = call("inspect", tmp_path)
    assert result.exit_code == 1 and said in result.stderr and "Traceback" not in result.stderr


def test_a_full_disk_leaves_the_old_stage(made, tmp_path, monkeypatch):
    shutil.copytree(made / "q", tmp_path / "q")
    before = (tmp_path / "q" / "module.json").read_bytes()
    monkeypatch.setattr("tvm_qplugin.outputs._put", _raises(OSError(28, "No space left on device")))
    result = call("quantize", MODEL, "--table", made / "t.json", "-o", tmp_path / "q")
    assert result.exit_code == 1 and "No space left on device" in result.stderr
    assert os.listdir(tmp_path) == ["q"]
    assert (tmp_path / "q" / "module.json").read_bytes() == before


def test_a_full_disk_is_told_with_the_path(made, tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_bytes", _raises(OSError(28, "No space left on device")))
    result = call("export", made / "q", "-o", tmp_path / "m.tflite")
    assert result.exit_code == 1
    assert "m.tflite (No space left on device): choose" in " ".join(result.stderr.split())
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_half_of_a_diagnosis(tmp_path, monkeypatch):
    found = SimpleNamespace(to_json=dict, proposal=None, layers=[])
    monkeypatch.setattr("os.replace", _raises(OSError(28, "No space left on device")))
    with pytest.raises(QPluginError, match=r"cannot write .*out \(No space left on device\): choose another"):
        cli_debug._write(found, tmp_path / "out", pictures=False)
    assert os.listdir(tmp_path / "out") == []


def test_debug_shows_the_traceback(tmp_path):
    result = call("inspect", tmp_path / "gone", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "ModelError" in result.stderr


def test_no_command_shows_the_help():
    result = call()
    assert result.exit_code in (0, 2) and "quantize" in result.stdout + result.stderr
    assert call("quantise").exit_code == 2
