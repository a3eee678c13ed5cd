"""LiteRT as a fixture: without it the tests are skipped, in CI they fail."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def litert() -> ModuleType:
    """The module ``lite.py`` beside this file: a writer of small files and a runner."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        reason = "ai_edge_litert is not installed (extra: tflite)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    spec = importlib.util.spec_from_file_location("tflite_lite", Path(__file__).with_name("lite.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def random_graph() -> Any:
    """The generator of ``tests/random_graphs``."""
    path = Path(__file__).parent.parent / "random_graphs" / "conftest.py"
    spec = importlib.util.spec_from_file_location("random_graphs_for_export", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.random_graph
