"""Recognise chains of reshapes, transpositions, slices that only pick channels or spread them as pixels."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.rebuild import constant, op_name, shape_of

Expr = Any
Var = Any
# More elements than this are not followed.
LIMIT = 2**24
MOVES = ("reshape", "permute_dims", "strided_slice", "take")


def selected_channels(
    var: Var, bound: Mapping[Var, Expr], images: Container[Var]
) -> tuple[Var, Callable[[Expr], Expr]] | None:
    """The image whose channels ``var`` (4-D, NCHW) picks or spreads as pixels, and how to do that in NHWC.

    ``bound`` gives the values of variables, ``images`` the 4-D tensors where a chain may start.
    """
    chain, source = [], var
    while source in bound and op_name(bound[source]) in MOVES and (source is var or source not in images):
        chain.append(bound[source])
        source = bound[source].args[0]
    if source not in images or len(chain) < 2 or int(np.prod(shape_of(source))) > LIMIT:
        return None
    n, c, h, w = shape_of(source)
    index = np.arange(n * c * h * w, dtype="int32").reshape(n, c, h, w)
    moved = index
    for call in reversed(chain):
        moved = _apply(call, moved)
    if moved.shape[0] != n:
        return None
    if moved.shape[2:] != (h, w):
        make = _as_pixels(index, moved)
        return None if make is None else (source, make)
    channels = moved[0, :, 0, 0] // (h * w)
    return (source, lambda x: _pick(x, channels)) if (moved == index[:, channels]).all() else None


def _as_pixels(index: Array, moved: Array) -> Callable[[Expr], Expr] | None:
    """How to spread blocks of ``groups x s x t x depth`` channels as ``s x t`` pixels, if that is all."""
    n, c, h, w = index.shape
    s, t = moved.shape[2] // h, moved.shape[3] // w
    if moved.shape != (n, c // max(s * t, 1), h * s, w * t):
        return None
    for groups in (g for g in range(1, moved.shape[1] + 1) if moved.shape[1] % g == 0):
        blocks = index.reshape(n, groups, s, t, -1, h, w).transpose(0, 1, 4, 5, 2, 6, 3)
        if (blocks.reshape(moved.shape) == moved).all():
            return partial(_spread, groups=groups, s=s, t=t)
    return None


def _spread(x: Expr, groups: int, s: int, t: int) -> Expr:
    n, h, w, c = shape_of(x)
    depth = c // (groups * s * t)
    if groups == 1:
        rows = relax.op.permute_dims(relax.op.reshape(x, (n * h, w, s, t * depth)), [0, 2, 1, 3])
    elif depth == 1:
        rows = relax.op.permute_dims(relax.op.reshape(x, (n, h, w, groups, s, t)), [0, 1, 4, 2, 5, 3])
    else:
        blocks = relax.op.reshape(x, (n, h, w, groups, s, t, depth))
        rows = relax.op.permute_dims(blocks, [0, 1, 4, 2, 5, 3, 6])
    return relax.op.reshape(rows, (n, h * s, w * t, groups * depth))


def _apply(call: Expr, value: Array) -> Array:
    kind = op_name(call)
    if kind == "reshape":
        return value.reshape([int(d) for d in call.args[1].values])
    if kind == "permute_dims":
        return value.transpose([int(a) for a in call.attrs.axes] if call.attrs.axes is not None else None)
    if kind == "take":
        return np.take(value, call.args[1].value.numpy(), int(call.attrs.axis), mode="wrap")
    axes, begin, end, step = ([int(f) for f in part.fields] for part in call.args[1:5])
    cut = [slice(None)] * value.ndim
    for axis, *bounds in zip(axes, begin, end, step, strict=True):
        cut[axis] = slice(*bounds)
    return value[tuple(cut)]


def _pick(x: Expr, channels: Array) -> Expr:
    n, h, w, count = shape_of(x)
    step = int(channels[1] - channels[0]) if len(channels) > 1 else 1
    first, last = int(channels[0]), int(channels[-1])
    if step > 0 and channels.tolist() == list(range(first, last + 1, step)):
        return relax.op.strided_slice(x, [3], [first], [last + 1], [step])
    if step > 1 and count % step == 0 and np.array_equal(channels, np.arange(count).reshape(-1, step).T.flat):
        groups = relax.op.reshape(x, (n, h * w, count // step, step))
        return relax.op.reshape(relax.op.permute_dims(groups, [0, 1, 3, 2]), (n, h, w, count))
    return relax.op.take(x, constant(channels.astype("int64")), 3, mode="wrap")
