"""``debug``: which layer a quantized model loses its accuracy in, and a recipe that wins it back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm.ir import IRModule

from tvm_qplugin.api import prepare
from tvm_qplugin.builder import compile_function
from tvm_qplugin.calibrator import calibrate, model_hash
from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.core.errors import CalibrationError, ModelError, RecipeError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.recipe import INTEGER_SCHEMES, Recipe, Rule, find_recipe
from tvm_qplugin.evaluate import Evaluation
from tvm_qplugin.inspection import annotation_of
from tvm_qplugin.layer_errors import Comparison, LayerErrors
from tvm_qplugin.pipeline import is_quantized
from tvm_qplugin.progress import progress_bar
from tvm_qplugin.quantizer import quantize_module
from tvm_qplugin.remedy import Budget, Judge, Search, schemes_of, with_schemes
from tvm_qplugin.samples import Reservoir, Sample, fit_sample, inputs_of, numbered
from tvm_qplugin.targets import find_profile

LAYER_SAMPLES = 8
"""Samples on which every layer is tried alone."""
SAMPLES = 64
"""Samples on which models as a whole are compared."""


@dataclass(frozen=True)
class Proposal:
    """A recipe that keeps some layers out of int8: what was found with it, and whether that is enough.

    ``schemes``: the layers that it changes; ``module``: the model quantized with it, with float ends.
    """

    recipe: Recipe
    schemes: dict[str, str]
    found: Evaluation
    met: bool
    module: IRModule


@dataclass(frozen=True)
class Diagnosis:
    """``layers`` in order of execution, ``ranking`` those that are quantized, the worst first.

    ``found``: the model as the recipe quantizes it; ``proposal`` is None where that meets the ``budget``.
    """

    layers: list[LayerErrors]
    ranking: list[LayerErrors]
    budget: Budget
    found: Evaluation
    proposal: Proposal | None
    table: CalibrationTable
    module: IRModule

    def to_json(self) -> dict[str, Any]:
        """A JSON object: layers, their ranks from 1, and the recipe that is proposed."""
        ranks = {layer.name: rank for rank, layer in enumerate(self.ranking, 1)}
        proposal = self.proposal
        return {
            "budget": {"sqnr_db": self.budget.sqnr_db, "accuracy_loss": self.budget.accuracy_loss},
            "found": self.found.to_json(),
            "ranking": [layer.name for layer in self.ranking],
            "layers": [{"rank": ranks.get(layer.name), **layer.to_json()} for layer in self.layers],
            "proposal": None
            if proposal is None
            else {
                "met": proposal.met,
                "found": proposal.found.to_json(),
                "layers": proposal.schemes,
                "recipe": proposal.recipe.to_json(),
            },
        }


def debug(
    model: str | os.PathLike[str] | IRModule,
    *,
    calibration: Iterable[Sample] | CalibrationTable,
    samples: Iterable[Any] | None = None,
    labelled: bool = False,
    recipe: str | Recipe | Mapping[str, Any] | None = None,
    target: str | TargetProfile = "host",
    budget: Budget | None = None,
    limit: int = SAMPLES,
    layer_samples: int = LAYER_SAMPLES,
    int16: bool = True,
    progress: bool = False,
    batch: int | None = None,
    input_layout: str = "NCHW",
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Diagnosis:
    """Measure what quantization does to every layer of a float model, and propose a recipe.

    Each layer is measured as deployed (all before it quantized) and alone (all else in float). ``samples``
    are what models are compared on, at most ``limit`` of them, pairs with labels if ``labelled``; left out,
    those of ``calibration`` are. Every layer alone is tried on ``layer_samples`` of them.
    ``budget``: what the model must keep, 20 dB of SQNR if left out; where it does not, layers that spoil the
    outputs most are kept out of int8 until it does: those whose tensors are at fault get int16x8 (float
    without ``int16``, or where they have no such kernel), those whose weights are get float. The
    rest is as for ``quantize``.

    Raises CalibrationError without samples, ModelError for a model that is quantized already, RecipeError
    for a recipe whose scheme is not an integer one, or for a budget that the samples cannot tell.
    """
    profile = find_profile(target)
    chosen = find_recipe(profile.recipe if recipe is None else recipe)
    module = prepare(model, target=profile, batch=batch, input_layout=input_layout, shapes=shapes)
    check(module, chosen)
    if isinstance(calibration, CalibrationTable):
        table, kept = calibration, list[Sample]()
    else:
        table, kept = calibrated(module, chosen, profile, calibration, limit, progress=progress)
    if samples is None:
        samples = kept
    return diagnose(
        module,
        chosen,
        profile,
        table,
        samples,
        labelled=labelled,
        budget=budget or Budget(),
        limit=limit,
        layer_samples=layer_samples,
        int16=int16,
        progress=progress,
    )


def check(module: IRModule, recipe: Recipe) -> None:
    """Refuse what has no quantized and float form to compare. Raises ModelError or RecipeError."""
    if is_quantized(module):
        raise ModelError("the model is quantized already: give the float model that it was made from")
    if not recipe.integer:
        raise RecipeError(
            f"recipe {recipe.name!r} computes in float: choose one of {', '.join(INTEGER_SCHEMES)}"
        )


def calibrated(
    module: IRModule,
    recipe: Recipe,
    profile: TargetProfile,
    samples: Iterable[Sample],
    limit: int = SAMPLES,
    *,
    progress: bool = False,
    observer: str | None = None,
    most: int | None = None,
) -> tuple[CalibrationTable, list[Sample]]:
    """The ranges of all tensors that the recipe, or one proposed for it, needs, and ``limit`` samples.

    ``observer`` None: the recipe's; ``most``: at most so many samples are seen.
    """
    kept = Reservoir(limit)
    observers = annotation_of(module, recipe, profile).observers()
    names = [*observers, *sorted(_wide_names(module, recipe, profile) - set(observers))]
    table = calibrate(
        module,
        samples,
        names=names,
        observer=observer or {name: observers.get(name, recipe.observer) for name in names},
        limit=most,
        progress=progress,
        each=kept.offer,
    )
    return table, kept.samples


def diagnose(
    module: IRModule,
    recipe: Recipe,
    profile: TargetProfile,
    table: CalibrationTable,
    samples: Iterable[Any],
    *,
    labelled: bool,
    budget: Budget,
    limit: int = SAMPLES,
    layer_samples: int = LAYER_SAMPLES,
    int16: bool = True,
    progress: bool = False,
) -> Diagnosis:
    """As ``debug``, of a prepared float module and its calibration table."""
    check(module, recipe)
    table.check(model_hash(module), ())
    inputs = inputs_of(module)
    items: list[Any] = [item for _, item in numbered(samples, limit)]
    pairs: list[tuple[Any, Any]] = items if labelled else [(item, None) for item in items]
    if not pairs:
        raise CalibrationError("models are compared on samples, and none were given: pass samples")
    arrays = [fit_sample(index, sample, inputs) for index, (sample, _) in enumerate(pairs)]

    def quantized(chosen: Recipe) -> IRModule:
        return quantize_module(
            module, recipe=chosen, target=profile, calibration=table, io="float", samples=arrays
        )

    start = quantized(recipe)
    comparison = Comparison(module, start, arrays)
    judge = Judge(comparison.references(), [label for _, label in pairs] if labelled else None)
    found = judge(outputs_of(start, arrays))
    met = budget.meets(found)
    few = arrays[:layer_samples]
    with progress_bar(progress, few, label="as deployed") as advance:
        comparison.measure_cumulative(few, advance)
    trials = range(len(few) * len(comparison.layers))
    with progress_bar(progress, trials, label="layer by layer", unit="trials") as advance:
        comparison.measure_alone(few, advance)
    wide = (
        int16 and profile.artifact != "tflite" and _wide_names(module, recipe, profile) <= set(table.ranges)
    )
    proposal = None if met else _propose(Search(comparison, judge, budget, wide), recipe, quantized)
    return Diagnosis(comparison.layers, comparison.ranking(), budget, found, proposal, table, start)


def _wide_names(module: IRModule, recipe: Recipe, profile: TargetProfile) -> set[str]:
    """The tensors whose ranges are needed where any layer may become int16x8."""
    wide = replace(recipe, rules=(*recipe.rules, Rule(scheme="int16x8")))
    return set(annotation_of(module, wide, profile).observed())


def outputs_of(module: IRModule, samples: Iterable[list[Array]]) -> Iterator[list[Array]]:
    """What the compiled module puts out for each sample."""
    run = compile_function(module, merge=False)
    return (run(arrays) for arrays in samples)


def _propose(search: Search, recipe: Recipe, quantized: Callable[[Recipe], IRModule]) -> Proposal:
    """The smallest repair that is enough; more of it while the model as quantized says otherwise."""
    chosen = search.smallest()
    rest = [repair for repair in search.repairs if repair not in chosen]
    while True:
        proposal = _tried(search, with_schemes(recipe, schemes_of(chosen)), schemes_of(chosen), quantized)
        if proposal.met or not rest:
            return proposal
        more = max(len(chosen) // 2, 1)
        chosen, rest = chosen + rest[:more], rest[more:]


def _tried(
    search: Search, recipe: Recipe, schemes: dict[str, str], quantized: Callable[[Recipe], IRModule]
) -> Proposal:
    module = quantized(recipe)
    found = search.judge(outputs_of(module, search.comparison.samples))
    return Proposal(recipe, schemes, found, search.budget.meets(found), module)
