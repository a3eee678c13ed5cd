"""Comparison: with all switches on, the simulation is near the model as it is deployed."""

from types import ModuleType

import numpy as np
import pytest

from tvm_qplugin.api import quantize
from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.frontend import load
from tvm_qplugin.layer_errors import Comparison

RECIPES = {
    "plain": Recipe(),
    "recovered": Recipe(correct_bias=True, adaptive_rounding=True),
    "mixed": Recipe(rules=(Rule("^(b|c)$", scheme="int16x8"), Rule("^f$", scheme="float"))),
}


@pytest.mark.parametrize("name", RECIPES)
def test_simulation(broken: ModuleType, name: str) -> None:
    module, samples = load(broken.classifier()), broken.samples(12)
    quantized = quantize(module, recipe=RECIPES[name], calibration=samples)
    found = Comparison(module, quantized, [[x] for x in samples])
    real, plain = compile_function(quantized), compile_function(module)
    everything = range(len(found.switches))
    noise = error = 0.0
    for x in samples:
        (exact,) = plain([x])
        np.testing.assert_allclose(found.run((), [x])[0], exact, rtol=1e-4, atol=1e-4)
        noise += float(np.square(real([x])[0] - exact).sum())
        error += float(np.square(real([x])[0] - found.run(everything, [x])[0]).sum())
    assert noise > 0 and error < noise / 3
    schemes = {layer.name: layer.scheme for layer in found.layers}
    assert schemes["b"] == ("int16x8" if name == "mixed" else "int8")
    assert schemes["f"] == ("float" if name == "mixed" else "int8")
