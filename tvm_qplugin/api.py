"""``quantize``: from a model file or module to a QDQ module, in one call."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import tvm
from tvm.ir import IRModule

from tvm_qplugin import frontend
from tvm_qplugin.best import attempts_of
from tvm_qplugin.builder import SOURCE, instruments
from tvm_qplugin.core.calibration import CalibrationHook, CalibrationTable
from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.recipe import Recipe, find_recipe
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.quantize_io import QuantizeIO
from tvm_qplugin.pipeline import is_quantized, rewritten
from tvm_qplugin.quantizer import quantize_module, recipe_of_stored
from tvm_qplugin.targets import find_profile

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Model: TypeAlias = "str | os.PathLike[str] | IRModule | ExportedProgram"


def quantize(
    model: Model,
    *,
    recipe: str | Recipe | Mapping[str, Any] | None = None,
    target: str | TargetProfile = "host",
    calibration: Iterable[Any] | CalibrationTable | None = None,
    batch: int | None = None,
    input_layout: str = "NCHW",
    shapes: Mapping[str, Sequence[int]] | None = None,
    observer: str | None = None,
    hooks: Sequence[CalibrationHook] = (),
    limit: int | None = None,
    progress: bool = False,
    io: str | None = None,
    dump: str | os.PathLike[str] | None = None,
    accuracy: str | None = None,
    input_range: tuple[float, float] | None = None,
) -> IRModule:
    """Quantize a trained model; the result is a QDQ module for ``build``, ``simulate`` or TVM itself.

    With ``recipe="fp16"`` constants become float16, with ``"dynamic"`` weights become int8 and activations
    are quantized at run time. ``build`` computes the former in float32 unless the target has float16
    arithmetic, and expands the latter's layers where the target has no kernel for them. With
    ``"weight_int8"`` and ``"weight_int4"`` the weights of dense layers alone become int8 or int4, and kernels
    that take float inputs unpack them. None of these needs ``calibration``, or looks at it unless accuracy
    shall be won back.

    ``model``: an ONNX, ``.tflite`` or ``.pt2`` file, a program of ``torch.export.export``, or a Relax module
    with a function ``main``. One that is quantized already (QDQ, or a ``.tflite`` file of dynamic range or
    float16) is only brought into canonical form and needs no ``calibration``. ``calibration``: samples,
    each an array, a sequence of arrays or ``{input name: array}``, or a ``CalibrationTable`` made before.
    "data-free", worse than a few samples, estimates ranges from the statistics of batch norms, for a model
    that still has them and takes inputs within ``input_range``; the attribute ``qplugin.data_free`` of
    ``main`` marks the result.
    ``target``: the device; what runs .tflite files ("edgetpu", "ethos-u") gets a model rewritten for it.
    ``observer``: "min_max", "moving_average", "percentile", "entropy" or "least_mse". ``accuracy="best"``
    tries what can win accuracy back and keeps what helps on a quarter of the samples, held back for that; the
    attribute ``qplugin.attempts`` of ``main`` tells what was tried, and Ctrl-C ends it. ``hooks`` are called
    with (tensor name, value) for every observed tensor of every sample; at most ``limit`` samples are used.
    ``io``: dtype of the model's inputs and outputs: "float", "int8" or "uint8" ("int16" with the recipe
    "int16x8"). ``recipe`` and
    ``io`` left out are the target's: "int8" and "float" for CPUs. ``dump``: directory for the IR after every
    pass. ``batch``, ``input_layout``, ``shapes``: see ``load``.

    Raises ModelError, CalibrationError, RecipeError or TargetError, all of them QPluginError.
    """
    profile = find_profile(target)
    chosen = find_recipe(profile.recipe if recipe is None else recipe)
    if chosen.schemes == {"float"}:
        raise RecipeError("recipe 'float' quantizes nothing: pass the result of load() to build()")
    with dumping(dump):
        module = prepare(
            model,
            target=profile,
            batch=batch,
            input_layout=input_layout,
            shapes=shapes,
            statistics=isinstance(calibration, str),
        )
        if recipe is None and calibration is None:
            chosen = recipe_of_stored(module) or chosen
        if is_quantized(module):
            module = tvm.transform.Sequential([QuantizeIO(profile.io if io is None else io)])(module)
        else:
            module = quantize_module(
                module,
                recipe=chosen,
                target=profile,
                calibration=calibration,
                observer=observer,
                hooks=hooks,
                limit=limit,
                progress=progress,
                io=io,
                accuracy=accuracy,
                input_range=input_range,
            )
            chosen = recipe_of(module) or chosen
    return ir.with_main_attr(module, SOURCE, json.dumps(describe_source(model, chosen)))


def prepare(
    model: Model,
    *,
    target: str | TargetProfile = "host",
    batch: int | None = None,
    input_layout: str = "NCHW",
    shapes: Mapping[str, Sequence[int]] | None = None,
    statistics: bool = False,
) -> IRModule:
    """Load a model and rewrite it for a target: what ``calibrate`` and ``quantize`` work on.

    A table that ``quantize(model, target=target)`` shall use is made of this module. For CPUs it is what
    ``load`` gives; ``statistics``: see there. Raises ModelError or TargetError.
    """
    profile = find_profile(target)
    module = frontend.load(
        model, batch=batch, input_layout=input_layout, shapes=shapes, statistics=statistics
    )
    return rewritten(module, profile)


def recipe_of(module: IRModule) -> Recipe | None:
    """The recipe that ``accuracy="best"`` has found."""
    found = attempts_of(module)
    return None if found is None else Recipe.from_json(found["recipe"])


def describe_source(model: Model, recipe: Recipe) -> dict[str, Any]:
    """What the manifest should know of where a module came from."""
    source: dict[str, Any] = {"recipe": recipe.to_json(), "model": "model"}
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        source |= {"model": path.stem, "float_bytes": path.stat().st_size}
    return source


def dumping(directory: str | os.PathLike[str] | None) -> Any:
    """A pass context that writes the IR after every pass into ``directory`` (None: writes nothing)."""
    return tvm.transform.PassContext(2, instruments=instruments(Path(directory) if directory else None))
