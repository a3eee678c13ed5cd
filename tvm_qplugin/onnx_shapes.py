"""Converters of ONNX operators that only move data: reshape, slice, gather, split, pad, concat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.onnx_ops import Node, reshape_to
from tvm_qplugin.passes.rebuild import constant, dtype_of, shape_of

Expr = Any


def reshape(node: Node) -> Expr:
    """Reshape with 0 (copy) and -1 (infer) resolved."""
    x, target = node.inputs[0], node.ints(1, "shape")
    shape = shape_of(x)
    if target is None:
        raise ValueError("it has no shape")
    if not node.attrs.get("allowzero", 0):
        target = [shape[i] if t == 0 and i < len(shape) else t for i, t in enumerate(target)]
    known = int(np.prod([t for t in target if t != -1]))
    total = int(np.prod(shape))
    if target.count(-1) == 1 and known > 0 and total % known == 0:
        target = [total // known if t == -1 else t for t in target]
    if any(t <= 0 for t in target) or int(np.prod(target)) != total:
        raise ValueError(f"{shape} cannot become {target}")
    return reshape_to(x, target)


def flatten(node: Node) -> Expr:
    """Flatten to a matrix."""
    x = node.inputs[0]
    shape = shape_of(x)
    axis = int(node.attrs.get("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    return reshape_to(x, (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))))


def squeeze(node: Node) -> Expr:
    """Squeeze as a reshape."""
    x = node.inputs[0]
    shape, axes = shape_of(x), node.ints(1, "axes")
    drop = {_axis(a, len(shape)) for a in axes} if axes else {i for i, s in enumerate(shape) if s == 1}
    if any(shape[a] != 1 for a in drop):
        raise ValueError(f"axes {sorted(drop)} of {shape} are not all 1")
    return reshape_to(x, [s for i, s in enumerate(shape) if i not in drop])


def unsqueeze(node: Node) -> Expr:
    """Unsqueeze as a reshape."""
    x, axes = node.inputs[0], node.ints(1, "axes")
    if not axes:
        raise ValueError("it has no axes")
    shape = list(shape_of(x))
    rank = len(shape) + len(axes)
    for axis in sorted(_axis(a, rank) for a in axes):
        shape.insert(axis, 1)
    return reshape_to(x, shape)


def transpose(node: Node) -> Expr:
    """Transpose; the identity vanishes."""
    x = node.inputs[0]
    rank = len(shape_of(x))
    perm = [int(p) for p in node.attrs.get("perm", range(rank)[::-1])]
    if sorted(perm) != list(range(rank)):
        raise ValueError(f"perm {perm} does not fit a tensor of rank {rank}")
    return x if perm == sorted(perm) else relax.op.permute_dims(x, perm)


def slice_(node: Node) -> Expr:
    """Slice with constant bounds; steps backwards become take."""
    x = node.inputs[0]
    starts, ends = node.ints(1, "starts"), node.ints(2, "ends")
    if starts is None or ends is None:
        raise ValueError("it has no starts or ends")
    axes = node.ints(3, "axes") or list(range(len(starts)))
    steps = node.ints(4, "steps") or [1] * len(starts)
    shape = shape_of(x)
    picks = {
        _axis(a, len(shape)): range(*slice(b, _no_wrap(e, s), s).indices(shape[_axis(a, len(shape))]))
        for a, b, e, s in zip(axes, starts, ends, steps, strict=True)
    }
    if any(len(pick) == 0 for pick in picks.values()):
        raise ValueError(f"slicing {shape} from {starts} to {ends} leaves nothing")
    for axis in [a for a, pick in picks.items() if pick.step < 0]:
        x = relax.op.take(x, constant(np.array(picks.pop(axis), "int64")), axis, mode="wrap")
    kept = {a: pick for a, pick in picks.items() if len(pick) != shape[a]}
    return _strided(x, kept) if kept else x


def _no_wrap(end: int, step: int) -> int | None:
    return None if step < 0 and end < -(2**31) else end


def _strided(x: Expr, picks: dict[int, range]) -> Expr:
    axes = sorted(picks)
    return relax.op.strided_slice(
        x,
        axes,
        [picks[a].start for a in axes],
        [picks[a][-1] + 1 for a in axes],
        [picks[a].step for a in axes],
    )


def gather(node: Node) -> Expr:
    """Gather: a constant index or an even run of them becomes a slice."""
    x, indices = node.inputs[0], node.inputs[1]
    shape = shape_of(x)
    axis = _axis(int(node.attrs.get("axis", 0)), len(shape))
    try:
        value = node.array(1)
    except ValueError:
        return relax.op.take(x, indices, axis, mode="wrap")
    assert value is not None
    if not ((-shape[axis] <= value) & (value < shape[axis])).all():
        raise ValueError(f"indices {value.reshape(-1)[:4]} are outside axis {axis} of {shape}")
    value = value % shape[axis]
    target = (*shape[:axis], *value.shape, *shape[axis + 1 :])
    run = _run(value.reshape(-1))
    if run is None:
        return relax.op.take(x, constant(value.astype("int64")), axis, mode="wrap")
    if len(run) == shape[axis]:
        return reshape_to(x, target)
    picked = _strided(x, {axis: run})
    return picked if value.ndim == 1 else relax.op.reshape(picked, target)


def _run(indices: Array) -> range | None:
    """The indices as a rising range, None if they are none."""
    if indices.size == 0:
        raise ValueError("it has no indices")
    step = int(indices[1] - indices[0]) if indices.size > 1 else 1
    run = range(int(indices[0]), int(indices[-1]) + 1, max(step, 1))
    return run if list(run) == indices.tolist() else None


def split(node: Node) -> Expr:
    """Split into given sizes or equal parts."""
    x = node.inputs[0]
    axis = _axis(int(node.attrs.get("axis", 0)), len(shape_of(x)))
    extent = shape_of(x)[axis]
    sizes = node.ints(1, "split")
    if sizes is None:
        part = -(-extent // node.outputs)
        sizes = [min(part, extent - i * part) for i in range(node.outputs)]
    if sum(sizes) != extent or any(s <= 0 for s in sizes) or len(sizes) != node.outputs:
        raise ValueError(f"axis {axis} of {shape_of(x)} cannot be split into {sizes}")
    if len(sizes) == 1:
        return x
    return relax.op.split(x, [int(i) for i in np.cumsum(sizes[:-1])], axis)


def pad(node: Node) -> Expr:
    """Pad; negative pads are slices."""
    x, pads = node.inputs[0], node.ints(1, "pads")
    shape = shape_of(x)
    rank = len(shape)
    axes = node.ints(3, "axes") if node.opset >= 18 else None
    widths = _widths(pads, [_axis(a, rank) for a in axes] if axes else list(range(rank)), rank)
    value = node.array(2, "value")
    fill = 0.0 if value is None or value.size == 0 else float(value.reshape(-1)[0])
    cut = {a: range(max(-b, 0), shape[a] - max(-e, 0)) for a, (b, e) in enumerate(widths) if b < 0 or e < 0}
    x = _strided(x, cut) if cut else x
    grow = [max(w, 0) for pair in widths for w in pair]
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode = node.text("mode", "constant")
    if mode not in modes:
        raise ValueError(f"mode {mode!r}: expected one of {', '.join(modes)}")
    return relax.op.nn.pad(x, grow, modes[mode], fill) if any(grow) else x


def _widths(pads: Sequence[int] | None, axes: Sequence[int], rank: int) -> list[tuple[int, int]]:
    if pads is None or len(pads) != 2 * len(axes) or any(abs(p) >= 2**16 for p in pads):
        raise ValueError(f"pads {pads}: expected {2 * len(axes)} numbers")
    widths = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        widths[axis] = (pads[i], pads[i + len(axes)])
    return widths


def concat(node: Node) -> Expr:
    """Concat; of one tensor it is nothing."""
    if len(node.inputs) == 1:
        return node.inputs[0]
    return relax.op.concat(list(node.inputs), _axis(int(node.attrs["axis"]), len(shape_of(node.inputs[0]))))


def expand(node: Node) -> Expr:
    """Expand to a constant shape."""
    x, target = node.inputs[0], node.ints(1, "shape")
    shape = np.broadcast_shapes(shape_of(x), tuple(target or ()))
    if shape == shape_of(x):
        return x
    if int(np.prod(shape, dtype="float64")) >= 2**31:
        raise ValueError(f"expanding to {shape} takes too much memory")
    return relax.op.broadcast_to(x, shape)


def tile(node: Node) -> Expr:
    """Copies side by side, as many along each axis as a constant says."""
    x, repeats = node.inputs[0], node.ints(1, "repeats")
    if repeats is None or len(repeats) != len(shape_of(x)) or min(repeats, default=1) < 1:
        raise ValueError(f"repeats {repeats} do not fit {shape_of(x)}")
    return x if set(repeats) <= {1} else relax.op.tile(x, repeats)


def gather_elements(node: Node) -> Expr:
    """One element along an axis for each number; negative numbers count from the end."""
    x, index = node.inputs[0], node.inputs[1]
    axis = _axis(int(node.attrs.get("axis", 0)), len(shape_of(x)))
    zero, size = (constant(np.array(n, dtype_of(index))) for n in (0, shape_of(x)[axis]))
    place = relax.op.where(relax.op.less(index, zero), relax.op.add(index, size), index)
    return relax.op.gather_elements(x, place, axis)


def cast(node: Node) -> Expr:
    """Cast; to the type it has already it is nothing."""
    from onnx.helper import tensor_dtype_to_np_dtype

    target = tensor_dtype_to_np_dtype(int(node.attrs["to"])).name
    x = node.inputs[0]
    return x if dtype_of(x) == target else relax.op.astype(x, target)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} does not fit a tensor of rank {rank}")
    return axis % rank


SHAPES: dict[str, Callable[[Node], Expr]] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Slice": slice_,
    "Gather": gather,
    "Split": split,
    "Pad": pad,
    "Concat": concat,
    "Expand": expand,
    "Tile": tile,
    "GatherElements": gather_elements,
    "Cast": cast,
}
