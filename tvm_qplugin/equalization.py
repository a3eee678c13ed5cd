"""Equalize the channels of a float model by what they are on samples."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import tvm
from tvm.ir import IRModule

from tvm_qplugin.calibrator import observe
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.absorb_bias import AbsorbBias
from tvm_qplugin.passes.equalize_layers import EqualizeLayers
from tvm_qplugin.passes.layer_pairs import Layer, layer_pairs
from tvm_qplugin.samples import Sample

SAMPLES = 64


def equalize(module: IRModule, samples: Iterable[Sample]) -> IRModule:
    """A canonical float module that computes the same on the samples, with channels of about equal range.

    See ``EqualizeLayers`` and ``AbsorbBias``; a module without pairs of layers comes back as it is. The
    samples (as for calibration; at most ``SAMPLES``) are gone through twice. Raises CalibrationError.
    """
    samples = list(islice(samples, SAMPLES))
    if not _firsts(module):
        return module
    outputs = {layer.output.name: layer.output.name for layer in _firsts(module)}
    found = observe(module, samples, list(outputs), "per_channel")
    peaks = {name: abs(seen.low).clip(min=abs(seen.high)) for name, seen in found.items()}
    equal: IRModule = tvm.transform.Sequential([EqualizeLayers(peaks)])(module)
    sums = {layer.output.name: layer.before_clamp.name for layer in _firsts(equal)}
    found = observe(equal, samples, list(sums.values()), "per_channel")
    ranges = {output: (found[name].low, found[name].high) for output, name in sums.items()}
    return tvm.transform.Sequential([AbsorbBias(ranges)])(equal)


def _firsts(module: IRModule) -> list[Layer]:
    return [pair.first for pair in layer_pairs(ir.main_function(module))]
