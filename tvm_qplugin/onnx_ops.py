"""Own converters for ONNX operators that TVM imports in a form the passes cannot use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.rebuild import constant, dtype_of, edit_weight, op_name, shape_of, value_of

Expr = Any
FLOAT_MAX = float(np.finfo("float32").max)


@dataclass(frozen=True)
class Node:
    """One ONNX node with its inputs converted: what a converter sees.

    ``outputs`` is how many it has, ``used`` how many of them something else in the model reads.
    ``emit(expr, role, step)`` binds a tensor to a variable named after the node, what it is and, where the
    node is repeated, the step.
    """

    op_type: str
    inputs: Sequence[Expr | None]
    attrs: Mapping[str, Any]
    outputs: int
    used: int
    opset: int
    lookup: Callable[[Expr], Expr | None]
    emit: Callable[[Expr, str, int | None], Expr]

    def input(self, index: int) -> Expr | None:
        """An input, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def array(self, index: int, attr: str | None = None) -> Array | None:
        """A constant input, or the attribute of older opsets; None where neither is given."""
        if attr is not None and attr in self.attrs:
            return np.asarray(self.attrs[attr])
        given = self.input(index)
        if given is None:
            return None
        value = value_of(given)
        if value is None:
            raise ValueError(f"input {index} must be a constant")
        return value

    def ints(self, index: int, attr: str) -> list[int] | None:
        """``array`` as a list of integers."""
        value = self.array(index, attr)
        return None if value is None else [int(v) for v in value.reshape(-1)]

    def text(self, attr: str, default: str) -> str:
        """A string attribute."""
        value = self.attrs.get(attr, default)
        return value.decode() if isinstance(value, bytes) else str(value)


def reshape_to(x: Expr, shape: Sequence[int]) -> Expr:
    """Reshape, unless the shape is already right."""
    return x if shape_of(x) == tuple(shape) else relax.op.reshape(x, tuple(int(s) for s in shape))


def clip(node: Node) -> Expr:
    """Clip: relu where only a lower bound of 0 is given."""
    x = node.inputs[0]
    low, high = node.array(1, "min"), node.array(2, "max")
    if any(bound is not None and bound.size != 1 for bound in (low, high)):
        raise ValueError("the bounds of Clip must be scalars")
    lo = -FLOAT_MAX if low is None else max(float(low.reshape(())), -FLOAT_MAX)
    hi = FLOAT_MAX if high is None else min(float(high.reshape(())), FLOAT_MAX)
    if lo == -FLOAT_MAX and hi == FLOAT_MAX:
        return x
    return relax.op.nn.relu(x) if (lo, hi) == (0.0, FLOAT_MAX) else relax.op.clip(x, lo, hi)


def gemm(node: Node) -> Expr:
    """``alpha * A' B' + beta * C`` as matmul with a ``[K, N]`` weight, then add."""
    a, b, c = node.inputs[0], node.inputs[1], node.input(2)
    if len(shape_of(a)) != 2 or len(shape_of(b)) != 2:
        raise ValueError(f"Gemm needs matrices, got {shape_of(a)} and {shape_of(b)}")
    alpha, beta = (np.array(node.attrs.get(name, 1.0), "float32") for name in ("alpha", "beta"))
    a = relax.op.permute_dims(a, [1, 0]) if node.attrs.get("transA", 0) else a
    out = relax.op.matmul(a, _gemm_weight(node, b, alpha))
    if c is None or beta == 0:
        return out
    return relax.op.add(out, _gemm_bias(node, c, beta))


def _gemm_weight(node: Node, weight: Expr, alpha: Array) -> Expr:
    if node.attrs.get("transB", 0):
        turned = edit_weight(weight, node.lookup, lambda w: np.ascontiguousarray(w.T), {0: 1, 1: 0})
        weight = relax.op.permute_dims(weight, [1, 0]) if turned is None else turned
    if alpha == 1:
        return weight
    value = value_of(weight)
    return relax.op.multiply(weight, constant(alpha)) if value is None else constant(value * alpha)


def _gemm_bias(node: Node, bias: Expr, beta: Array) -> Expr:
    shape = shape_of(bias)
    if len(shape) == 2 and shape[0] == 1:
        edited = edit_weight(bias, node.lookup, lambda b: b.reshape(-1), {1: 0})
        bias = relax.op.reshape(bias, (shape[1],)) if edited is None else edited
    if beta == 1:
        return bias
    value = value_of(bias)
    return relax.op.multiply(bias, constant(beta)) if value is None else constant(value * beta)


def batch_norm(node: Node) -> Expr:
    """Batch normalisation with fixed statistics; FoldBatchNorm removes it."""
    if node.attrs.get("training_mode", 0) or node.used > 1:
        raise ValueError("it is in training mode; export the model for inference")
    x: Expr = node.inputs[0]
    stats: list[Expr] = [_statistic(node, s) for s in node.inputs[1:5]]
    eps = float(node.attrs.get("epsilon", 1e-5))
    sizes = {shape_of(s) for s in stats}
    if sizes != {shape_of(x)[1:2]} or not bool(np.all(stats[3].value.numpy() + eps > 0)):
        raise ValueError(
            f"statistics of shapes {sorted(sizes)} do not fit {shape_of(x)}, or a variance is < 0"
        )
    return relax.TupleGetItem(relax.op.nn.batch_norm(x, *stats, axis=1, epsilon=eps, training=False), 0)


def _statistic(node: Node, given: Expr) -> Expr:
    """A constant vector; one that is stored quantized is dequantized here."""
    if value_of(given) is not None:
        return given
    bound: Expr = node.lookup(given)
    arrays = [value_of(arg) for arg in bound.args] if op_name(bound) == "dequantize" else [None]
    if any(array is None for array in arrays):
        raise ValueError("its scale, bias, mean and variance must be constants")
    q, scale, zero = (np.asarray(array) for array in arrays)
    return constant(((q.astype("int64") - zero).astype("float32") * scale).astype("float32"))


def quantize(node: Node) -> Expr:
    """QuantizeLinear with constant scale and zero point."""
    x, scale, zero, axis = _quantization(node)
    return relax.op.quantize(x, scale, zero, axis=axis, out_dtype=dtype_of(zero))


def dequantize(node: Node) -> Expr:
    """DequantizeLinear with constant scale and zero point; integers stay integers."""
    x, scale, zero, axis = _quantization(node)
    if dtype_of(x) != dtype_of(zero):
        raise ValueError(f"its input is {dtype_of(x)}, its zero point {dtype_of(zero)}")
    return relax.op.dequantize(x, scale, zero, axis=axis, out_dtype="float32")


def _quantization(node: Node) -> tuple[Expr, Expr, Expr, int]:
    if node.attrs.get("block_size", 0):
        raise ValueError("blocked quantization is not supported; use per-tensor or per-axis scales")
    x, scale, zero = node.inputs[0], node.array(1), node.array(2)
    assert scale is not None
    if scale.dtype != np.float32 or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"its scales must be positive float32, got {scale.dtype} {scale.reshape(-1)[:4]}")
    if zero is None:
        default = "uint8" if node.op_type == "QuantizeLinear" else dtype_of(x)
        zero = np.zeros(scale.shape, default)
    if zero.dtype.name not in ("int8", "uint8", "int16", "uint16", "int32"):
        raise ValueError(f"its zero point has dtype {zero.dtype}; expected int8, uint8, int16 or int32")
    if zero.size != scale.size:
        raise ValueError(f"it has {scale.size} scales but {zero.size} zero points")
    if scale.size == 1:
        return x, constant(scale.reshape(())), constant(zero.reshape(())), -1
    rank = len(shape_of(x))
    axis = int(node.attrs.get("axis", 1))
    axis = 0 if rank == 1 else axis % rank if -rank <= axis < rank else rank
    if axis == rank or scale.ndim != 1 or scale.size != shape_of(x)[axis]:
        raise ValueError(f"scales of shape {scale.shape} do not fit axis {node.attrs.get('axis', 1)}")
    return x, constant(scale), constant(zero), axis


def softmax(node: Node) -> Expr:
    """Softmax; before opset 13 it works on all axes from ``axis`` on."""
    x = node.inputs[0]
    shape = shape_of(x)
    if node.opset >= 13:
        return relax.op.nn.softmax(x, int(node.attrs.get("axis", -1)) % len(shape))
    axis = int(node.attrs.get("axis", 1)) % len(shape)
    if all(extent == 1 for extent in shape[axis + 1 :]):
        return relax.op.nn.softmax(x, axis)
    flat = reshape_to(x, (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))))
    return relax.op.reshape(relax.op.nn.softmax(flat, 1), shape)


def prelu(node: Node) -> Expr:
    """PRelu: leaky relu with one slope, prelu with one a channel, else ``max(x, 0) + slope * min(x, 0)``."""
    x, slope = node.inputs[0], node.inputs[1]
    value = value_of(slope)
    if value is not None and value.size == 1:
        return relax.op.nn.leakyrelu(x, float(value.reshape(())))
    axis = _slope_axis(shape_of(x), shape_of(slope))
    flat = edit_weight(slope, node.lookup, lambda s: s.reshape(-1), dict.fromkeys(range(8), 0))
    if axis is not None and flat is not None:
        return relax.op.nn.prelu(x, flat, axis=axis)
    zero = constant(np.zeros((), dtype_of(x)))
    negative = relax.op.multiply(relax.op.minimum(x, zero), slope)
    return relax.op.add(relax.op.nn.relu(x), negative)


def _slope_axis(shape: Sequence[int], slope: Sequence[int]) -> int | None:
    """The axis of ``shape`` that slopes lie along: the channels of an image, else the last one."""
    spread = [len(shape) - len(slope) + i for i, extent in enumerate(slope) if extent != 1]
    channels = 1 if len(shape) == 4 else len(shape) - 1
    whole = spread == [channels] and slope[spread[0] - len(shape)] == shape[channels]
    return channels if whole else None


def variadic(op: Callable[[Expr, Expr], Expr]) -> Callable[[Node], Expr]:
    """Sum, Max, Min of any number of tensors."""

    def convert(node: Node) -> Expr:
        result, *rest = node.inputs
        for other in rest:
            result = op(result, other)
        return result

    return convert


def reduce_mean(node: Node) -> Expr:
    """ReduceMean over constant axes."""
    x = node.inputs[0]
    axes = node.ints(1, "axes")
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return x
    rank = len(shape_of(x))
    normalized = sorted(axis % rank for axis in axes) if axes else list(range(rank))
    return relax.op.mean(x, normalized, keepdims=bool(node.attrs.get("keepdims", 1)))


def global_pool(op: Callable[..., Expr]) -> Callable[[Node], Expr]:
    """GlobalAveragePool, GlobalMaxPool: a reduction over all but the first two axes."""

    def convert(node: Node) -> Expr:
        x = node.inputs[0]
        return op(x, list(range(2, len(shape_of(x)))), keepdims=True)

    return convert


def same(node: Node) -> Expr:
    """Identity, Dropout outside training."""
    if node.used > 1:
        raise ValueError("its mask is used; export the model for inference")
    return node.inputs[0]


def einsum(node: Node) -> Expr:
    """Einsum; ``EinsumProducts`` makes a matrix product of it."""
    return relax.op.einsum(tuple(node.inputs), node.text("equation", ""))


OPERATORS: dict[str, Callable[[Node], Expr]] = {
    "Einsum": einsum,
    "Clip": clip,
    "Relu": lambda node: relax.op.nn.relu(node.inputs[0]),
    "Gemm": gemm,
    "MatMul": lambda node: relax.op.matmul(node.inputs[0], node.inputs[1]),
    "BatchNormalization": batch_norm,
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "Softmax": softmax,
    "PRelu": prelu,
    "Sum": variadic(relax.op.add),
    "Max": variadic(relax.op.maximum),
    "Min": variadic(relax.op.minimum),
    "ReduceMean": reduce_mean,
    "GlobalAveragePool": global_pool(relax.op.mean),
    "GlobalMaxPool": global_pool(relax.op.max),
    "Identity": same,
    "Dropout": same,
}
