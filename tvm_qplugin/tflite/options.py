"""The options of operators, unpacked by LiteRT's schema and given readable names."""

from __future__ import annotations

import re
import struct
from functools import cache
from typing import Any

import numpy as np

from tvm_qplugin.core.errors import TargetError
from tvm_qplugin.tflite.flat import AGAIN, Table

_ENUMS = {
    "fused_activation_function": "ActivationFunctionType",
    "padding": "Padding",
    "weights_format": "FullyConnectedOptionsWeightsFormat",
}
_OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
    "CONCATENATION": "ConcatenationOptions",
    "SOFTMAX": "SoftmaxOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "RESIZE_BILINEAR": "ResizeBilinearOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "PACK": "PackOptions",
    "UNPACK": "UnpackOptions",
    "SPLIT": "SplitOptions",
    "SPLIT_V": "SplitVOptions",
    "GATHER": "GatherOptions",
    "SQUEEZE": "SqueezeOptions",
    "RESHAPE": "ReshapeOptions",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions",
    "DEPTH_TO_SPACE": "DepthToSpaceOptions",
    "L2_NORMALIZATION": "L2NormOptions",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTMOptions",
}
"""Option tables that an operator must have; where a file leaves one out, the schema's defaults hold."""


@cache
def schema() -> Any:
    """LiteRT's schema as generated Python; TargetError names the extra to install."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        raise TargetError(
            "reading .tflite files needs the schema of ai-edge-litert: pip install 'tvm-qplugin[tflite]'"
        ) from None
    return schema_py_generated


@cache
def names_of(enum: str) -> dict[int, str]:
    """The names of an enumeration of the schema by number."""
    members = vars(getattr(schema(), enum)).items()
    return {value: name for name, value in members if isinstance(value, int)}


def read_options(table: Table, name: str) -> dict[str, Any]:
    """The builtin options, or the schema's defaults where the operator must have some."""
    kinds, kind = names_of("BuiltinOptions"), table.number(3, "<B")
    given = kinds.get(kind)
    wanted = _OPTIONS.get(name, given)
    if given is None or wanted is None or (kind and given != wanted):
        what = f"options {given or f'number {kind}'}, expected {wanted or 'none that is known'}"
        raise table.error(f"has {what}; {AGAIN}")
    nested = table.table(4, f"options of {table.what}") if kind else None
    if wanted == "NONE":
        return {}
    made = getattr(schema(), f"{wanted}T")() if nested is None else _unpacked(nested, wanted)
    return {_snake(key): _option(_snake(key), value, table) for key, value in vars(made).items()}


def _unpacked(table: Table, kind: str) -> Any:
    reader = getattr(schema(), kind)()
    reader.Init(table.flat.data, table.at)
    try:
        return getattr(schema(), f"{kind}T").InitFromObj(reader)
    except (struct.error, ValueError, TypeError, IndexError, OverflowError, MemoryError):
        raise table.error(f"cannot be read; {AGAIN}") from None


def _option(key: str, value: Any, table: Table) -> Any:
    if key in _ENUMS and isinstance(value, int):
        names = names_of(_ENUMS[key])
        if value not in names:
            raise table.error(f"has {key} {value}, expected one of {', '.join(names.values())}; {AGAIN}")
        return names[value]
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
