"""Fold batch normalisation into the weights before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.rebuild import (
    Rebuilder,
    constant,
    op_name,
    rebuild_main,
    shape_of,
    straight_bindings,
    value_of,
)

Expr = Any
# Axis of the output channels in the weight, by operator.
CHANNELS = {"nn.conv2d": 0, "nn.conv1d": 0, "matmul": 1, "nn.conv2d_transpose": 1}


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
@dataclass(frozen=True)
class FoldBatchNorm:
    """Remove every ``nn.batch_norm`` with constant statistics.

    In: ``main`` with ``nn.batch_norm`` of channel axis 1 and the selection of its first result. Out: its
    factor in the weight of the convolution or dense layer before it (if that, and the bias added
    after it, are used nowhere else) and its offset in the bias; otherwise, of images, a depthwise 1x1
    convolution and an add, else (or in a QDQ module) a multiply and an add.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Fold)


class _Fold(Rebuilder):
    def __init__(self, func: relax.Function) -> None:
        super().__init__(func)
        self.shared = {str(var.name) for var, count in self.uses.items() if count > 1}
        self.is_float = not any(op_name(value) == "quantize" for _, value in straight_bindings(func))

    def rewrite(self, call: Expr, name: str) -> Expr:
        """Replace the first result of a batch norm; the tuple itself dies."""
        if not isinstance(call, relax.TupleGetItem) or call.index != 0:
            return call
        norm = self.defined.get(call.tuple_value)
        if norm is None or op_name(norm) != "nn.batch_norm":
            return call
        stats = [value_of(arg) for arg in norm.args[1:5]]
        if any(stat is None for stat in stats) or norm.attrs.training:
            return call
        factor, offset = _factor_and_offset(stats, float(norm.attrs.epsilon))
        merged = self._merged(norm, factor, offset)
        return merged if merged is not None else _affine(norm, factor, offset, self.is_float)

    def _merged(self, norm: Expr, factor: Array, offset: Array) -> Expr:
        x = norm.args[0]
        bias: Array | None = None
        layer = self._sole(x)
        if op_name(layer) == "add" and value_of(layer.args[1]) is not None:
            bias = value_of(layer.args[1])
            layer = self._sole(layer.args[0])
        weight = value_of(layer.args[1]) if op_name(layer) in CHANNELS else None
        if weight is None or (bias is not None and bias.size not in (1, factor.size)):
            return None
        axis = CHANNELS[op_name(layer)]
        channel = len(shape_of(x)) - 1 if op_name(layer) == "matmul" else 1
        if int(norm.attrs.axis) != channel or weight.shape[axis] != factor.size:  # grouped, transposed
            return None
        scaled = weight.astype("float64") * _along(factor, axis, weight.ndim)
        offset = offset if bias is None else offset + bias.astype("float64").reshape(-1) * factor
        with np.errstate(over="ignore"):
            weight, shift = scaled.astype(weight.dtype), offset.astype(weight.dtype)
        if not (np.isfinite(weight).all() and np.isfinite(shift).all()):
            return None
        call = relax.Call(layer.op, [layer.args[0], constant(weight)], layer.attrs, layer.ty_args)
        return relax.op.add(call, constant(_along(shift, channel, len(shape_of(x)))))

    def _sole(self, x: Expr) -> Expr:
        """What ``x`` is bound to, if nothing else uses it."""
        return self.defined.get(x) if x in self.defined and x.name not in self.shared else None


def _factor_and_offset(stats: list[Any], epsilon: float) -> tuple[Array, Array]:
    gamma, beta, mean, var = (np.asarray(stat, "float64") for stat in stats)
    factor = gamma / np.sqrt(var + epsilon)
    return factor, beta - mean * factor


def _along(values: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _affine(norm: Expr, factor: Array, offset: Array, is_float: bool) -> Expr:
    """Factor and offset a channel: of images as a depthwise 1x1 convolution, whose weights are exact."""
    x = norm.args[0]
    rank, axis = len(shape_of(x)), int(norm.attrs.axis)
    scale, shift = (constant(_along(v, axis, rank).astype("float32")) for v in (factor, offset))
    if is_float and rank == 4 and axis == 1:
        weight = constant(_along(factor, 0, rank).astype("float32"))
        return relax.op.add(relax.op.nn.conv2d(x, weight, groups=factor.size), shift)
    return relax.op.add(relax.op.multiply(x, scale), shift)
