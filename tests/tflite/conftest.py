"""LiteRT as a fixture: without it the tests are skipped, in CI they fail. Nets by name as parameters."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@cache
def beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"tflite_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needed(package: str, extra: str) -> None:
    """Skip the test where a package is missing, or fail it in CI."""
    if importlib.util.find_spec(package) is None:
        reason = f"{package} is not installed (extra: {extra})"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture(scope="session")
def litert() -> ModuleType:
    """The module ``lite.py`` beside this file: a writer of small files and a runner."""
    needed("ai_edge_litert", "tflite")
    return beside("lite")


@pytest.fixture(scope="session")
def foreign() -> ModuleType:
    """The package ``tflite``: another project's reader of the same format."""
    needed("tflite", "test")
    return importlib.import_module("tflite")


@pytest.fixture(scope="session")
def nets() -> ModuleType:
    """The module ``nets.py`` beside this file."""
    return beside("nets")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``net_name``: every graph of ``nets.py``."""
    if "net_name" in metafunc.fixturenames:
        metafunc.parametrize("net_name", list(beside("nets").NETS))


@pytest.fixture(scope="session")
def random_graph() -> Any:
    """The generator of ``tests/random_graphs``."""
    path = Path(__file__).parent.parent / "random_graphs" / "conftest.py"
    spec = importlib.util.spec_from_file_location("random_graphs_for_export", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.random_graph
