"""``export_tflite``: from a module to a ``.tflite`` file that LiteRT runs with the same results."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
from tvm.ir import IRModule

from tvm_qplugin.core.errors import ModelError, QPluginError, RecipeError, TargetError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import stored_arguments
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.quantize_io import IO_PARAMS, QuantizeIO
from tvm_qplugin.pipeline import is_quantized, rewritten
from tvm_qplugin.targets import PROFILES, find_profile

if TYPE_CHECKING:
    from tvm_qplugin.tflite.export import Exported


def export_tflite(
    module: IRModule,
    path: str | os.PathLike[str] | None = None,
    *,
    target: str | TargetProfile | None = None,
    io: str | None = None,
    per_channel_dense: bool | None = None,
    keep_layout: bool = False,
    signature: str = "serving_default",
) -> bytes:
    """A module as a ``.tflite`` file: its bytes, also written to ``path`` if given.

    Of a QDQ module LiteRT's default kernels compute the integers that ``simulate`` and the artifact compute.
    A float module becomes a file in float32, one of the scheme ``fp16`` has float16 constants, one of
    the scheme ``dynamic`` int8 weights; LiteRT's results differ from ``build``'s in rounding, those of
    ``dynamic`` also where ``build`` leaves a layer in float, which ``simulate`` does not, and in products of
    two tensors, which LiteRT computes in float. ``target``: the device ("edgetpu", "ethos-u"), which
    rewrites the module for it and wants integers. ``io``: dtype of inputs and outputs, "float", "int8" or
    "uint8" ("int16" with the scheme int16x8); None: as the module has them, or the target's where they are
    float. Images are NHWC in the file, as in all TFLite models, also where the module takes and gives NCHW;
    ``keep_layout`` keeps the module's layout with TRANSPOSE
    operators. With ``per_channel_dense=False`` (the Edge TPU's default) a dense layer whose weight has many
    scales is refused. ``signature``: key of the
    SignatureDef.

    Raises ModelError for operators without a TFLite counterpart and for those of a QDQ module that stay
    in float, RecipeError for a wrong ``io``, TargetError without the extra ``tflite``, for a target that runs
    no .tflite files, and for a float module where a target was given.
    """
    data = exported(
        module,
        target=target,
        io=io,
        per_channel_dense=per_channel_dense,
        keep_layout=keep_layout,
        signature=signature,
    ).data
    if path is not None:
        write_whole(Path(path), data)
    return data


def exported(
    module: IRModule,
    *,
    target: str | TargetProfile | None = None,
    io: str | None = None,
    per_channel_dense: bool | None = None,
    keep_layout: bool = False,
    signature: str = "serving_default",
    every_layer: bool = False,
) -> Exported:
    """As ``export_tflite``: the file, and the layout of its inputs and outputs.

    ``every_layer`` makes every tensor an output, to compare layer by layer.
    """
    from tvm_qplugin.tflite.export import export_lowered
    from tvm_qplugin.tflite.export_float import export_float

    _check_weights(module)
    profile = None if target is None else _device(target)
    if per_channel_dense is None:
        per_channel_dense = profile is None or profile.per_channel_dense
    options: dict[str, Any] = {
        "per_channel_dense": per_channel_dense,
        "keep_layout": keep_layout,
        "signature": signature,
        "every_layer": every_layer,
    }
    if not is_quantized(module):
        _check_float(profile, io)
        return export_float(module, **options)
    if profile is not None:
        module = rewritten(module, profile)
        io = profile.io if io is None and _has_float_ends(module) else io
    lowered = tvm.transform.Sequential([LowerInteger(storage="int8")])(with_io(module, io))
    return export_lowered(lowered, **options)


def _check_weights(module: IRModule) -> None:
    """Refuse weights that are stored alone: LiteRT would quantize the inputs of their layers."""
    found = [name for (name, _), stored in stored_arguments(module).items() if stored.grouped is not None]
    if found:
        raise ModelError(
            f"{len(found)} dense layers have weights of scheme weight_int8 or weight_int4 and float inputs, "
            f"for which TFLite has no operator: {', '.join(found)}. Quantize them with scheme dynamic or "
            "fp16, or use build() for model.so"
        )


def _check_float(profile: TargetProfile | None, io: str | None) -> None:
    """Refuse what a model that computes in float cannot be."""
    if profile is not None:
        raise ModelError(
            f"the model computes in float, and {profile.name} runs integers: quantize it to int8 first, with "
            f"quantize(target={profile.name!r}) or `tvm-qplugin quantize --target {profile.name}`"
        )
    if io not in (None, "float"):
        raise RecipeError(
            f"io={io!r} was asked for, but the model computes in float and so takes and gives float32: "
            "leave io out, or quantize it to int8 first, with quantize() or `tvm-qplugin quantize`"
        )


def _device(target: str | TargetProfile) -> TargetProfile:
    """The profile of a device that runs .tflite files."""
    profile = find_profile(target)
    if profile.artifact != "tflite":
        known = ", ".join(name for name in sorted(PROFILES) if PROFILES[name].artifact == "tflite")
        raise TargetError(
            f"target {profile.name!r} runs model.so, not .tflite files: use build(), or one of {known}; "
            "leave the target out for a file for any LiteRT"
        )
    return profile


def _has_float_ends(module: IRModule) -> bool:
    func = ir.main_function(module)
    return any(ir.spec_of(end).dtype == "float32" for end in [*func.params, *ir.output_vars(func)])


def with_io(module: IRModule, io: str | None) -> IRModule:
    """The module with inputs and outputs of another dtype. Raises RecipeError where it has a third one."""
    passes = [QuantizeIO(io)] if io is not None else []
    if io is None or IO_PARAMS not in (ir.main_function(module).attrs or {}):
        return tvm.transform.Sequential(passes)(module)
    func = ir.main_function(module)
    ends = [*func.params, *ir.output_vars(func)]
    dtypes = sorted({ir.spec_of(end).dtype.removesuffix("32") for end in ends})
    if dtypes != [io]:
        raise RecipeError(
            f"io={io!r} was asked for, the module has {' and '.join(dtypes)} inputs and outputs already: "
            f"quantize the model with io={io!r}, or with io='float', which can be exported as any"
        )
    return module


def write_whole(path: Path, data: bytes) -> None:
    """Write a file such that it is there as a whole or not at all. Raises QPluginError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise QPluginError(f"cannot write {path} ({error.strerror or error}): choose another file") from error
    finally:
        temporary.unlink(missing_ok=True)
