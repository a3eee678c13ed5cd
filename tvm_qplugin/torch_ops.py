"""Own converters for operators of torch that TVM imports wrongly, not at all or without kernels for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.onnx_ops import Node, reshape_to
from tvm_qplugin.passes.rebuild import constant, edit_weight, shape_of

Expr = Any
OPSET = 18


@dataclass(frozen=True)
class Call:
    """One call of an operator of torch: what a converter sees.

    ``args`` has every argument of the operator by its name, tensors converted, defaults filled in.
    ``bind(expr, role)`` binds a tensor inside it to a variable. ``lookup``, ``emit``: see ``onnx_ops.Node``.
    """

    args: Mapping[str, Any]
    lookup: Callable[[Expr], Expr | None]
    bind: Callable[[Expr, str], Expr]
    emit: Callable[..., Expr]

    def __getitem__(self, name: str) -> Any:
        """The argument ``name``."""
        return self.args[name]

    def axis(self, name: str = "dim", tensor: str = "self") -> int:
        """An axis of the argument ``tensor``, counted from the front."""
        return int(self[name]) % len(shape_of(self[tensor]))

    def as_onnx(self, kind: str, inputs: Sequence[Expr | None], **attrs: Any) -> Node:
        """The same as a node of ONNX, for the converters of that."""
        return Node(kind, inputs, attrs, 1, 1, OPSET, self.lookup, self.emit)


def select(call: Call) -> Expr:
    """One element along an axis; TVM would read out of bounds where it is counted from the end."""
    x, axis = call["self"], call.axis()
    index = np.array(int(call["index"]) % shape_of(x)[axis], "int64")
    return relax.op.take(x, constant(index), axis)


def linear(call: Call) -> Expr:
    """Product with the turned weight, plus bias."""
    weight = call["weight"]
    turned = edit_weight(weight, call.lookup, np.transpose, {0: 1, 1: 0})
    out = relax.op.matmul(call["input"], relax.op.permute_dims(weight) if turned is None else turned)
    return out if call["bias"] is None else relax.op.add(out, call["bias"])


def scaled(op: Callable[[Expr, Expr], Expr]) -> Callable[[Call], Expr]:
    """``op(self, alpha * other)``."""

    def convert(call: Call) -> Expr:
        left, right = (_tensor(call[name], call) for name in ("self", "other"))
        alpha = call.args.get("alpha", 1)
        return op(left, right if alpha == 1 else relax.op.multiply(right, _number(alpha, right)))

    return convert


def reversed_subtract(call: Call) -> Expr:
    """``other - alpha * self``."""
    x, alpha = call["self"], call["alpha"]
    x = x if alpha == 1 else relax.op.multiply(x, _number(alpha, x))
    return relax.op.subtract(_tensor(call["other"], call), x)


def _tensor(value: Any, call: Call) -> Expr:
    """A tensor, or a number in the dtype of the tensor beside it."""
    if not isinstance(value, int | float):
        return value
    beside = next(call[name] for name in ("self", "other") if not isinstance(call[name], int | float))
    return _number(value, beside)


def _number(value: float, like: Expr) -> Expr:
    dtype = str(like.ty.dtype)
    if isinstance(value, float) and "float" not in dtype:
        raise ValueError(f"it combines {dtype} with the number {value}; convert the tensor to float32 first")
    return constant(np.array(value, dtype))


def attention(call: Call) -> Expr:
    """``softmax(query key' * scale + mask) value``, in operators that can be quantized one by one."""
    query, key, value = call["query"], call["key"], call["value"]
    if call["dropout_p"]:
        raise ValueError("dropout is not supported; export the model in eval mode")
    shape, rank = shape_of(query), len(shape_of(key))
    groups = shape[-3] // shape_of(key)[-3] if call.args.get("enable_gqa") else 1
    turned = relax.op.permute_dims(key, [*range(rank - 2), rank - 1, rank - 2])
    scale = shape[-1] ** -0.5 if call["scale"] is None else float(call["scale"])
    scores = call.bind(relax.op.matmul(_grouped(call, query, groups, "grouped"), turned), "scores")
    scores = call.bind(relax.op.multiply(scores, constant(np.array(scale, "float32"))), "scaled")
    scores = _ungrouped(call, scores, shape, groups)
    weights = call.bind(relax.op.nn.softmax(_masked(call, scores), axis=-1), "weights")
    out = relax.op.matmul(_grouped(call, weights, groups, "grouped_weights"), value)
    return out if groups == 1 else _ungrouped(call, call.bind(out, "grouped_out"), shape, groups)


def _grouped(call: Call, x: Expr, groups: int, role: str) -> Expr:
    """``[..., heads, rows, n]``: the rows of heads that share keys and values as rows of one head."""
    if groups == 1:
        return x
    *front, heads, rows, columns = shape_of(x)
    return call.bind(relax.op.reshape(x, (*front, heads // groups, groups * rows, columns)), role)


def _ungrouped(call: Call, x: Expr, shape: Sequence[int], groups: int) -> Expr:
    """``_grouped`` undone; ``shape`` is that of the query."""
    target = (*shape_of(x)[:-3], *shape[-3:-1], shape_of(x)[-1])
    return x if groups == 1 else call.bind(relax.op.reshape(x, target), "ungrouped")


def _masked(call: Call, scores: Expr) -> Expr:
    mask, least = call["attn_mask"], constant(np.array(np.finfo("float32").min, "float32"))
    if call["is_causal"]:
        mask = constant(np.tril(np.ones(shape_of(scores)[-2:], "bool")))
    if mask is None:
        return scores
    if str(mask.ty.dtype) == "bool":
        return call.bind(relax.op.where(mask, scores, least), "masked")
    return call.bind(relax.op.add(scores, mask), "masked")


def masked_fill(call: Call) -> Expr:
    """A number where a mask is set."""
    x, value = call["self"], call["value"]
    number = _number(value, x) if isinstance(value, int | float) else value
    return relax.op.where(call["mask"], number, x)


def extreme(op: Callable[..., Expr]) -> Callable[[Call], Expr]:
    """Largest or smallest elements over axes."""

    def convert(call: Call) -> Expr:
        return op(call["self"], list(call["dim"]) or None, keepdims=bool(call["keepdim"]))

    return convert


def layer_norm(call: Call) -> Expr:
    """Layer norm over the last axes, with or without weights."""
    shape = [int(s) for s in call["normalized_shape"]]
    gamma, beta = _affine(call, shape)
    return relax.op.nn.layer_norm(call["input"], gamma, beta, list(range(-len(shape), 0)), float(call["eps"]))


def group_norm(call: Call) -> Expr:
    """Group norm, with or without weights."""
    shape = shape_of(call["input"])
    gamma, beta = _affine(call, [shape[1]])
    axes = list(range(2, len(shape)))
    return relax.op.nn.group_norm(call["input"], gamma, beta, call["num_groups"], 1, axes, float(call["eps"]))


def _affine(call: Call, shape: Sequence[int]) -> tuple[Expr, Expr]:
    gamma, beta = call["weight"], call["bias"]
    return (
        constant(np.ones(shape, "float32")) if gamma is None else gamma,
        constant(np.zeros(shape, "float32")) if beta is None else beta,
    )


def variance(call: Call) -> Expr:
    """Mean of the squared differences, divided by ``correction`` fewer than there are elements."""
    x, dims, correction = call["self"], call["dim"] or None, call["correction"]
    correction = 1.0 if correction is None else float(correction)
    found = relax.op.variance(x, dims, keepdims=bool(call["keepdim"]))
    shape = shape_of(x)
    count = int(np.prod([shape[d] for d in (range(len(shape)) if dims is None else dims)]))
    if count <= correction:
        raise ValueError(f"it has {count} elements and a correction of {correction}: it would divide by zero")
    return relax.op.multiply(found, constant(np.array(count / (count - correction), "float32")))


def deviation(call: Call) -> Expr:
    """The root of ``variance``."""
    return relax.op.sqrt(variance(call))


def any_of(call: Call) -> Expr:
    """Whether an element over axes is not zero."""
    x, dims = call["self"], call.args.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    is_set = relax.op.not_equal(x, constant(np.array(0, str(x.ty.dtype)))) if _is_number(x) else x
    found = relax.op.max(relax.op.astype(is_set, "int32"), dims, keepdims=bool(call.args.get("keepdim")))
    return relax.op.astype(found, "bool")


def _is_number(x: Expr) -> bool:
    return str(x.ty.dtype) != "bool"


def extreme_at(op: Callable[..., Expr], place: Callable[..., Expr]) -> Callable[[Call], Expr]:
    """Largest or smallest elements along an axis, and where they are."""

    def convert(call: Call) -> Expr:
        x, axis, keep = call["self"], call.axis(), bool(call["keepdim"])
        return relax.Tuple([op(x, axis, keepdims=keep), place(x, axis, keepdims=keep)])

    return convert


def batch_norm(call: Call) -> Expr:
    """Batch norm with fixed statistics; its other results are empty."""
    gamma, beta = _affine(call, shape_of(call["running_mean"]))
    stats = call["running_mean"], call["running_var"]
    norm = relax.op.nn.batch_norm(
        call["input"], gamma, beta, *stats, axis=1, epsilon=float(call["eps"]), training=False
    )
    return relax.Tuple([relax.TupleGetItem(norm, 0)])


def product(call: Call) -> Expr:
    """Product of the elements along an axis."""
    return relax.op.prod(call["self"], call.axis(), keepdims=bool(call["keepdim"]))


def pixel_shuffle(call: Call) -> Expr:
    """Blocks of channels become blocks of pixels."""
    x, factor = call["self"], int(call["upscale_factor"])
    count, channels, height, width = shape_of(x)
    channels //= factor * factor
    x = relax.op.reshape(x, (count, channels, factor, factor, height, width))
    x = relax.op.permute_dims(x, [0, 1, 4, 2, 5, 3])
    return relax.op.reshape(x, (count, channels, height * factor, width * factor))


def view(call: Call) -> Expr:
    """A reshape to sizes of which one may be -1."""
    x = call["self"]
    size = [int(s) for s in call["size"]]
    known = int(np.prod([s for s in size if s != -1], dtype="int64"))
    rest = int(np.prod(shape_of(x), dtype="int64")) // max(known, 1)
    return reshape_to(x, [rest if s == -1 else s for s in size])


OPERATORS: dict[str, Callable[[Call], Expr]] = {
    "select.int": select,
    "linear.default": linear,
    **{name: scaled(relax.op.add) for name in ("add.Tensor", "add.Scalar")},
    **{name: scaled(relax.op.subtract) for name in ("sub.Tensor", "sub.Scalar")},
    **{name: reversed_subtract for name in ("rsub.Tensor", "rsub.Scalar")},
    "scaled_dot_product_attention.default": attention,
    **{name: masked_fill for name in ("masked_fill.Scalar", "masked_fill.Tensor")},
    "amax.default": extreme(relax.op.max),
    "amin.default": extreme(relax.op.min),
    "layer_norm.default": layer_norm,
    "group_norm.default": group_norm,
    "var.correction": variance,
    "std.correction": deviation,
    **{name: any_of for name in ("any.default", "any.dim", "any.dims")},
    "max.dim": extreme_at(relax.op.max, relax.op.argmax),
    "min.dim": extreme_at(relax.op.min, relax.op.argmin),
    "_native_batch_norm_legit_no_training.default": batch_norm,
    "prod.dim_int": product,
    "pixel_shuffle.default": pixel_shuffle,
    **{name: view for name in ("view.default", "reshape.default", "_unsafe_view.default")},
}
