"""Finds pairs of layers with nothing between them that a factor per channel could not pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import KINDS, Fusion, is_activation

_LAYERS = ("conv2d", "dense")


@dataclass(frozen=True)
class Layer:
    """A convolution (OHWI) or dense layer with a constant weight; its variables, None for what it lacks."""

    product: relax.Var
    bias: relax.Var | None
    clamp: relax.Var | None
    call: Any
    limit: float | None

    @property
    def output(self) -> relax.Var:
        """What the layer puts out."""
        return self.before_clamp if self.clamp is None else self.clamp

    @property
    def before_clamp(self) -> relax.Var:
        """Its sum, before the activation."""
        return self.product if self.bias is None else self.bias

    @property
    def dense(self) -> bool:
        """Whether it is no convolution."""
        return ir.op_name(self.call) == "relax.matmul"

    @property
    def groups(self) -> int:
        """Of a convolution; a dense layer is one."""
        return 1 if self.dense else int(self.call.attrs.groups)

    @property
    def weight(self) -> Array:
        """The constant as it stands."""
        value = ir.const_value(self.call.args[1])
        assert value is not None
        return value

    def rows(self, weight: Array) -> Array:
        """A weight like this layer's as [groups, outputs of a group, taps, inputs of a group]."""
        stored = weight.T if self.dense else weight
        return stored.reshape(self.groups, len(stored) // self.groups, -1, stored.shape[-1])

    def stored(self, rows: Array) -> Array:
        """The inverse of ``rows``."""
        return rows.reshape(self.weight.T.shape).T if self.dense else rows.reshape(self.weight.shape)


@dataclass(frozen=True)
class Pair:
    """A layer and the only one that reads it; ``local``: no zeros are padded, nothing is reduced between."""

    first: Layer
    second: Layer
    local: bool


def layer_pairs(func: relax.Function) -> list[Pair]:
    """All pairs, in order of execution.

    Between them may stand relu, a clip from 0 (then the first layer has a ``limit``), zero pads, pools, the
    mean over an image, and reshapes that keep the last axis.
    """
    fusion = Fusion.of(func)
    layers = {layer.product: layer for layer in _layers(fusion)}
    found = []
    for first in layers.values():
        second, local = _reader(first.output, fusion)
        if second in layers:
            found.append(Pair(first, layers[second], local and not _pads(layers[second].call)))
    return found


def _layers(fusion: Fusion) -> Iterator[Layer]:
    for var, call in fusion.defined.items():
        kind = KINDS.get(ir.op_name(call), "")
        weight = ir.const_value(call.args[1]) if kind in _LAYERS else None
        if weight is None or weight.ndim != (2 if kind == "dense" else 4):
            continue
        members = fusion.members(var, kind)
        clamp = members[-1] if is_activation(var, fusion.defined[members[-1]]) else None
        bias = members[1] if len(members) > 1 and members[1] is not clamp else None
        limit = None
        if clamp is not None and ir.op_name(fusion.defined[clamp]) == "relax.clip":
            low, limit = _bounds(fusion.defined[clamp])
            if low != 0:
                continue
        yield Layer(var, bias, clamp, call, limit if limit is None or np.isfinite(limit) else None)


def _bounds(call: Any) -> tuple[float, float]:
    low, high = (float(getattr(arg, "value", arg)) for arg in call.args[1:3])
    return low, high


def _reader(var: relax.Var, fusion: Fusion) -> tuple[relax.Var | None, bool]:
    """The layer that alone reads a tensor, and whether nothing but reshapes stands between."""
    local = True
    while True:
        users = fusion.users.get(var, [])
        if len(users) != 1 or var in fusion.results:
            return None, local
        value = fusion.defined[users[0]]
        if KINDS.get(ir.op_name(value)) in _LAYERS:
            return users[0], local
        if not _transparent(var, users[0], value):
            return None, local
        local = local and KINDS[ir.op_name(value)] == "reshape"
        var = users[0]


def _transparent(var: relax.Var, user: relax.Var, value: Any) -> bool:
    """Whether a positive factor per channel before the operator is the same as after it."""
    kind = KINDS.get(ir.op_name(value), "")
    if kind in ("avg_pool2d", "max_pool2d") and ir.op_name(value) != "relax.max":
        return str(value.attrs.layout) == "NHWC"
    if kind == "mean":
        rank = len(ir.spec_of(var).shape)
        return value.attrs.axis is not None and all(int(a) % rank < rank - 1 for a in value.attrs.axis)
    if kind == "pad":
        widths = [int(width) for width in value.attrs.pad_width]
        return (
            str(value.attrs.pad_mode) == "constant"
            and not float(value.attrs.pad_value)
            and not any(widths[-2:])
        )
    shapes = (ir.spec_of(var).shape, ir.spec_of(user).shape)
    return kind == "reshape" and len({shape[-1:] for shape in shapes}) == 1


def _pads(call: Any) -> bool:
    return ir.op_name(call) == "relax.nn.conv2d" and any(int(p) for p in call.attrs.padding)
