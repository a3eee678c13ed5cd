"""The instruction sets that tests of kernels name: TVM's targets, and which of them this CPU runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tvm

Targets = Mapping[str, tuple[dict[str, Any], str]]
"""Name -> fields of TVM's target, and the flag of /proc/cpuinfo that it needs."""


def runnable(targets: Targets) -> list[Any]:
    """Their names; those that this CPU lacks as skipped parameters."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return [
        pytest.param(name, marks=pytest.mark.skipif(flag not in flags, reason=f"CPU has no {name}"))
        for name, (_, flag) in targets.items()
    ]


def target_of(targets: Targets, name: str) -> tvm.target.Target:
    """One of them."""
    return tvm.target.Target({"kind": "llvm", "num-cores": 2, **targets[name][0]})
