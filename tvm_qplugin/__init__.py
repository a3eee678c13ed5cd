"""Quantization, pruning and clustering for Apache TVM as Relax passes.

>>> import tvm_qplugin
>>> sorted(tvm_qplugin.__all__)[:3]
['Artifact', 'Budget', 'CalibrationTable']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_qplugin.api import prepare, quantize
    from tvm_qplugin.artifact import Artifact
    from tvm_qplugin.builder import build
    from tvm_qplugin.calibrator import calibrate
    from tvm_qplugin.core.calibration import CalibrationTable
    from tvm_qplugin.core.recipe import Recipe, Rule
    from tvm_qplugin.debugger import debug
    from tvm_qplugin.exporter import export_tflite
    from tvm_qplugin.frontend import load
    from tvm_qplugin.layer_times import profile
    from tvm_qplugin.remedy import Budget
    from tvm_qplugin.simulator import simulate
    from tvm_qplugin.tuner import tune

_PUBLIC = {
    "Artifact": "artifact",
    "Budget": "remedy",
    "CalibrationTable": "core.calibration",
    "Recipe": "core.recipe",
    "Rule": "core.recipe",
    "build": "builder",
    "calibrate": "calibrator",
    "debug": "debugger",
    "export_tflite": "exporter",
    "load": "frontend",
    "prepare": "api",
    "profile": "layer_times",
    "quantize": "api",
    "simulate": "simulator",
    "tune": "tuner",
}

__all__ = [
    "Artifact",
    "Budget",
    "CalibrationTable",
    "Recipe",
    "Rule",
    "build",
    "calibrate",
    "debug",
    "export_tflite",
    "load",
    "prepare",
    "profile",
    "quantize",
    "simulate",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: ``import tvm_qplugin`` itself loads nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tvm_qplugin' has no attribute {name!r}")
    return getattr(import_module(f"tvm_qplugin.{_PUBLIC[name]}"), name)
