"""Where operators are matched: a quantized output, its operands, and the weights of convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.qparams import Array, QuantParams, channel_scale, clamp_bounds
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.plan import Plan, Source, activation_params, stored

Definitions = Mapping[relax.Var, relax.Expr]
Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class Site:
    """A quantized output: the float value behind it, its grid, and where to look things up."""

    var: relax.Var
    grid: QuantParams
    defined: Definitions
    storage: str

    @property
    def out(self) -> TensorSpec:
        """Shape and storage dtype of the result."""
        return TensorSpec(ir.spec_of(self.var).shape, self.grid.dtype)

    @property
    def wide(self) -> bool:
        """Whether the output is int16; then every operand must be."""
        return self.grid.dtype == "int16"

    def source(self, expr: relax.Expr, any_width: bool = False) -> Source | None:
        """The quantized operand behind a dequantized expression, on its own grid; as wide as the output."""
        value = self.defined.get(expr) if isinstance(expr, relax.Var) else None
        if value is None or ir.op_name(value) != "relax.dequantize":
            return None
        params = activation_params(value)
        if params is None:
            return None
        if (params.dtype == "int16") != self.wide and not any_width:
            return None
        return Source(value.args[0], params, stored(params, self.storage))

    def finish(self, bounds: Bounds, builtin: bool = False) -> dict[str, int]:
        """Zero point and clamp of the output with its activation; ``builtin`` as in ``clamp_bounds``."""
        lo, hi = clamp_bounds(self.grid, *bounds, builtin or self.wide)
        return {"out_zp": int(self.grid.zero_point), "lo": lo, "hi": hi}


@dataclass(frozen=True)
class Weight:
    """A weight with zero point 0."""

    values: Array  # int8, output channels first
    scale: Array  # float32 [O]
    grid: QuantParams


@dataclass(frozen=True)
class Layer:
    """The operand, the weight and the bias (integers as float64, [O]) of a convolution or dense layer."""

    source: Source
    weight: Weight
    bias: Array

    def plan(self, site: Site, kernel: str, params: dict[str, Any], constants: tuple[Array, ...]) -> Plan:
        """The call of ``kernel``."""
        macs = site.out.size * self.weight.values[0].size
        kind = "conv2d" if "groups" in params else "dense"
        return Plan(
            kind, site.out, kernel, params, (self.source,), (), constants, macs=macs, weight=self.weight.grid
        )


def _weight(site: Site, expr: relax.Expr, axis: int) -> Weight | None:
    """An int8 weight with zero point 0; ``axis`` is that of the output channels."""
    value: Any = site.defined.get(expr) if isinstance(expr, relax.Var) else None
    if value is None or ir.op_name(value) != "relax.dequantize":
        return None
    q, params = ir.const_value(value.args[0]), ir.qparams_of(value)
    if q is None or params is None or params.axis not in (None, axis) or q.itemsize != 1:
        return None
    centred = q.astype("int32") - params._along(q.ndim)[1]
    if centred.min() < -128 or centred.max() > 127:
        return None
    grid = QuantParams.of(params.scale, 0, "int8", None if params.axis is None else 0)
    return Weight(np.moveaxis(centred, axis, 0).astype("int8"), channel_scale(params, q.shape[axis]), grid)


def weighted(site: Site, core: Call, bias: Array | None, axis: int, any_width: bool = False) -> Layer | None:
    """What conv and dense share; ``axis`` is that of the weight's output channels."""
    source, weight = site.source(core.args[0], any_width), _weight(site, core.args[1], axis)
    if source is None or weight is None:
        return None
    unit = np.float32(source.want.scale) * weight.scale
    real = np.zeros(weight.scale.shape) if bias is None else bias
    return Layer(source, weight, np.rint(real / unit.astype("float64")))


def geometry(core: Call) -> dict[str, Any]:
    """Strides, padding, dilation and groups of a convolution."""
    attrs = core.attrs
    return {
        "strides": ints(attrs.strides),
        "padding": padding4(ints(attrs.padding)),
        "dilation": ints(attrs.dilation),
        "groups": int(attrs.groups),
    }


def ints(values: object) -> list[int]:
    """A TVM array as Python integers."""
    return [int(v) for v in values]  # type: ignore[attr-defined]


def padding4(padding: list[int]) -> list[int]:
    """Padding as top, left, bottom, right."""
    return padding * 4 if len(padding) == 1 else padding * 2 if len(padding) == 2 else padding
