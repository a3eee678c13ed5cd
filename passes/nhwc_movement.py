"""How operators that move data, reduce, or end an image are said in NHWC. See ``nhwc_rules``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.channel_select import selected_channels
from tvm_qplugin.passes.rebuild import edit_weight, op_name, shape_of, with_args

if TYPE_CHECKING:
    from tvm_qplugin.passes.to_nhwc import Layouts

Expr = Any
Var = Any
MOVED = {0: 0, 1: 3, 2: 1, 3: 2}
POSITION = (0, 2, 3, 1)


def moved(axis: Any, rank: int = 4) -> int:
    """Where an NCHW axis stands in NHWC."""
    return MOVED[int(axis) % rank]


def concat(lay: Layouts, var: Var, call: Expr) -> bool:
    """Concatenation, if one part is there in NHWC."""
    fields = list(call.args[0].fields) if isinstance(call.args[0], relax.Tuple) else []
    if not any(lay.is_nhwc(field) for field in fields):
        return False
    parts = [lay.nhwc(field) for field in fields]
    lay.nhwc_of[var] = lay.emit(relax.op.concat(parts, moved(call.attrs.axis)), var.name)
    return True


def split(lay: Layouts, var: Var, call: Expr) -> bool:
    """Split; its parts are taken by ``item``."""
    if not lay.is_nhwc(call.args[0]):
        return False
    at = call.attrs.indices_or_sections
    sections = [int(i) for i in at] if hasattr(at, "__len__") else int(at)
    out = relax.op.split(lay.nhwc(call.args[0]), sections, moved(call.attrs.axis))
    lay.nhwc_of[var] = lay.emit(out, var.name)
    return True


def item(lay: Layouts, var: Var, value: Expr) -> bool:
    """A part of a tuple, in the layout of the tuple."""
    if value.tuple_value not in lay.nhwc_of:
        return False
    lay.nhwc_of[var] = lay.emit(relax.TupleGetItem(lay.nhwc_of[value.tuple_value], value.index), var.name)
    return True


def pad(lay: Layouts, var: Var, call: Expr) -> bool:
    """Padding, the pairs in the new order."""
    if not lay.is_nhwc(call.args[0]):
        return False
    a = call.attrs
    widths = [int(w) for axis in POSITION for w in a.pad_width[2 * axis : 2 * axis + 2]]
    out = relax.op.nn.pad(lay.nhwc(call.args[0]), widths, a.pad_mode, float(a.pad_value))
    lay.nhwc_of[var] = lay.emit(out, var.name)
    return True


def strided_slice(lay: Layouts, var: Var, call: Expr) -> bool:
    """Slices, the axes renumbered."""
    if not lay.is_nhwc(call.args[0]):
        return False
    axes = [moved(getattr(a, "value", a)) for a in call.args[1].fields]
    args = [lay.nhwc(call.args[0]), relax.Tuple([relax.prim_value(a) for a in axes]), *call.args[2:]]
    lay.nhwc_of[var] = lay.emit(with_args(call, args), var.name)
    return True


def take(lay: Layouts, var: Var, call: Expr) -> bool:
    """A constant vector of indices along one axis."""
    x, indices = call.args
    if not lay.is_nhwc(x) or call.attrs.axis is None or len(shape_of(indices)) != 1:
        return False
    out = relax.op.take(lay.nhwc(x), lay.mapped(indices), moved(call.attrs.axis), call.attrs.mode)
    lay.nhwc_of[var] = lay.emit(out, var.name)
    return True


def reduce(lay: Layouts, var: Var, call: Expr) -> bool:
    """Mean, sum, maximum, minimum over axes."""
    x = call.args[0]
    if not lay.is_nhwc(x):
        return False
    axes = range(4) if call.attrs.axis is None else call.attrs.axis
    target = sorted(moved(a) for a in axes)
    rest = [p for p in POSITION if moved(p) not in target]
    keep = bool(call.attrs.keepdims)
    if not keep and rest != sorted(rest):
        return False
    op = getattr(relax.op, op_name(call))
    out = lay.emit(op(lay.nhwc(x), target, keepdims=keep), var.name)
    (lay.nhwc_of if keep else lay.native_of)[var] = out
    return True


def permute_dims(lay: Layouts, var: Var, call: Expr) -> bool:
    """Transpositions cancel against the layout: often nothing remains."""
    x = call.args[0]
    rank = len(shape_of(x))
    axes = [int(a) for a in call.attrs.axes] if call.attrs.axes is not None else list(range(rank))[::-1]
    if x in lay.nhwc_of:
        lay.native_of[var] = _permuted(lay, var, lay.nhwc(x), [moved(a) for a in axes])
        return True
    if rank == 4 and axes == [0, 3, 1, 2]:
        lay.nhwc_of[var] = lay.native(x)
        return True
    producer: Expr = lay.defined.get(lay.native(x))
    if op_name(producer) != "permute_dims":
        return False
    lay.native_of[var] = _permuted(lay, var, producer.args[0], [int(producer.attrs.axes[a]) for a in axes])
    return True


def _permuted(lay: Layouts, var: Var, x: Expr, axes: Sequence[int]) -> Expr:
    return x if list(axes) == sorted(axes) else lay.emit(relax.op.permute_dims(x, list(axes)), var.name)


def reshape(lay: Layouts, var: Var, call: Expr) -> bool:
    """Flatten without transposing; shuffles of channels as slices."""
    x, target = call.args[0], shape_of(var)
    if lay.is_nhwc(x):
        n, c, h, w = shape_of(x)
        out = relax.op.reshape(lay.nhwc(x), target)
        if c == 1 or h * w == 1:
            lay.native_of[var] = lay.emit(out, var.name)
            return True
        if target == (n, c * h * w):
            lay.flat_of[var] = lay.emit(out, var.name)
            return True
    picked = selected_channels(var, lay.bound, lay.nhwc_of) if len(target) == 4 else None
    if picked is None:
        return False
    source, channels = picked
    lay.nhwc_of[var] = lay.emit(channels(lay.nhwc(source)), var.name)
    return True


def matmul(lay: Layouts, var: Var, call: Expr) -> bool:
    """A dense layer on a flattened NHWC tensor: its rows in the order of NHWC."""
    x, weight = call.args
    if not isinstance(x, relax.Var) or x not in lay.flat_of or len(shape_of(weight)) != 2:
        return False
    native = lay.native(weight) if isinstance(weight, relax.Var) else weight
    _, c, h, w = shape_of(lay.flat_source(x)[0])

    def rows(value: Array) -> Array:
        return value.reshape(c, h, w, -1).transpose(1, 2, 0, 3).reshape(value.shape)

    bound: Expr = lay.defined.get(native) if isinstance(native, relax.Var) else native
    if op_name(bound) == "dequantize" and shape_of(bound.args[1]) and int(bound.attrs.axis) % 2 == 0:
        return False
    edited = edit_weight(native, lay.defined.get, rows, {1: 1})
    if edited is None:
        return False
    lay.native_of[var] = lay.emit(relax.op.matmul(lay.flat_of[x], edited), var.name)
    return True
