"""Options that were given and have no use: they are named, so that none is left out in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tvm_qplugin.console import say

if TYPE_CHECKING:
    from pathlib import Path

    from tvm.ir import IRModule

    from tvm_qplugin.core.calibration import CalibrationTable
    from tvm_qplugin.core.recipe import Recipe
    from tvm_qplugin.workflow import Quantization


def say_unused(why: str, options: Mapping[str, Any]) -> None:
    """Say why, and which options are not used for that; quiet where none of them was given."""
    names = [name for name, value in options.items() if value]
    if names:
        say(f"{why}: {', '.join(names)} {'is' if len(names) == 1 else 'are'} not used", "yellow")


def say_nothing_to_rescale(module: IRModule, recipe: Recipe) -> None:
    """Say that smoothing or equalizing, where it is asked for, finds nothing in the model."""
    from tvm_qplugin.passes import ir
    from tvm_qplugin.passes.layer_pairs import layer_pairs
    from tvm_qplugin.passes.smooth_quant import smoothable

    func = ir.main_function(module)
    if recipe.smooth and not smoothable(func):
        say_unused("no norm feeds dense layers here", {"--smooth": True})
    if recipe.equalize and not layer_pairs(func):
        say_unused("no two layers follow each other here", {"--equalize": True})


def say_flat(table: CalibrationTable) -> None:
    """Say that the first tensor, which is what the model is given, has one value in all samples."""
    for name, seen in list(table.ranges.items())[:1]:
        if seen.low == seen.high:
            say(
                f"in all {table.samples} samples {name} holds nothing but {seen.low:g}: give samples of what "
                "the model will see",
                "yellow",
            )


def of_ranges(work: Quantization, table: CalibrationTable | None) -> dict[str, Any]:
    """What says how ranges are learned."""
    return {
        "--table": table,
        "--observer": work.observer,
        "--workers": work.workers > 1,
        "--ray": work.cluster,
    }


def of_samples(work: Quantization) -> dict[str, Any]:
    """What says which samples are read."""
    return {
        "--calibration": work.calibration,
        "--preprocess": work.preprocess,
        "--key": work.key,
        "--samples": work.samples,
    }


def of_recipe(work: Quantization) -> dict[str, Any]:
    """What says how layers are quantized."""
    schemes = {rule.scheme for rule in work.rules}
    return {
        "--recipe": work.recipe_name,
        "--keep-float": "float" in schemes,
        "--int16": "int16x8" in schemes,
        "--correct-bias": work.correct_bias,
        "--adaptive-rounding": work.adaptive_rounding,
        "--equalize": work.equalize,
        "--smooth": work.smooth,
        "--reduce-range": work.reduce_range,
        "--accuracy": work.accuracy,
        "--data-free": work.data_free,
    }


def of_all(work: Quantization, table: CalibrationTable | None) -> dict[str, Any]:
    """Every option that says how to quantize."""
    return of_recipe(work) | of_ranges(work, table) | of_samples(work)


def say_no_table(path: Path | None, table: CalibrationTable | None) -> None:
    """Say that ``--save-table`` has nothing to write."""
    if table is None:
        say_unused("there is no table of ranges", {"--save-table": path})
