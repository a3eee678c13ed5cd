"""From a model file to the canonical Relax module that every later stage works on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import tvm
from tvm import IRModule, relax

from tvm_qplugin import onnx_file, onnx_import
from tvm_qplugin.core.errors import ModelError, QPluginError
from tvm_qplugin.passes.fold_batch_norm import FoldBatchNorm
from tvm_qplugin.passes.rebuild import dtype_of, outputs_of, shape_of
from tvm_qplugin.passes.to_nhwc import ToNHWC

IO = "qplugin.io"


def load(
    source: str | os.PathLike[str] | onnx.ModelProto | IRModule,
    *,
    batch: int | None = None,
    input_layout: str = "NCHW",
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> IRModule:
    """Import a model and bring it into canonical form (see ``check_canonical``).

    ``source`` is an ONNX file, a loaded ONNX model, or a Relax module with a function ``main``.
    ``batch`` replaces an unknown first dimension (1 if not given), ``shapes`` (input name -> shape)
    all others. With ``input_layout="NHWC"`` the function takes 4-D inputs as NHWC. Raises ModelError.
    """
    if input_layout not in ("NCHW", "NHWC"):
        raise ModelError(f"input_layout {input_layout!r}: expected 'NCHW' or 'NHWC'")
    module = source if isinstance(source, IRModule) else _import_onnx(source, batch, shapes or {})
    return canonicalize(module, input_layout)


def canonicalize(module: IRModule, input_layout: str = "NCHW") -> IRModule:
    """Run the passes that make the canonical form."""
    passes = [FoldBatchNorm(), ToNHWC(nhwc_inputs=input_layout == "NHWC")]
    return tvm.transform.Sequential(passes)(module)


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
    onnx_file.infer_shapes(model)
    weights = onnx_file.weights_of(model.graph)
    return _with_io(onnx_import.import_graph(model, weights, fixed, onnx_file.opset(model)), model, fixed)


def _with_io(module: IRModule, model: onnx.ModelProto, fixed: Mapping[str, Any]) -> IRModule:
    func = module["main"]
    outputs = [out.name for out in model.graph.output]
    described = {
        "inputs": [_describe(n, v) for n, v in zip(fixed, func.params, strict=True)],
        "outputs": [_describe(n, v) for n, v in zip(outputs, outputs_of(func), strict=True)],
    }
    module["main"] = func.with_attr(IO, json.dumps(described))
    return module


def _describe(name: str, var: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(shape_of(var)), "dtype": dtype_of(var)}
