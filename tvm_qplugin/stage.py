"""A quantized model between two commands: a directory with ``module.json`` and ``calibration.json``."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import tvm
from tvm.ir import IRModule

from tvm_qplugin.core.errors import ArtifactError

MODULE = "module.json"
_FORMAT = "qplugin.module"


def save_module(module: IRModule, directory: str | os.PathLike[str]) -> Path:
    """Write a module into ``directory`` (made if need be); the old file stays until the new one is whole."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODULE
    temporary = folder / f".{MODULE}.{secrets.token_hex(4)}"
    try:
        data = {"format": _FORMAT, "tvm": tvm.__version__, "module": json.loads(tvm.ir.save_json(module))}
        temporary.write_text(json.dumps(data), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_module(source: str | os.PathLike[str]) -> IRModule:
    """Read what ``save_module`` wrote, by its directory or file; ArtifactError if it is something else."""
    path = Path(source)
    path = path / MODULE if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}): run `tvm-qplugin quantize` first"
        ) from None
    except ValueError as error:
        raise ArtifactError(
            f"{path} is not a saved module ({error}): run `tvm-qplugin quantize` again"
        ) from None
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise ArtifactError(f"{path} is not a saved module: run `tvm-qplugin quantize` to make one")
    if data.get("tvm") != tvm.__version__:
        raise ArtifactError(
            f"{path} was written with TVM {data.get('tvm')}, this is {tvm.__version__}: quantize again"
        )
    try:
        return tvm.ir.load_json(json.dumps(data["module"]))
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(f"{path} is damaged ({reason}): run `tvm-qplugin quantize` again") from None
