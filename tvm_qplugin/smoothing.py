"""Measure channels with samples and smooth a float module with what was found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.ir import IRModule

from tvm_qplugin.calibrator import calibrate
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.smooth_quant import SmoothQuant, smoothable
from tvm_qplugin.samples import Sample


def smooth(module: IRModule, samples: Sequence[Sample]) -> IRModule:
    """``SmoothQuant`` with the largest magnitudes in ``samples``; a module without such layers as it is.

    Raises CalibrationError for a sample that does not fit.
    """
    names = list(smoothable(ir.main_function(module)))
    if not names:
        return module
    maxima: dict[str, Array] = {}

    def note(name: str, value: Array) -> None:
        found = np.abs(value).reshape(-1, value.shape[-1]).max(0)
        maxima[name] = np.maximum(maxima[name], found) if name in maxima else found

    calibrate(module, samples, names=names, hooks=[note])
    return tvm.transform.Sequential([SmoothQuant(maxima)])(module)
