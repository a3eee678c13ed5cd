"""A network with one broken layer: it ranks first, and the recipe that is proposed restores accuracy."""

import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tvm import IRModule

from tvm_qplugin import debug
from tvm_qplugin.builder import build, compile_function
from tvm_qplugin.core.errors import CalibrationError, ModelError, RecipeError
from tvm_qplugin.core.recipe import Recipe, Rule, find_recipe
from tvm_qplugin.debugger import Diagnosis, calibrated
from tvm_qplugin.frontend import load
from tvm_qplugin.remedy import Budget
from tvm_qplugin.simulator import Simulator
from tvm_qplugin.targets import find_profile

BUDGET = Budget(25, 0.02)


@pytest.fixture(scope="module")
def module(broken: ModuleType) -> IRModule:
    return load(broken.classifier())


@pytest.fixture(scope="module")
def table(module: IRModule, broken: ModuleType) -> Any:
    return calibrated(module, find_recipe("int8"), find_profile("host"), broken.samples(40))[0]


def labelled(module: IRModule, broken: ModuleType) -> list[tuple[Any, int]]:
    run = compile_function(module)
    return [(x, int(np.argmax(run([x])[0]))) for x in broken.samples(60, 9)]


def assert_restored(found: Diagnosis) -> None:
    assert not found.budget.meets(found.found)
    assert found.proposal is not None and found.proposal.met
    assert found.proposal.found.accuracy == 1 and found.proposal.found.sqnr_db >= 25


@pytest.mark.parametrize("name", ["x", "b", "g"])
def test_a_range_too_wide(module: IRModule, table: Any, broken: ModuleType, name: str) -> None:
    """Of the input, of a convolution before a pool, of the last layer."""
    found = debug(
        module,
        calibration=broken.stretched(table, name),
        samples=labelled(module, broken),
        labelled=True,
        budget=BUDGET,
    )
    worst = found.ranking[0]
    assert worst.name == name and worst.used < 0.02
    assert worst.effect.sqnr_db + 15 < found.ranking[1].effect.sqnr_db
    assert_restored(found)
    assert len(found.proposal.schemes) <= 3


def test_weights_of_unequal_ranges(broken: ModuleType) -> None:
    """One output's weights are 100 times larger, and all have one scale."""
    module = load(broken.classifier(outlier=100))
    found = debug(
        module,
        calibration=broken.samples(40),
        samples=labelled(module, broken),
        labelled=True,
        recipe=Recipe(per_channel=False),
        budget=BUDGET,
    )
    assert found.ranking[0].name == "d"
    assert found.ranking[0].weights.noise > 10 * found.ranking[0].activations.noise
    assert_restored(found)
    assert found.proposal.schemes["d"] == "float"


def test_a_channel_that_drowns_the_others(broken: ModuleType) -> None:
    """The SQNR of the tensor itself looks good; only its effect shows what is lost."""
    module = load(broken.classifier(channel=100))
    found = debug(
        module, calibration=broken.samples(40), samples=labelled(module, broken), labelled=True, budget=BUDGET
    )
    assert {layer.name for layer in found.ranking[:2]} == {"b", "d"}
    assert_restored(found)


def test_nothing_broken(module: IRModule, broken: ModuleType) -> None:
    found = debug(module, calibration=broken.samples(20), limit=10, layer_samples=2)
    assert found.proposal is None and found.found.samples == 10
    data = json.loads(json.dumps(found.to_json()))
    assert data["proposal"] is None and sorted(data["ranking"]) == ["a", "b", "d", "f", "g", "x"]
    ranks = {layer["name"]: layer["rank"] for layer in data["layers"]}
    assert ranks["c"] is None and ranks[data["ranking"][0]] == 1
    pool = next(layer for layer in data["layers"] if layer["name"] == "c")
    assert pool["alone"] is None and pool["cumulative"]["sqnr_db"] > 25


def test_what_is_measured_is_what_is_deployed(module: IRModule, broken: ModuleType) -> None:
    """The last layer's error as deployed is that of the oracle's outputs."""
    xs = broken.samples(20)
    found = debug(module, calibration=xs, samples=xs[:4], layer_samples=4, budget=Budget(60))
    run, oracle = compile_function(module), Simulator(found.module)
    real, integer = (np.concatenate([f([x])[0] for x in xs[:4]]) for f in (run, lambda a: oracle.run(*a)))
    last = found.layers[-1].cumulative
    assert last.mse == pytest.approx(np.square(real - integer, dtype="float64").mean(), rel=1e-4)
    assert found.found.sqnr_db == pytest.approx(last.sqnr_db, rel=1e-4)
    assert found.layers[0].cumulative.noise == pytest.approx(found.layers[0].alone.noise)


def test_layers_in_float_are_not_ranked(module: IRModule, broken: ModuleType) -> None:
    recipe = Recipe(rules=(Rule(scope="^g$", scheme="float"),))
    found = debug(module, calibration=broken.samples(20), recipe=recipe, limit=4, layer_samples=1)
    assert "g" not in [layer.name for layer in found.ranking]
    last = found.layers[-1]
    assert last.scheme == "float" and last.cumulative.count and not last.effect.count


def test_the_proposal_is_an_ordinary_module(module: IRModule, table: Any, broken: ModuleType) -> None:
    found = debug(
        module, calibration=broken.stretched(table, "d"), samples=broken.samples(8), layer_samples=2
    )
    assert found.proposal is not None
    artifact, oracle = build(found.proposal.module), Simulator(found.proposal.module)
    for x in broken.samples(3, 5):
        np.testing.assert_array_equal(artifact.run(x)[0], oracle.run(x)[0])
    again = find_recipe(json.loads(json.dumps(found.proposal.recipe.to_json())))
    assert again == found.proposal.recipe


def test_wrong_arguments(module: IRModule, table: Any, broken: ModuleType) -> None:
    with pytest.raises(CalibrationError, match="models are compared on samples, and none were given"):
        debug(module, calibration=table)
    with pytest.raises(RecipeError, match="'fp16' computes in float: choose one of int8, int16x8"):
        debug(module, calibration=broken.samples(2), recipe="fp16")
    with pytest.raises(RecipeError, match="only known with labels"):
        debug(module, calibration=broken.samples(2), budget=Budget(None, 0.1))
    with pytest.raises(RecipeError, match="asks for nothing"):
        Budget(None, None)
    quantized = debug(module, calibration=broken.samples(2), layer_samples=1).module
    with pytest.raises(ModelError, match="quantized already: give the float model"):
        debug(quantized, calibration=broken.samples(2))
