"""What one quantized tensor will be computed by: the result of matching, before anything is emitted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tvm import relax
from tvm.ir import Call

from tvm_qplugin.core import lite
from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.fixed_point import quantize_multiplier
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array, QuantParams, rescale_multiplier
from tvm_qplugin.passes import ir

REASONS = "qplugin.reasons"
"""Function attribute of a QDQ module: why a tensor is computed in float, a JSON object by name."""

GRIDS = "qplugin.grids"
"""Function attribute of a lowered module: ``QuantParams.to_json()`` of every integer tensor, by name.

``<name>_weight`` is the weight of the kernel that makes ``<name>``, ``<name>_0``, ``<name>_1`` its
constant operands.
"""
FUNCTIONS = "qplugin.functions"
"""Function attribute of a lowered module: what a table stands for, ``Plan.function`` by tensor name."""

_SHIFT = {("int8", "uint8"): 128, ("uint8", "int8"): -128}


@dataclass(frozen=True)
class Source:
    """A quantized operand: a variable or constant, the grid it is on, and the grid it is wanted on."""

    expr: relax.Expr
    have: QuantParams
    want: QuantParams


@dataclass(frozen=True)
class Plan:
    """One kernel call (or, without ``kernel``, a data movement operator on integers).

    ``sources`` are quantized operands, ``floats`` float variables, ``constants`` arrays; they become
    the kernel's arguments in this order. ``rebuild`` makes the operator of a movement. ``weight`` is the grid
    of the weight among the constants, ``function`` what a table was filled by: ``operators``, ``alpha``;
    ``result`` is the grid of an output that no ``R.quantize`` tells.
    """

    kind: str
    out: TensorSpec
    kernel: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    floats: tuple[relax.Var, ...] = ()
    constants: tuple[Array, ...] = ()
    rebuild: Any = None
    macs: int = 0
    weight: QuantParams | None = None
    function: Mapping[str, Any] = field(default_factory=dict)
    result: QuantParams | None = None

    @property
    def weights(self) -> list[Array]:
        """The int8 weights."""
        return [array for array in self.constants if array.dtype == "int8" and array.ndim > 1]


def activation_params(call: Call) -> QuantParams | None:
    """The grid of a ``relax.quantize`` or ``relax.dequantize``, if activations on it have kernels."""
    params = ir.qparams_of(call)
    if params is None or params.axis is not None or params.dtype not in ("int8", "uint8", "int16"):
        return None
    return None if params.dtype == "int16" and int(params.zero_point) else params


def requantize_plan(source: Source, shape: tuple[int, ...]) -> Plan:
    """The conversion of a tensor from ``source.have`` to the grid ``source.want``, both in storage dtypes.

    Fixed point where one of them is int16, else as XNNPACK: a table where the ratio of the scales is
    beyond what that converts by.
    """
    out = TensorSpec(shape, source.want.dtype)
    if "int16" in (source.have.dtype, source.want.dtype):
        ratio = quantize_multiplier(float(source.have.scale) / float(source.want.scale))
        params16 = {
            **full_range(source.want),
            "in_zp": int(source.have.zero_point),
            "multiplier": ratio,
        }
        return Plan("requantize", out, "requantize16", params16, (source,))
    multiplier = rescale_multiplier(source.have.scale, source.want.scale)
    if multiplier is None:
        table = lite.requantized(source.have, source.want)
        return Plan("requantize", out, "qlut", {}, (source,), (), (table,))
    params = {
        **full_range(source.want),
        "in_zp": int(source.have.zero_point),
        "multiplier": multiplier,
    }
    return Plan("requantize", out, "requantize", params, (source,))


def grids_of(func: relax.Function) -> dict[str, QuantParams]:
    """The attribute ``qplugin.grids`` of a lowered function; empty where it has none."""
    text = str((func.attrs or {}).get(GRIDS, "{}"))
    return {name: QuantParams.from_json(data) for name, data in json.loads(text).items()}


def stored(params: QuantParams, storage: str) -> QuantParams:
    """The same real numbers with 8-bit integers of dtype ``storage`` (int8 and uint8 differ by 128)."""
    shift = _SHIFT.get((params.dtype, storage))
    if shift is None:
        return params
    return QuantParams.of(params.scale, params.zero_point + shift, storage, params.axis)


def shift_array(array: Array, storage: str) -> Array:
    """Integers of one 8-bit dtype as the other."""
    shift = _SHIFT.get((str(array.dtype), storage), 0)
    return (array.astype("int32") + shift).astype(storage if shift else array.dtype)


def full_range(params: QuantParams) -> dict[str, int]:
    """``out_zp``, ``lo`` and ``hi`` of an output without activation."""
    lo, hi = INTEGER_RANGE[params.dtype]
    return {"out_zp": int(params.zero_point), "lo": lo, "hi": hi}
