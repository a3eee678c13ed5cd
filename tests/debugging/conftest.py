"""The module ``broken.py`` beside this file as a fixture."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def broken() -> ModuleType:
    """A small classifier and ways to break it; this folder is no package."""
    spec = importlib.util.spec_from_file_location("debugging_broken", Path(__file__).with_name("broken.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
