"""Read a ``.tflite`` file (float, full integer or dynamic range) into the canonical Relax form."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tvm
from tvm import IRModule, relax

from tvm_qplugin.core.attrs import SCHEME
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.canonicalize import IO
from tvm_qplugin.passes.canonicalize_ops import CanonicalizeOps
from tvm_qplugin.passes.fold_constants import FoldConstants
from tvm_qplugin.passes.quantize_io import IO_PARAMS
from tvm_qplugin.tflite import reader_elementwise as elementwise
from tvm_qplugin.tflite import reader_layers as layers
from tvm_qplugin.tflite import reader_lstm as recurrent
from tvm_qplugin.tflite import reader_movement as movement
from tvm_qplugin.tflite.file import TfliteModel, TfliteOperator, load
from tvm_qplugin.tflite.reader_graph import ACTIVATIONS, QUANTIZED, Graph

Convert = Callable[[Graph, TfliteOperator], None]

OPERATORS: Mapping[str, Convert] = {
    "CONV_2D": layers.conv2d,
    "DEPTHWISE_CONV_2D": layers.depthwise,
    "FULLY_CONNECTED": layers.dense,
    "BATCH_MATMUL": layers.matmul,
    "AVERAGE_POOL_2D": layers.pool,
    "MAX_POOL_2D": layers.pool,
    "MEAN": layers.mean,
    "SOFTMAX": layers.softmax,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": recurrent.lstm,
    "RESIZE_BILINEAR": layers.resize,
    "RESIZE_NEAREST_NEIGHBOR": layers.resize,
    **{name: elementwise.arithmetic for name in ("ADD", "SUB", "MUL")},
    **{name: elementwise.selecting for name in ("MAXIMUM", "MINIMUM")},
    **{name: elementwise.unary for name in ("LOGISTIC", "TANH", "EXP")},
    **{name: elementwise.activation for name in ACTIVATIONS},
    **{name: elementwise.float_binary for name in ("DIV", "POW")},
    **{
        name: elementwise.float_unary
        for name in ("LOG", "SQRT", "RSQRT", "SQUARE", "ABS", "NEG", "SIN", "COS")
    },
    **{name: layers.reduction for name in ("SUM", "REDUCE_MAX", "REDUCE_MIN")},
    "LEAKY_RELU": elementwise.leaky_relu,
    "GELU": elementwise.gelu,
    "PRELU": elementwise.prelu,
    "HARD_SWISH": elementwise.hard_swish,
    "QUANTIZE": elementwise.quantize,
    "DEQUANTIZE": elementwise.dequantize,
    **{name: movement.reshape for name in ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")},
    "TRANSPOSE": movement.transpose,
    "CONCATENATION": movement.concatenation,
    "PAD": movement.pad,
    "PADV2": movement.pad,
    "SLICE": movement.slice_,
    "STRIDED_SLICE": movement.strided_slice,
    "SPLIT": movement.split,
    "SPLIT_V": movement.split,
    "PACK": movement.pack,
    "UNPACK": movement.unpack,
    "GATHER": movement.gather,
}
"""What can be read, by the schema's names."""


def read_tflite(source: str | os.PathLike[str] | bytes) -> IRModule:
    """The canonical module of a file or its bytes: QDQ for a full integer one, else float.

    Float16 constants and int8 weights of float layers make it one of the scheme ``fp16`` or ``dynamic``.
    Integer inputs and outputs stay integer; their parameters stand in ``qplugin.io_params``. Compiled,
    the module gives LiteRT's integers. It has no state: an LSTM starts from zeros at every call.
    Raises ModelError naming everything that cannot be read.
    """
    model = load(source)
    problems = list(_problems(model))
    if problems:
        where = "the file" if isinstance(source, bytes) else source
        raise ModelError(f"{where} cannot be read: {'; '.join(problems)}")
    return tvm.transform.Sequential([FoldConstants(), CanonicalizeOps()])(_module(model))


def _problems(model: TfliteModel) -> Iterator[str]:
    """All that is not supported, at once."""
    unknown = [op for op in model.operators if op.name not in OPERATORS]
    if unknown:
        made = ", ".join(f"{op.name} (makes {_name(model, op)})" for op in unknown)
        yield f"operators without an importer: {made}; supported are {', '.join(sorted(OPERATORS))}"
    if any(len(op.outputs) < 1 or len(op.inputs) < 1 for op in model.operators):
        yield "an operator has no inputs or no outputs; the file is damaged: export it again"
    tensors = dict.fromkeys([*model.inputs, *(i for op in model.operators for i in op.outputs)])
    known = {i for op in unknown for i in op.outputs}
    wrong = [model.tensors[i] for i in tensors if i not in known and not _readable(model, i)]
    if wrong:
        listed = ", ".join(f"{tensor.name} ({tensor.dtype})" for tensor in wrong)
        kinds = "float32, or int8, uint8 or (with zero point 0) int16 with one scale"
        yield f"expected tensors in {kinds}; not so: {listed}"


def _name(model: TfliteModel, op: TfliteOperator) -> str:
    return ", ".join(model.tensors[index].name for index in op.outputs)


def _readable(model: TfliteModel, index: int) -> bool:
    tensor = model.tensors[index]
    if tensor.dtype in QUANTIZED:
        grid = tensor.quant
        return grid is not None and grid.axis is None and not (tensor.dtype == "int16" and grid.zero_point)
    return tensor.dtype == "float32"


def _module(model: TfliteModel) -> IRModule:
    """One dataflow block in the order of the file."""
    graph = Graph(model)
    params = [graph.parameter(index) for index in model.inputs]
    for index, param in zip(model.inputs, params, strict=True):
        graph.receive(index, param)
    for op in model.operators:
        _convert(graph, op)
    results = [graph.result(index) for index in model.outputs]
    main = graph.finish(params, results).with_attrs(_attributes(graph, params, results))
    return IRModule({**graph.kernels, relax.GlobalVar("main"): main})


def _convert(graph: Graph, op: TfliteOperator) -> None:
    """One operator; what contradicts itself in a file (ranks, options) fails somewhere inside."""
    try:
        OPERATORS[op.name](graph, op)
    except ModelError:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        shapes = [graph.shape(index) for index in (*op.inputs, *op.outputs) if index >= 0]
        raise graph.error(
            op, f"shapes {shapes} or its options are wrong ({said}); the file is damaged: export it again"
        ) from None


def _attributes(graph: Graph, params: Sequence[relax.Var], results: Sequence[relax.Var]) -> dict[str, Any]:
    model = graph.model
    sides = {"inputs": (model.inputs, params), "outputs": (model.outputs, results)}
    described = {
        side: [_described(graph, i, var) for i, var in zip(indices, variables, strict=True)]
        for side, (indices, variables) in sides.items()
    }
    grids = {side: [graph.grid(index) for index in indices] for side, (indices, _) in sides.items()}
    attrs = {"num_input": len(params), IO: json.dumps(described)}
    if any(grid is not None for group in grids.values() for grid in group):
        attrs[IO_PARAMS] = json.dumps({side: list(map(_json, group)) for side, group in grids.items()})
    if graph.schemes:
        attrs[SCHEME] = min(graph.schemes)
    return attrs


def _described(graph: Graph, index: int, var: relax.Var) -> dict[str, Any]:
    spec = ir.spec_of(var)
    return {"name": graph.names[index], "shape": list(spec.shape), "dtype": spec.dtype}


def _json(grid: QuantParams | None) -> dict[str, Any] | None:
    return None if grid is None else grid.to_json()
