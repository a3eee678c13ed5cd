"""Damaged and foreign files: one clear message from the importer and from ``check``, never a traceback."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tvm_qplugin import cli
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.frontend import load


def _damage() -> Any:
    spec = importlib.util.spec_from_file_location("tflite_damage", Path(__file__).with_name("damage.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


d = _damage()


def damaged(name: str) -> Callable[[Any], bytes]:
    def make(litert: Any) -> bytes:
        model = d.objects(litert)
        d.DAMAGE[name][0](litert.schema, model)
        return bytes(d.pack(litert, model))

    return make


def truncated(part: float) -> Callable[[Any], bytes]:
    def make(litert: Any) -> bytes:
        whole = d.pack(litert, d.objects(litert))
        return bytes(whole[: int(len(whole) * part)])

    return make


FILES: dict[str, Callable[[Any], bytes]] = {
    **{name: damaged(name) for name in d.DAMAGE},
    **{f"foreign {i}": lambda _litert, data=data: data for i, (data, _) in enumerate(d.FOREIGN)},
    **{f"{part:.0%} of a file": truncated(part) for part in (0.1, 0.5, 0.99)},
}
ARGUMENTS = (("check",), ("check", "--target", "ethos-u", "--json"), ("inspect",))


def test_there_are_many() -> None:
    assert len(FILES) - len(d.CHECKABLE) >= 60


@pytest.mark.parametrize("name", FILES)
def test_the_importer(litert: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(FILES[name](litert))
    with pytest.raises(ModelError) as caught:
        load(path)
    assert len(str(caught.value)) > 20 and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_the_commands(litert: Any, tmp_path: Path, name: str) -> None:
    """What a checker can look at, it does."""
    path = tmp_path / "model.tflite"
    path.write_bytes(FILES[name](litert))
    for command, *options in ARGUMENTS:
        fine = command == "check" and name in d.CHECKABLE
        result = CliRunner().invoke(cli.app, [command, str(path), *options])
        assert result.exit_code == (0 if fine else 1), result.output
        assert "Traceback" not in result.output and "should not have happened" not in result.output
        assert fine or result.stderr.startswith("Error: ") or "\nError: " in result.stderr


def test_contradicting_shapes(litert: Any, tmp_path: Path) -> None:
    """Nothing wrong with the file as such: only its tables find out."""
    tensors = [litert.Tensor((1, 8, 8, 4), "int8", 0.5), litert.constant([7], "int32")]
    path = tmp_path / "model.tflite"
    for code, options in (("MEAN", "ReducerOptions"), ("REDUCE_MAX", "ReducerOptions")):
        path.write_bytes(litert.operator(code, tensors, [litert.Tensor((), "int8", 0.5)], options))
        for target in ("edgetpu", "ethos-u", "litert-gpu", "litert-hexagon"):
            result = CliRunner().invoke(cli.app, ["check", str(path), "--target", target])
            assert result.exit_code in (0, 1) and "should not have happened" not in result.output
