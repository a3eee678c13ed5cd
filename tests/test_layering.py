"""Who may import whom; the table is the architecture."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "tvm_qplugin/core": {"core"},
    "tvm_qplugin/demo": {"core", "demo"},
    "tvm_qplugin/observers": {"core", "observers"},
    "tvm_qplugin/kernels": {"core", "kernels"},
    "tvm_qplugin/tflite": {"core", "kernels", "passes", "tflite"},
    "passes": {"core", "kernels", "passes"},
    "schedules": {"core", "kernels", "schedules"},
    "targets": {"core", "schedules", "targets"},
}
FILES = [(folder, file) for folder in ALLOWED for file in sorted((ROOT / folder).rglob("*.py"))]
TOP = [file for file in sorted((ROOT / "tvm_qplugin").glob("*.py")) if file.stem not in ("cli", "__main__")]


def _imports(file: Path) -> Iterator[str]:
    """Full names of everything imported, ``from a import b`` as ``a.b``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _id(value: object) -> str:
    return value.stem if isinstance(value, Path) else str(value).split("/")[-1]


@pytest.mark.parametrize(("folder", "file"), FILES, ids=_id)
def test_imports(folder: str, file: Path):
    for name in _imports(file):
        top, *rest = name.split(".")
        assert top not in ("passes", "schedules", "targets", "tests"), f"{file.name} imports {name}"
        if top == "tvm_qplugin":
            assert rest and rest[0] in ALLOWED[folder], f"{file.name} imports {name}"


@pytest.mark.parametrize("file", [f for folder, f in FILES if folder == "tvm_qplugin/core"], ids=_id)
def test_core_needs_numpy_only(file: Path):
    known = {"numpy", "tvm_qplugin", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in _imports(file)} <= known


@pytest.mark.parametrize("file", TOP, ids=_id)
def test_nothing_imports_the_command_line(file: Path):
    assert not [name for name in _imports(file) if name.startswith("tvm_qplugin.cli")]
