"""From a model file to the canonical Relax module that every later stage works on."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx
from tvm import IRModule

from tvm_qplugin import onnx_file, onnx_import, torch_program
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.onnx_file import last_line
from tvm_qplugin.passes.canonicalize import IO, canonicalize, check_canonical
from tvm_qplugin.tflite.file import IDENTIFIER
from tvm_qplugin.tflite.reader import read_tflite

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["canonicalize", "check_canonical", "load"]


def load(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto | IRModule | ExportedProgram,
    *,
    batch: int | None = None,
    input_layout: str = "NCHW",
    shapes: Mapping[str, Sequence[int]] | None = None,
    statistics: bool = False,
) -> IRModule:
    """Import a model and bring it into canonical form (see ``check_canonical``).

    ``source`` is an ONNX file, a loaded ONNX model, a ``.tflite`` file (path or bytes; float or full
    integer), a program of ``torch.export.export`` or the ``.pt2`` file that ``torch.export.save`` made of it,
    or a Relax module with a function ``main``.
    ``batch`` replaces an unknown first dimension (1 if not given), ``shapes`` (input name -> shape)
    all others. With ``input_layout="NHWC"`` the function takes 4-D inputs as NHWC, as that of a
    ``.tflite`` file always does. ``statistics``: keep what batch norms know of their outputs, for calibration
    without data. Raises ModelError.
    """
    if input_layout not in ("NCHW", "NHWC"):
        raise ModelError(f"input_layout {input_layout!r}: expected 'NCHW' or 'NHWC'")
    try:
        if _is_tflite(source):
            return _import_tflite(source, batch, shapes or {})
        if torch_program.is_program(source):
            return canonicalize(_import_program(source, batch, shapes or {}), input_layout, statistics)
        module = source if isinstance(source, IRModule) else _import_onnx(source, batch, shapes or {})
        return canonicalize(module, input_layout, statistics)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"the model cannot be imported: {last_line(error)}") from None


def _is_tflite(source: object) -> bool:
    if isinstance(source, bytes):
        return source[4:8] == IDENTIFIER
    return isinstance(source, str | os.PathLike) and os.fspath(source).lower().endswith(".tflite")


def _import_tflite(source: Any, batch: int | None, shapes: Mapping[str, Sequence[int]]) -> IRModule:
    return _with_fixed(read_tflite(source), batch, shapes)


def _import_program(source: Any, batch: int | None, shapes: Mapping[str, Sequence[int]]) -> IRModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        program = torch_program.read_program(source)
        from tvm_qplugin.torch_import import import_program  # needs torch

        return _with_fixed(import_program(program), batch, shapes)


def _with_fixed(module: IRModule, batch: int | None, shapes: Mapping[str, Sequence[int]]) -> IRModule:
    """The module, if what was asked for is not something else than its fixed shapes."""
    if shapes:
        raise ModelError(f"shapes for {', '.join(shapes)} were given, but those of this model are fixed")
    for param in module["main"].params:
        first = next((int(extent) for extent in param.ty.shape), None)
        if batch not in (None, first):
            raise ModelError(
                f"batch={batch} was given, but input {param.name} of the model has the fixed batch {first}"
            )
    return module


def _import_onnx(
    source: str | os.PathLike[str] | onnx.ModelProto, batch: int | None, shapes: Mapping[str, Sequence[int]]
) -> IRModule:
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
    elif isinstance(source, str | os.PathLike):
        model = onnx_file.read_model(source)
    else:
        raise ModelError(f"a {type(source).__name__} is not a model; expected a path, ModelProto or IRModule")
    onnx_file.check_model(model, onnx_import.supported_operators())
    fixed = onnx_file.fix_inputs(model, batch, shapes)
    onnx_file.check_valid(model)
    weights = onnx_file.weights_of(model.graph)
    contradiction = onnx_file.shape_error(model)
    # The importer names the node at fault, shape inference often a later one: it has the last word.
    module = onnx_import.import_graph(model, weights, fixed, onnx_file.opset(model))
    if contradiction is not None:
        raise contradiction
    return _with_io(module, model, fixed)


def _with_io(module: IRModule, model: onnx.ModelProto, fixed: Mapping[str, Any]) -> IRModule:
    """Write down the names that the model gives its inputs and outputs."""
    names = {"inputs": list(fixed), "outputs": [out.name for out in model.graph.output]}
    interface = {key: [{"name": name} for name in group] for key, group in names.items()}
    module["main"] = module["main"].with_attr(IO, json.dumps(interface))
    return module
