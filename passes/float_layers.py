"""Float convolutions and dense layers with their bias and clamp, as one unit each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import KINDS, Fusion, bias_of, obstacle

Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class FloatLayer:
    """A layer with constant weights: ``kernel`` and ``params`` as in ``core/oracle.py``.

    ``members`` are its bindings from the convolution or product to the clamp, ``weight`` is OHWI or
    [N, K], ``bias`` [O] or None, ``bias_at`` the name and the argument of the addition that holds it.
    """

    members: tuple[relax.Var, ...]
    head: Call
    kernel: str
    params: dict[str, Any]
    weight: Array
    bias: Array | None = None
    bias_at: tuple[str, int] | None = None

    @property
    def source(self) -> relax.Expr:
        """What it reads."""
        return self.head.args[0]


def layers_of(func: relax.Function) -> dict[relax.Var, FloatLayer]:
    """Every such layer of a float function, by the last of its members."""
    fusion = Fusion.of(func)
    found = {}
    for var, value in ir.bindings(func):
        kind = KINDS.get(ir.op_name(value), "")
        if kind in ("conv2d", "dense") and str(value.ty.dtype) == "float32" and not obstacle(kind, value):
            members = fusion.members(var, kind)
            found[members[-1]] = _layer(members, [fusion.defined[member] for member in members])
    return found


def _layer(members: Sequence[relax.Var], values: Sequence[Call]) -> FloatLayer:
    head, conv = values[0], ir.op_name(values[0]) == "relax.nn.conv2d"
    params: dict[str, Any] = {"lo": None, "hi": None}
    bias, at = None, None
    for member, value in zip(members[1:], values[1:], strict=True):
        if ir.op_name(value) == "relax.add":
            bias = bias_of(members[0], value)
            at = member.name, next(i for i, arg in enumerate(value.args) if ir.const_value(arg) is not None)
        else:
            params |= dict(zip(("lo", "hi"), bounds_of(value), strict=True))
    weight = head.args[1].value.numpy()
    if not conv:
        return FloatLayer(tuple(members), head, "fdense", params, np.ascontiguousarray(weight.T), bias, at)
    return FloatLayer(tuple(members), head, "fconv2d", params | geometry_of(head), weight, bias, at)


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
