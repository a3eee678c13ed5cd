"""Float convolutions and dense layers with their bias and clamp, as one unit each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from tvm_qplugin.core.grouped import Grouped
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import Stored
from tvm_qplugin.passes.op_kinds import KINDS, Fusion, bias_of, obstacle

FLOATS = ("float32", "float16")
Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class FloatLayer:
    """A layer with constant weights: ``kernel`` and ``params`` as in ``core/oracle.py``.

    ``members`` are its bindings from the convolution or product to the clamp, ``weight`` is OHWI or
    [N, K], ``bias`` [O] or None. ``grid``: the parameters of an int8 weight, ``grouped``: the weight with
    scales of groups. ``halves``: which of weight (1) and bias (2) are stored as float16.
    """

    members: tuple[relax.Var, ...]
    head: Call
    kernel: str
    params: dict[str, Any]
    weight: Array
    bias: Array
    grid: QuantParams | None = None
    halves: frozenset[int] = frozenset()
    grouped: Grouped | None = None

    @property
    def source(self) -> relax.Expr:
        """What it reads."""
        return self.head.args[0]


def layers_of(
    func: relax.Function, stored: Mapping[tuple[str, int], Stored] | None = None
) -> dict[relax.Var, FloatLayer]:
    """Every such layer of a float function, by the last of its members.

    ``stored``: how the constants were stored before they were expanded, see ``stored_arguments``.
    """
    fusion = Fusion.of(func)
    found = {}
    for var, value in ir.bindings(func):
        kind = KINDS.get(ir.op_name(value), "")
        if kind not in ("conv2d", "dense") or obstacle(kind, value, FLOATS):
            continue
        if str(value.ty.dtype) in FLOATS:
            members = fusion.members(var, kind)
            values = [fusion.defined[member] for member in members]
            found[members[-1]] = _layer(members, values, stored or {})
    return found


def _layer(
    members: Sequence[relax.Var], values: Sequence[Call], stored: Mapping[tuple[str, int], Stored]
) -> FloatLayer:
    head = values[0]
    weight = stored.get((members[0].name, 1), Stored(head.args[1].value.numpy()))
    conv = ir.op_name(head) == "relax.nn.conv2d"
    array = weight.array if weight.grid is not None else weight.real()
    array = array if conv else np.ascontiguousarray(array.T)
    halves = {1} if weight.array.dtype == "float16" else set()
    bias = np.zeros(array.shape[0], "float32")
    params: dict[str, Any] = {"lo": None, "hi": None, **(geometry_of(head) if conv else {})}
    for member, value in zip(members[1:], values[1:], strict=True):
        if ir.op_name(value) == "relax.add":
            found = bias_of(members[0], value)
            bias = bias if found is None else found
            halves |= (
                {2} if any((member.name, i) in stored or _is_half(value.args[i]) for i in (0, 1)) else set()
            )
        else:
            params |= dict(zip(("lo", "hi"), bounds_of(value), strict=True))
    kernel = "fconv2d" if conv else "fdense"
    grid, grouped = weight.grid, weight.grouped
    return FloatLayer(tuple(members), head, kernel, params, array, bias, grid, frozenset(halves), grouped)


def _is_half(arg: relax.Expr) -> bool:
    array = ir.const_value(arg)
    return array is not None and array.dtype == "float16"


def bounds_of(value: Call) -> Bounds:
    """The bounds of a relu or clip; None where there is none."""
    if ir.op_name(value) == "relax.nn.relu":
        return 0.0, None
    lo, hi = float(value.args[1].value), float(value.args[2].value)
    largest = float(np.finfo("float32").max)
    return (lo if lo > -largest else None), (hi if hi < largest else None)


def geometry_of(call: Call) -> dict[str, Any]:
    """Strides, padding (top, left, bottom, right), dilation and groups of a convolution."""
    attrs = call.attrs
    padding = [int(p) for p in attrs.padding]
    return {
        "strides": [int(s) for s in attrs.strides],
        "padding": padding * (4 // len(padding)),
        "dilation": [int(d) for d in attrs.dilation],
        "groups": int(attrs.groups),
    }
