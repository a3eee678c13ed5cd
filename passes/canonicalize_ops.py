"""Say the same thing one way: operators that other importers spell differently."""

from __future__ import annotations

from collections.abc import Callable
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
    dtype_of,
    op_name,
    rebuild_main,
    shape_of,
    value_of,
    with_args,
)

Expr = Any
FLOAT_MAX = float(np.finfo("float32").max)
COMMUTATIVE = ("add", "multiply", "maximum", "minimum")
BINARY = (*COMMUTATIVE, "subtract", "divide", "power")


@tvm.transform.module_pass(opt_level=0, name="CanonicalizeOps")
@dataclass(frozen=True)
class CanonicalizeOps:
    """Normalise single operators.

    In: ``main``, straight-line. Out: constants on the right of commutative operators, constants of one
    element as scalars, clamps as ``clip`` or ``nn.relu``, adaptive pooling as ``mean`` or of equal windows,
    axes not negative, no identities, one reshape instead of two.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Canonical)


class _Canonical(Rebuilder):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """Apply the rule of the operator, and what holds for all binary ones."""
        if isinstance(call, relax.TupleGetItem):
            return _of_tuple(self, call)
        if op_name(call) in BINARY:
            call = _binary(call)
        rule = RULES.get(op_name(call))
        return call if rule is None else rule(self, call)


def _of_tuple(build: Rebuilder, item: Expr) -> Expr:
    if isinstance(item.tuple_value, relax.Tuple):
        return item.tuple_value.fields[item.index]
    producer: Expr = build.defined.get(item.tuple_value)
    return producer.args[0] if op_name(producer) == "nn.dropout" and item.index == 0 else item


def _binary(call: Expr) -> Expr:
    left, right = call.args
    if op_name(call) in COMMUTATIVE and value_of(left) is not None and value_of(right) is None:
        left, right = right, left
    value = value_of(right)
    if value is not None and value.size == 1 and 0 < value.ndim <= len(shape_of(left)):
        right = constant(value.reshape(()))
    return with_args(call, [left, right])


def _clamp(build: Rebuilder, call: Expr) -> Expr:
    """Maximum and minimum with a scalar, relu6: a clip; two of them: one."""
    x, low, high = _bounds(call)
    if low is None or "float" not in dtype_of(x):
        return call
    inner: Expr = build.defined.get(x)
    if inner is not None and _bounds(inner)[1] is not None and op_name(inner) in CLAMPS:
        origin, low2, high2 = _bounds(inner)
        if max(low, low2) <= min(high, high2):
            x, low, high = origin, max(low, low2), min(high, high2)
    if (low, high) == (0.0, FLOAT_MAX):
        return relax.op.nn.relu(x)
    return x if (low, high) == (-FLOAT_MAX, FLOAT_MAX) else relax.op.clip(x, low, high)


def _bounds(call: Expr) -> tuple[Expr, Any, Any]:
    kind = op_name(call)
    if kind == "nn.relu6":
        return call.args[0], 0.0, 6.0
    if kind == "nn.relu":
        return call.args[0], 0.0, FLOAT_MAX
    if kind == "clip":
        low, high = (float(getattr(b, "value", b)) for b in call.args[1:3])
        return call.args[0], max(low, -FLOAT_MAX), min(high, FLOAT_MAX)
    bound = value_of(call.args[1]) if kind in ("maximum", "minimum") else None
    if bound is None or bound.ndim:
        return call, None, None
    value = float(bound)
    return (call.args[0], value, FLOAT_MAX) if kind == "maximum" else (call.args[0], -FLOAT_MAX, value)


def _reshape(build: Rebuilder, call: Expr) -> Expr:
    x = call.args[0]
    inner: Expr = build.defined.get(x)
    if op_name(inner) == "reshape":
        x = inner.args[0]
    target = tuple(int(d) for d in call.args[1].values)
    return x if shape_of(x) == target else relax.op.reshape(x, target)


def _flatten(build: Rebuilder, call: Expr) -> Expr:
    """Expand_dims, squeeze, flatten as reshape."""
    return relax.op.reshape(call.args[0], shape_of(build.normalized(call)))


def _permute(build: Rebuilder, call: Expr) -> Expr:
    rank = len(shape_of(call.args[0]))
    axes = call.attrs.axes
    axes = list(range(rank))[::-1] if axes is None else [int(a) % rank for a in axes]
    return call.args[0] if axes == sorted(axes) else relax.op.permute_dims(call.args[0], axes)


def _astype(_build: Rebuilder, call: Expr) -> Expr:
    return call.args[0] if dtype_of(call.args[0]) == str(call.attrs.dtype) else call


def _adaptive(_build: Rebuilder, call: Expr) -> Expr:
    """A mean where one value is left, else a pool where all windows have the same size."""
    x, size = call.args[0], call.attrs.output_size
    extent = shape_of(x)[2:]
    if size is None or call.attrs.layout not in ("NCHW", "NCW"):
        return call
    size = [int(s) for s in size]
    if set(size) == {1}:
        return relax.op.mean(x, list(range(2, 2 + len(size))), keepdims=True)
    if len(size) != 2 or any(have % want for have, want in zip(extent, size, strict=True)):
        return call
    window = [have // want for have, want in zip(extent, size, strict=True)]
    return relax.op.nn.avg_pool2d(x, window, window)


def _reduce(_build: Rebuilder, call: Expr) -> Expr:
    rank = len(shape_of(call.args[0]))
    axes = range(rank) if call.attrs.axis is None else call.attrs.axis
    op = getattr(relax.op, op_name(call))
    return op(call.args[0], sorted(int(a) % rank for a in axes), keepdims=bool(call.attrs.keepdims))


def _softmax(_build: Rebuilder, call: Expr) -> Expr:
    return relax.op.nn.softmax(call.args[0], int(call.attrs.axis) % len(shape_of(call.args[0])))


def _take(_build: Rebuilder, call: Expr) -> Expr:
    """Indices counted from the end, which mode "fast" would read out of bounds."""
    value, axis = value_of(call.args[1]), call.attrs.axis
    if axis is None:
        return call
    if value is None:
        checked = str(call.attrs.mode) != "fast"
        return call if checked else relax.op.take(call.args[0], call.args[1], int(axis), mode="wrap")
    extent = shape_of(call.args[0])[int(axis)]
    return relax.op.take(call.args[0], constant(value % extent), int(axis), mode="wrap")


def _picked(x: Expr, axis: int, index: Array) -> Expr:
    return relax.op.take(x, constant(index.astype("int64")), axis, mode="wrap")


def _broadcast(build: Rebuilder, call: Expr) -> Expr:
    """Repetition along axes of one element as gathering by a constant, which has integer kernels."""
    x, target = call.args[0], shape_of(build.normalized(call))
    if dtype_of(x) != "float32" or value_of(x) is not None:
        return call
    shape = (1,) * (len(target) - len(shape_of(x))) + shape_of(x)
    out = x if shape == shape_of(x) else relax.op.reshape(x, shape)
    for axis, (have, want) in enumerate(zip(shape, target, strict=True)):
        out = out if have == want else _picked(out, axis, np.zeros(want))
    return out


def _tile(build: Rebuilder, call: Expr) -> Expr:
    """Copies side by side as gathering by a constant."""
    x, repeats = call.args[0], [int(r) for r in call.attrs.repeats]
    rank = max(len(repeats), len(shape_of(x)))
    shape = (1,) * (rank - len(shape_of(x))) + shape_of(x)
    out = x if shape == shape_of(x) else relax.op.reshape(x, shape)
    for axis, count in enumerate([1] * (rank - len(repeats)) + repeats):
        out = out if count == 1 else _picked(out, axis, np.tile(np.arange(shape[axis]), count))
    return out


def _repeat(_build: Rebuilder, call: Expr) -> Expr:
    """Every element several times in a row as gathering by a constant."""
    if call.attrs.axis is None:
        return call
    axis = int(call.attrs.axis) % len(shape_of(call.args[0]))
    return _picked(
        call.args[0], axis, np.arange(shape_of(call.args[0])[axis]).repeat(int(call.attrs.repeats))
    )


def _stack(build: Rebuilder, call: Expr) -> Expr:
    """Tensors along a new axis as a concat of reshaped ones."""
    target = shape_of(build.normalized(call))
    axis = int(call.attrs.axis or 0) % len(target)
    part = (*target[:axis], 1, *target[axis + 1 :])
    return relax.op.concat([relax.op.reshape(x, part) for x in call.args[0].fields], axis)


CLAMPS = ("maximum", "minimum", "nn.relu6", "nn.relu", "clip")
RULES: dict[str, Callable[[Rebuilder, Expr], Expr]] = {
    **{name: _clamp for name in CLAMPS},
    "reshape": _reshape,
    **{name: _flatten for name in ("expand_dims", "squeeze", "flatten")},
    "permute_dims": _permute,
    "astype": _astype,
    **{name: _adaptive for name in ("nn.adaptive_avg_pool1d", "nn.adaptive_avg_pool2d")},
    **{name: _reduce for name in ("mean", "sum", "max", "min")},
    "nn.softmax": _softmax,
    "take": _take,
    "broadcast_to": _broadcast,
    "tile": _tile,
    "repeat": _repeat,
    "stack": _stack,
}
