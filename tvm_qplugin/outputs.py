"""Where results go: refused before long work starts if they cannot be written, and written whole."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.core.errors import ArtifactError, QPluginError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.store import MANIFEST, read_manifest

if TYPE_CHECKING:
    from tvm.ir import IRModule

STAGE_FILES = frozenset({"module.json", "calibration.json"})


def check_stage_directory(path: Path) -> None:
    """Raise QPluginError unless a quantized model can be written to ``path``."""
    _check_directory(path, STAGE_FILES, "a quantized model")


def check_artifact_directory(path: Path) -> None:
    """Raise QPluginError unless an artifact can be written to ``path``."""
    known = {MANIFEST}
    if (path / MANIFEST).is_file():
        try:
            known |= set(read_manifest(path).sha256)
        except ArtifactError:
            return  # Artifact.save knows older forms and decides
    _check_directory(path, known, "an artifact")


def check_scratch_directory(path: Path | None) -> None:
    """Raise QPluginError unless files can be added to ``path``."""
    if path is not None:
        _refuse_file(path)
        _check_writable(path if path.is_dir() else _existing_parent(path), path)


def check_file(path: Path | None, what: str) -> None:
    """Raise QPluginError unless the file ``path`` can be written."""
    if path is None:
        return
    if path.is_dir():
        raise QPluginError(f"{path} is a directory: give the name of a file for {what}")
    if not path.absolute().parent.is_dir():
        raise QPluginError(f"{path.parent} does not exist: make it first, or choose another place for {what}")
    _check_writable(path.absolute().parent, path)


def write_stage(module: IRModule, table: CalibrationTable | None, directory: Path) -> None:
    """Write ``module.json`` and ``calibration.json`` (None: not used) into ``directory``, together.

    A quantized model that is there already is replaced. Raises QPluginError.
    """
    from tvm_qplugin.stage import save_module

    final = directory.absolute()
    draft = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    try:
        save_module(module, draft)
        if table is not None:
            table.save(draft / "calibration.json")
        _put(draft, final)
    except OSError as error:
        raise QPluginError(
            f"cannot write {directory} ({error.strerror or error}): choose another directory"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_arrays(arrays: Mapping[str, Array], path: Path) -> None:
    """Write an ``.npz``; the file is complete or as it was before. Raises QPluginError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.npz")
    try:
        with draft.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(draft, path)
    except OSError as error:
        raise QPluginError(f"cannot write {path} ({error.strerror or error}): choose another file") from error
    finally:
        draft.unlink(missing_ok=True)


def _put(draft: Path, final: Path) -> None:
    if final.exists():
        for name in STAGE_FILES - set(os.listdir(draft)):
            (final / name).unlink(missing_ok=True)
        for name in sorted(os.listdir(draft)):  # module.json last: it is what makes a stage
            os.replace(draft / name, final / name)
    else:
        os.rename(draft, final)


def _check_directory(path: Path, known: set[str] | frozenset[str], what: str) -> None:
    _refuse_file(path)
    if path.is_dir():
        foreign = sorted(set(os.listdir(path)) - known)
        if foreign:
            raise QPluginError(
                f"{path} holds what is not part of {what} ({', '.join(foreign[:5])}): choose a new or empty "
                "directory"
            )
    _check_writable(_existing_parent(path), path)


def _refuse_file(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise QPluginError(f"{path} is a file: give a directory")


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def _check_writable(folder: Path, path: Path) -> None:
    """Try it: permission bits do not tell (read-only file systems, the superuser)."""
    try:
        TemporaryDirectory(prefix=".tvm-qplugin-", dir=folder).cleanup()
    except OSError as error:
        raise QPluginError(
            f"cannot write {path} ({error.strerror or error} in {folder}): choose another place"
        ) from None
