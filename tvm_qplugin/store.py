"""An artifact's directory: written whole or not at all, verified before anything in it is used."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from hashlib import file_digest
from pathlib import Path

from tvm_qplugin.core.errors import ArtifactError
from tvm_qplugin.core.manifest import Manifest

LIBRARY = "model.so"
MANIFEST = "manifest.json"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an artifact; raises ArtifactError, naming the file."""
    if not directory.is_dir():
        what = "not a directory" if directory.exists() else "no such directory"
        raise ArtifactError(f"{directory}: {what}; give the directory of a saved artifact")
    path = directory / MANIFEST
    try:
        return Manifest.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: {directory} is not a complete artifact; {_AGAIN}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); {_AGAIN}") from None
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None


def verify(directory: Path, manifest: Manifest) -> None:
    """Compare every file with its sha256; raises ArtifactError for the first that differs."""
    if LIBRARY not in manifest.sha256:
        raise ArtifactError(f"{directory / MANIFEST}: no sha256 of {LIBRARY}; {_AGAIN}")
    for name, expected in manifest.sha256.items():
        path = directory / name
        if Path(name).name != name or name == MANIFEST:
            raise ArtifactError(f"{directory / MANIFEST}: {name!r} is not the name of a file in it; {_AGAIN}")
        try:
            found = digest(path)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read ({error.strerror}); {_AGAIN}") from None
        if found != expected:
            raise ArtifactError(f"{path} was altered: its sha256 is {found}, expected {expected}; {_AGAIN}")


def digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def write(source: Path, directory: Path, manifest: Manifest) -> Path:
    """Copy the files of ``manifest`` from ``source`` into ``directory`` and add the manifest.

    A new directory is filled beside ``directory`` and then takes its place.
    """
    final = directory.resolve()
    _check_replaceable(final)
    staging = _sibling(final, "new")
    try:
        staging.mkdir(parents=True)
        for name in manifest.sha256:
            shutil.copyfile(source / name, staging / name)
        (staging / MANIFEST).write_text(manifest.dumps(), encoding="utf-8")
        verify(staging, manifest)
        _swap(staging, final)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {directory} ({error.strerror or error}): choose a directory that can be written"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return directory


def _check_replaceable(directory: Path) -> None:
    """Only an artifact, or an empty directory, may be replaced."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is a file: choose a directory for the artifact")
    entries = set(os.listdir(directory))
    foreign = entries - _known(directory)
    if foreign:
        raise ArtifactError(
            f"{directory} holds what is not part of an artifact ({', '.join(sorted(foreign)[:5])}): "
            "choose a new or empty directory, or move these away"
        )


def _known(directory: Path) -> set[str]:
    """Names that the manifest there accounts for; none without a manifest of ours."""
    try:
        data = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return {MANIFEST, *data["sha256"]} if "format" in data else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _swap(new: Path, final: Path) -> None:
    """Put ``new`` where ``final`` is; on failure ``final`` is as before."""
    if not final.exists():
        os.rename(new, final)
        return
    old = _sibling(final, "old")
    os.rename(final, old)
    try:
        os.rename(new, final)
    except OSError:
        os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{secrets.token_hex(4)}")


_AGAIN = "copy the artifact again or build the model again"
