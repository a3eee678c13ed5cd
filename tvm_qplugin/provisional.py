"""A float model quantized with made-up samples, to see what a device would run of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tvm.ir import IRModule

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.quantizer import quantize_module
from tvm_qplugin.samples import inputs_of

SAMPLES = 4
SEED = 20


def provisional(module: IRModule, profile: TargetProfile) -> IRModule:
    """The QDQ module of a float one with integer inputs and outputs; its ranges are those of noise.

    Which operators there are depends on the model and on the profile's rewrites; only QUANTIZE between
    tensors of different scales depends on ranges. Never deploy it: its numbers mean nothing.
    """
    io = profile.io if profile.io != "float" else "int8"
    return quantize_module(module, target=profile, calibration=_noise(module), io=io)


def _noise(module: IRModule) -> Iterator[dict[str, Array]]:
    """Samples between -1 and 1, always the same; integer inputs are 0."""
    rng = np.random.default_rng(SEED)
    for _ in range(SAMPLES):
        yield {item.original: _array(rng, item.spec) for item in inputs_of(module)}


def _array(rng: np.random.Generator, spec: TensorSpec) -> Array:
    if "float" not in spec.dtype:
        return np.zeros(spec.shape, spec.dtype)
    return rng.uniform(-1, 1, spec.shape).astype(spec.dtype)
