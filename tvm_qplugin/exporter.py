"""``export_tflite``: from a quantized module to a ``.tflite`` file that LiteRT runs with the same results."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import tvm
from tvm.ir import IRModule

from tvm_qplugin.core.errors import ModelError, RecipeError, TargetError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.passes import ir
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
    """A QDQ module as a ``.tflite`` file: its bytes, also written to ``path`` if given.

    LiteRT's default kernels compute the integers that ``simulate`` and the artifact compute. ``target``: the
    device ("edgetpu", "ethos-u"), which rewrites the module for it. ``io``: dtype of inputs and outputs,
    "float", "int8" or "uint8"; None: as the module has them, or the target's where they are float. Images
    are NHWC in the file, as in all TFLite models, also where the module takes and gives NCHW;
    ``keep_layout`` keeps the module's layout with TRANSPOSE operators. With ``per_channel_dense=False`` (the
    Edge TPU's default) a dense layer whose weight has many scales is refused. ``signature``: key of the
    SignatureDef.

    Raises ModelError for a module that is not quantized, has float operators or operators without a
    TFLite counterpart, RecipeError for a wrong ``io``, TargetError without the extra ``tflite`` and for a
    target that runs no .tflite files.
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

    if not is_quantized(module):
        raise ModelError(
            "the model is in float, and a .tflite of integers was asked for: quantize it first, with "
            "quantize() or `tvm-qplugin quantize`"
        )
    profile = None if target is None else _device(target)
    if profile is not None:
        module = rewritten(module, profile)
        io = profile.io if io is None and _has_float_ends(module) else io
    if per_channel_dense is None:
        per_channel_dense = profile is None or profile.per_channel_dense
    typed = with_io(module, io)
    lowered = tvm.transform.Sequential([LowerInteger(storage="int8")])(typed)
    return export_lowered(
        lowered,
        per_channel_dense=per_channel_dense,
        keep_layout=keep_layout,
        signature=signature,
        every_layer=every_layer,
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
    """Write a file such that it is there as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
