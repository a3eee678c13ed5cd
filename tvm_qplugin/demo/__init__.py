"""The embedded demo: a small CNN for 8x8 digits, with its calibration and test data.

Made by ``scripts/train_demo.py`` from scikit-learn's copy of the UCI handwritten digits.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np

from tvm_qplugin.core.qparams import Array


def model_path() -> Path:
    """The float model: ``image`` [1, 1, 8, 8] float32 in [0, 1] to ``logits`` [1, 10], ONNX opset 17."""
    return _file("digits.onnx")


def calibration_path() -> Path:
    """An ``.npz`` with ``x``: see ``calibration``."""
    return _file("calibration.npz")


def evaluation_path() -> Path:
    """An ``.npz`` with ``x`` and ``y``: see ``evaluation``."""
    return _file("test.npz")


def calibration() -> Array:
    """200 training images, [200, 1, 8, 8] float32 in [0, 1]."""
    with np.load(calibration_path()) as data:
        return data["x"]


def evaluation() -> tuple[Array, Array]:
    """450 images the model was not trained on, [450, 1, 8, 8] float32, and their digits [450] int64."""
    with np.load(evaluation_path()) as data:
        return data["x"], data["y"]


def _file(name: str) -> Path:
    return Path(str(files("tvm_qplugin.demo") / name))
