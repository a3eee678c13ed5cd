"""Quantization: a canonical float module and samples (or a table, or no data) to a quantized module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tvm
from tvm.ir import IRModule

from tvm_qplugin.core.attrs import ANNOTATION
from tvm_qplugin.core.calibration import CalibrationHook, CalibrationTable
from tvm_qplugin.core.errors import CalibrationError, RecipeError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.recipe import RECOVERABLE_SCHEMES, Recipe, find_recipe
from tvm_qplugin.core.spec import Annotation
from tvm_qplugin.observers import chosen_by
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import ExpandWeights, scheme_of
from tvm_qplugin.passes.note_batch_norm import NORMS
from tvm_qplugin.passes.quantize_io import QuantizeIO
from tvm_qplugin.pipeline import (
    convert_passes,
    finish_passes,
    prepare_passes,
    rewritten,
    stored_layers,
)
from tvm_qplugin.samples import Sample, numbered
from tvm_qplugin.targets import find_profile

UNSEEN = "qplugin.data_free"
"""Attribute of a quantized ``main`` whose ranges come from no data: a warning that says so."""


def recipe_of_stored(module: IRModule) -> Recipe | None:
    """The recipe of a module whose constants are stored small already (float16, dynamic range)."""
    scheme = scheme_of(module)
    return find_recipe(scheme) if scheme else None


def quantize_module(
    module: IRModule,
    *,
    recipe: str | Recipe | Mapping[str, Any] | None = None,
    target: str | TargetProfile = "host",
    calibration: Iterable[Any] | CalibrationTable | None = None,
    observer: str | None = None,
    hooks: Sequence[CalibrationHook] = (),
    limit: int | None = None,
    progress: bool = False,
    io: str | None = None,
    samples: Sequence[Sample] | None = None,
    accuracy: str | None = None,
    held_back: Sequence[Sample] | None = None,
    input_range: tuple[float, float] | None = None,
) -> IRModule:
    """Canonical float module -> quantized module; ``calibration`` is samples or a finished table.

    Schemes that compute in float (``fp16``, ``dynamic``, ``weight_int8``, ``weight_int4``) need no
    ``calibration`` and do not look at it, unless accuracy shall be won back; a module of such a scheme comes
    back as it is.

    ``samples``: what a recipe that recovers accuracy uses where ``calibration`` is a table; with
    ``accuracy="best"`` (see ``best.quantize_best``) there must be others ``held_back``. The target's
    rewrites come first: a table is of the module that ``rewritten`` gives. ``recipe`` and ``io`` left out are
    the target's.
    """
    from tvm_qplugin.best import HISTOGRAM, Split, quantize_best
    from tvm_qplugin.calibrator import calibrate, model_hash
    from tvm_qplugin.data_free import DATA_FREE

    profile = find_profile(target)
    chosen, io = find_recipe(profile.recipe if recipe is None else recipe), profile.io if io is None else io
    check_accuracy(accuracy, chosen)
    QuantizeIO(io)
    module = rewritten(module, profile)
    if chosen.storage:
        check_device(chosen, profile)
        _check_float_io(chosen, io)
        if scheme_of(module) == chosen.storage:
            return module
        if (chosen.recovers or accuracy) and samples is None:
            samples, held_back = _collected(module, calibration, limit, accuracy)
        if accuracy:
            return quantize_best(
                module, chosen, profile, None, samples or (), held_back or (), progress=progress
            )
        return stored(module, chosen, samples, progress)
    ending = [*stored_layers(chosen), *finish_passes(profile, io, chosen)]
    if isinstance(calibration, str) and calibration == DATA_FREE:
        quantized = _without_data(module, chosen, profile, input_range, accuracy, progress)
        return tvm.transform.Sequential(ending)(quantized)
    module = ir.with_main_attr(module, NORMS, None)
    identity = model_hash(module)
    _, annotation = annotated(module, chosen, profile)
    names = annotation.observed()
    if isinstance(calibration, CalibrationTable):
        calibration.check(identity, names)
        table = calibration if observer is None or accuracy else chosen_by(calibration, observer)
    elif calibration is None:
        raise CalibrationError(
            "the module is in float and no calibration data was given: pass calibration=samples "
            "(an iterable of arrays) or a CalibrationTable"
        )
    else:
        split = Split.of(module)
        each = split.offer if accuracy else split.kept.offer if chosen.recovers else None
        table = calibrate(
            module,
            calibration,
            names=names,
            observer=HISTOGRAM if accuracy else observer or annotation.observers(),
            hooks=hooks,
            limit=limit,
            progress=progress,
            model_hash=identity,
            each=each,
        )
        samples, held_back = split.kept.samples, split.held.samples
    if accuracy:
        start = chosen if observer is None else replace(chosen, observer=observer)
        quantized = quantize_best(
            module, start, profile, table, samples or (), held_back or (), progress=progress
        )
    else:
        quantized = converted(module, chosen, profile, table, samples, progress)
    return tvm.transform.Sequential(ending)(quantized)


def _without_data(
    module: IRModule,
    recipe: Recipe,
    profile: TargetProfile,
    input_range: tuple[float, float] | None,
    accuracy: str | None,
    progress: bool,
) -> IRModule:
    """QDQ module with ranges from batch norms, marked as such."""
    from tvm_qplugin.calibrator import model_hash
    from tvm_qplugin.data_free import WARNING, data_free_table

    if recipe.recovers or accuracy:
        raise RecipeError(
            "winning accuracy back needs samples, and data-free has none: leave one of them out"
        )
    bare = ir.with_main_attr(module, NORMS, None)
    prepared, annotation = annotated(bare, recipe, profile)
    names = annotation.observed()
    table = data_free_table(module, names, input_range, model_hash=model_hash(bare), progress=progress)
    quantized = tvm.transform.Sequential(convert_passes(table, annotation))(prepared)
    return ir.with_main_attr(quantized, UNSEEN, WARNING)


def check_accuracy(accuracy: str | None, recipe: Recipe) -> None:
    """Raise RecipeError unless ``accuracy`` is None, or "best" with a recipe that it can improve."""
    if accuracy not in (None, "best"):
        raise RecipeError(f"accuracy={accuracy!r}: 'best' or None was expected")
    if accuracy and recipe.scheme not in RECOVERABLE_SCHEMES:
        raise RecipeError(
            f"accuracy='best' searches among models with integer weights, and recipe {recipe.name!r} "
            f"computes in float with float16 or float32 ones: use scheme {' or '.join(RECOVERABLE_SCHEMES)}"
        )


def annotated(module: IRModule, recipe: Recipe, profile: TargetProfile) -> tuple[IRModule, Annotation]:
    """A float module with its annotation."""
    result = tvm.transform.Sequential(prepare_passes(recipe, profile))(module)
    return result, Annotation.loads(ir.main_function(result).attrs[ANNOTATION])


def converted(
    module: IRModule,
    recipe: Recipe,
    profile: TargetProfile,
    table: CalibrationTable,
    samples: Sequence[Sample] | None = None,
    progress: bool = False,
) -> IRModule:
    """Canonical float module -> QDQ module with float inputs and outputs, its accuracy won back."""
    from tvm_qplugin.calibrator import calibrate
    from tvm_qplugin.recovery import recover

    if recipe.recovers and samples is None:
        raise CalibrationError(
            f"recipe {recipe.name!r} corrects biases, rounds adaptively, equalizes or smooths, which needs "
            "samples, and a table holds only ranges: pass calibration=samples"
        )
    seen, module = module, _rescaled(module, recipe, samples or ())
    prepared, annotation = annotated(module, recipe, profile)
    if module is not seen:
        known, observers = table.ranges, annotation.observers()
        observers |= {name: known[name].observer for name in observers.keys() & known.keys()}
        table = calibrate(module, samples or (), names=list(observers), observer=observers)
    quantized = tvm.transform.Sequential(convert_passes(table, annotation))(prepared)
    return _recovered(recover, quantized, module, recipe, samples or (), progress)


def stored(
    module: IRModule, recipe: Recipe, samples: Sequence[Sample] | None = None, progress: bool = False
) -> IRModule:
    """Canonical float module -> module of a scheme that computes in float, its accuracy won back."""
    from tvm_qplugin.recovery import recover_stored

    module = tvm.transform.Sequential([ExpandWeights()])(module)
    module = _rescaled(module, recipe, samples or ())
    result: IRModule = tvm.transform.Sequential(stored_layers(recipe))(module)
    return _recovered(recover_stored, result, module, recipe, samples or (), progress)


def _recovered(
    recover: Callable[..., IRModule],
    quantized: IRModule,
    module: IRModule,
    recipe: Recipe,
    samples: Sequence[Sample],
    progress: bool,
) -> IRModule:
    """The quantized module with the weights and biases that the recipe asks for."""
    steps = {"adaptive_rounding": recipe.adaptive_rounding, "correct_bias": recipe.correct_bias}
    if not any(steps.values()):
        return quantized
    return recover(quantized, module, samples, **steps, progress=progress)


def _rescaled(module: IRModule, recipe: Recipe, samples: Sequence[Sample]) -> IRModule:
    """The same function with factors moved between its layers; the module itself where nothing is to do."""
    from tvm_qplugin.equalization import equalize
    from tvm_qplugin.smoothing import smooth

    if recipe.smooth:
        module = smooth(module, samples)
    return equalize(module, samples) if recipe.equalize else module


def _collected(
    module: IRModule, calibration: Any, limit: int | None, accuracy: str | None
) -> tuple[list[Sample], list[Sample]]:
    """Samples to work with, and those held back to judge by."""
    from tvm_qplugin.best import Split

    if calibration is None:
        raise CalibrationError(
            "winning accuracy back needs samples: pass calibration=samples (an iterable of arrays)"
        )
    split = Split.of(module)
    offer = split.offer if accuracy else split.kept.offer
    for _, sample in numbered(calibration, limit):
        offer(sample)
    return split.kept.samples, split.held.samples


def _check_float_io(recipe: Recipe, io: str) -> None:
    if io != "float":
        raise RecipeError(
            f"io={io!r} was asked for, but scheme {recipe.storage} computes in float: leave io at 'float', "
            "or use recipe 'int8'"
        )


def check_device(recipe: Recipe, profile: TargetProfile) -> None:
    """Raise RecipeError for a recipe that computes in float and a device that does not."""
    if recipe.storage and profile.artifact == "tflite":
        raise RecipeError(
            f"recipe {recipe.name!r} computes in float, and {profile.name} runs integers: use recipe "
            f"{profile.recipe!r}, or leave the target out for a file for any LiteRT"
        )
