"""``export_tflite``: from a quantized module to a ``.tflite`` file that LiteRT runs with the same results."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import tvm
from tvm.ir import IRModule

from tvm_qplugin.core.errors import ModelError, RecipeError
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.quantize_io import IO_PARAMS, QuantizeIO
from tvm_qplugin.pipeline import is_quantized

if TYPE_CHECKING:
    from tvm_qplugin.tflite.export import Exported


def export_tflite(
    module: IRModule,
    path: str | os.PathLike[str] | None = None,
    *,
    io: str | None = None,
    per_channel_dense: bool = True,
    keep_layout: bool = False,
    signature: str = "serving_default",
) -> bytes:
    """A QDQ module as a ``.tflite`` file: its bytes, also written to ``path`` if given.

    LiteRT's default kernels compute the integers that ``simulate`` and the artifact compute. ``io``: dtype of
    inputs and outputs, "float", "int8" or "uint8" ("int16" with the scheme int16x8); None: as the module has
    them. Images are NHWC in the file, as in all TFLite models, also where the module takes and gives NCHW;
    ``keep_layout`` keeps the module's layout with TRANSPOSE operators. With ``per_channel_dense=False`` a
    dense layer whose weight has many scales is refused, as the Edge TPU would. ``signature``: key of the
    SignatureDef.

    Raises ModelError for a module that is not quantized, has float operators or operators without a
    TFLite counterpart, RecipeError for a wrong ``io``, TargetError without the extra ``tflite``.
    """
    data = exported(
        module, io=io, per_channel_dense=per_channel_dense, keep_layout=keep_layout, signature=signature
    ).data
    if path is not None:
        write_whole(Path(path), data)
    return data


def exported(
    module: IRModule,
    *,
    io: str | None = None,
    per_channel_dense: bool = True,
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
    typed = with_io(module, io)
    lowered = tvm.transform.Sequential([LowerInteger(storage="int8")])(typed)
    return export_lowered(
        lowered,
        per_channel_dense=per_channel_dense,
        keep_layout=keep_layout,
        signature=signature,
        every_layer=every_layer,
    )


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
