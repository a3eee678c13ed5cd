"""What may be written to, and that it is written whole."""

import os
from pathlib import Path

import numpy as np
import pytest

from tvm_qplugin import outputs
from tvm_qplugin.core.errors import QPluginError


@pytest.mark.parametrize("check", [outputs.check_stage_directory, outputs.check_artifact_directory])
def test_directories(check, tmp_path):
    check(tmp_path / "new" / "nested")
    check(tmp_path)
    (tmp_path / "keep.txt").write_text("")
    with pytest.raises(QPluginError, match=r"keep\.txt"):
        check(tmp_path)
    with pytest.raises(QPluginError, match="is a file"):
        check(tmp_path / "keep.txt")
    with pytest.raises(QPluginError, match="cannot write"):
        check(tmp_path / "keep.txt" / "below")
    assert os.listdir(tmp_path) == ["keep.txt"]


def test_a_stage_may_be_replaced_by_a_stage_only(tmp_path):
    (tmp_path / "module.json").write_text("{}")
    outputs.check_stage_directory(tmp_path)
    with pytest.raises(QPluginError, match=r"module\.json"):
        outputs.check_artifact_directory(tmp_path)


def test_scratch_directories_may_hold_anything(tmp_path):
    (tmp_path / "keep.txt").write_text("")
    outputs.check_scratch_directory(None)
    outputs.check_scratch_directory(tmp_path)
    outputs.check_scratch_directory(tmp_path / "new")
    with pytest.raises(QPluginError, match="is a file"):
        outputs.check_scratch_directory(tmp_path / "keep.txt")


def test_files(tmp_path, monkeypatch):
    outputs.check_file(None, "it")
    outputs.check_file(tmp_path / "new.json", "it")
    with pytest.raises(QPluginError, match="is a directory"):
        outputs.check_file(tmp_path, "it")
    with pytest.raises(QPluginError, match="does not exist"):
        outputs.check_file(tmp_path / "gone" / "new.json", "it")
    monkeypatch.chdir(tmp_path)
    outputs.check_file(Path("here.json"), "it")
    assert os.listdir(tmp_path) == []


def test_arrays_are_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "out.npz"
    outputs.write_arrays({"a/b": np.arange(3)}, path)
    monkeypatch.setattr(np, "savez", lambda *_a, **_k: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(QPluginError, match="No space left"):
        outputs.write_arrays({"a/b": np.zeros(3)}, path)
    assert os.listdir(tmp_path) == ["out.npz"]
    with np.load(path) as found:
        assert found["a/b"].tolist() == [0, 1, 2]
