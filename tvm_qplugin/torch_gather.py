"""Converters of operators of torch that pick elements by numbers: indexing, tables, bags of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.rebuild import constant, dtype_of, shape_of, value_of
from tvm_qplugin.torch_ops import Call

Expr = Any
BAGS: dict[int, Callable[..., Expr]] = {0: relax.op.sum, 1: relax.op.mean, 2: relax.op.max}
"""What becomes of the rows of a bag, by torch's number of the mode."""


def embedding(call: Call) -> Expr:
    """Rows of a table; a negative index, which torch refuses, counts from the end."""
    return relax.op.take(call["weight"], call["indices"], 0, mode="wrap")


def embedding_bag(call: Call) -> Expr:
    """Sum, mean or maximum of rows; all bags have the same number of them."""
    indices, offsets = call["indices"], call["offsets"]
    if call["per_sample_weights"] is not None or call["padding_idx"] != -1:
        raise ValueError("weights of samples and padding_idx are not supported; use nn.Embedding and a sum")
    count, size = _bags(value_of(offsets), shape_of(indices)[0], bool(call["include_last_offset"]))
    rows = relax.op.take(call["weight"], relax.op.reshape(indices, (count, size)), 0, mode="wrap")
    return relax.Tuple([BAGS[int(call["mode"])](call.bind(rows, "rows"), 1)])


def _bags(offsets: Array | None, total: int, with_end: bool) -> tuple[int, int]:
    """How many bags there are, and of how many rows."""
    if offsets is None:
        raise ValueError("its offsets are computed; give a matrix of indices, one row for each bag")
    starts = offsets[:-1] if with_end else offsets
    sizes = set(np.diff([*starts, total]).tolist())
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(f"its bags have {sorted(sizes)} rows; only bags of one size are supported")
    return len(starts), sizes.pop()


def index(call: Call) -> Expr:
    """``x[:, i, j]``: tensors of numbers for axes in a row, as one number for all these axes."""
    x, given = call["self"], call["indices"]
    axes = [axis for axis, used in enumerate(given) if used is not None]
    first, last = axes[0], axes[-1] + 1
    if len(axes) != last - first:
        raise ValueError(f"it is indexed along the axes {axes}, which do not follow each other")
    if any(dtype_of(given[axis]) == "bool" for axis in axes):
        raise ValueError("it picks elements by a mask, so that its shape is not known; use torch.where")
    shape = shape_of(x)
    if len(axes) == 1 and value_of(given[first]) is None:
        return relax.op.take(x, given[first], first, mode="wrap")
    flat: Expr = None
    for axis in axes:
        place = _from_front(call, given[axis], shape[axis])
        flat = place if flat is None else _joined(call, flat, place, shape[axis])
    if len(axes) > 1:
        joined = int(np.prod(shape[first:last]))
        x = call.bind(relax.op.reshape(x, (*shape[:first], joined, *shape[last:])), "flat")
    return relax.op.take(x, flat, first, mode="wrap")


def _from_front(call: Call, index: Expr, extent: int) -> Expr:
    """Numbers of which some count from the end."""
    value = value_of(index)
    if value is not None:
        return constant(value % extent)
    size = constant(np.array(extent, dtype_of(index)))
    negative = call.bind(relax.op.less(index, constant(np.array(0, dtype_of(index)))), "negative")
    return call.bind(relax.op.where(negative, call.bind(relax.op.add(index, size), "turned"), index), "place")


def _joined(call: Call, outer: Expr, inner: Expr, extent: int) -> Expr:
    values = value_of(outer), value_of(inner)
    if values[0] is not None and values[1] is not None:
        return constant(values[0] * extent + values[1])
    scaled = call.bind(relax.op.multiply(outer, constant(np.array(extent, dtype_of(outer)))), "scaled")
    return call.bind(relax.op.add(scaled, inner), "joined")


GATHER: dict[str, Callable[[Call], Expr]] = {
    "embedding.default": embedding,
    "_embedding_bag.default": embedding_bag,
    "_embedding_bag_forward_only.default": embedding_bag,
    "index.Tensor": index,
}
