"""Networks of torch, quantized and compiled: equal to the oracle to the last bit, and near torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.simulator import simulate

LEAST = {"int8": 30.0, "dynamic": 30.0, "int16x8": 40.0}
"""Signal to noise in dB, beside torch."""


def decibels(wanted: list[Array], found: list[Array]) -> float:
    signal, noise = (
        float(np.square(np.asarray(v, "float64")).sum()) for v in (wanted, np.subtract(wanted, found))
    )
    return float(10 * np.log10(signal / max(noise, signal * 1e-20)))


@pytest.mark.parametrize("scheme", LEAST)
def test_artifact_equals_oracle_and_is_near_torch(case: Any, scheme: str) -> None:
    samples = case.samples(8)
    module = quantize(case.program, recipe=scheme, calibration=samples)
    artifact = build(module)
    found = [artifact.run(*sample) for sample in samples]
    for sample, ours in zip(samples[:2], found, strict=False):
        for out, oracle in zip(ours, simulate(module, *sample), strict=True):
            np.testing.assert_array_equal(out, oracle, strict=True)
    wanted = [case.wanted(sample) for sample in samples]
    for place in range(len(found[0])):
        reached = decibels([w[place] for w in wanted], [f[place] for f in found])
        assert reached > LEAST[scheme]


def test_layers_are_integer(case_of: Any) -> None:
    case = case_of.named("resnet")
    artifact = build(quantize(case.program, calibration=case.samples(8)))
    assert all(op.integer for op in artifact.manifest.operators)
    assert {"conv1", "layer1_0_conv1", "fc"} <= {op.name for op in artifact.manifest.operators}


def test_scopes_are_paths_of_modules(case_of: Any) -> None:
    case = case_of.named("resnet")
    recipe = {"name": "mine", "scheme": "int8", "rules": [{"scope": "^layer1.0.conv1$", "scheme": "float"}]}
    artifact = build(quantize(case.program, recipe=recipe, calibration=case.samples(8)))
    floats = [op.name for op in artifact.manifest.operators if not op.integer]
    assert floats[-1] == "layer1_0_conv1"
    assert all(name.startswith("layer1_0_conv1") for name in floats)
