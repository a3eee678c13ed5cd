"""``quantize``: from a model file or module to a QDQ module, in one call."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm.ir import IRModule

from tvm_qplugin import frontend
from tvm_qplugin.builder import SOURCE, instruments
from tvm_qplugin.core.calibration import CalibrationHook, CalibrationTable
from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.recipe import Recipe, find_recipe
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.quantize_io import QuantizeIO
from tvm_qplugin.pipeline import is_quantized, quantize_module


def quantize(
    model: str | os.PathLike[str] | IRModule,
    *,
    recipe: str | Recipe | Mapping[str, Any] = "int8",
    target: str | TargetProfile = "host",
    calibration: Iterable[Any] | CalibrationTable | None = None,
    batch: int | None = None,
    input_layout: str = "NCHW",
    shapes: Mapping[str, Sequence[int]] | None = None,
    observer: str | None = None,
    hooks: Sequence[CalibrationHook] = (),
    limit: int | None = None,
    progress: bool = False,
    io: str = "float",
    dump: str | os.PathLike[str] | None = None,
) -> IRModule:
    """Quantize a trained model; the result is a QDQ module for ``build``, ``simulate`` or TVM itself.

    ``model``: an ONNX file, or a Relax module with a function ``main``. One that is quantized already
    (QDQ) is only brought into canonical form and needs no ``calibration``. ``calibration``: samples, each an
    array, a sequence of arrays or ``{input name: array}``, or a ``CalibrationTable`` made before.
    ``observer``: "min_max" or "moving_average". ``hooks`` are called with (tensor name, value) for every
    observed tensor of every sample; at most ``limit`` samples are used. ``io``: dtype of the
    model's inputs and outputs: "float", "int8" or "uint8" ("int16" with the recipe "int16x8"). ``dump``:
    directory for the IR after every pass. ``batch``, ``input_layout``, ``shapes``: see ``load``.

    Raises ModelError, CalibrationError, RecipeError or TargetError, all of them QPluginError.
    """
    chosen = find_recipe(recipe)
    if chosen.scheme == "float":
        raise RecipeError("recipe 'float' quantizes nothing: pass the result of load() to build()")
    with dumping(dump):
        module = frontend.load(model, batch=batch, input_layout=input_layout, shapes=shapes)
        if is_quantized(module):
            module = tvm.transform.Sequential([QuantizeIO(io)])(module)
        else:
            module = quantize_module(
                module,
                recipe=chosen,
                target=target,
                calibration=calibration,
                observer=observer,
                hooks=hooks,
                limit=limit,
                progress=progress,
                io=io,
            )
    return ir.with_main_attr(module, SOURCE, json.dumps(describe_source(model, chosen)))


def describe_source(model: str | os.PathLike[str] | IRModule, recipe: Recipe) -> dict[str, Any]:
    """What the manifest should know of where a module came from."""
    source: dict[str, Any] = {"recipe": recipe.to_json(), "model": "model"}
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        source |= {"model": path.stem, "float_bytes": path.stat().st_size}
    return source


def dumping(directory: str | os.PathLike[str] | None) -> Any:
    """A pass context that writes the IR after every pass into ``directory`` (None: writes nothing)."""
    return tvm.transform.PassContext(2, instruments=instruments(Path(directory) if directory else None))
