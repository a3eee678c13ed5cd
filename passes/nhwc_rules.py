"""How each operator is said in NHWC. A rule fills a version of ``var``, or returns False: it stays NCHW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.channel_select import selected_channels
from tvm_qplugin.passes.rebuild import edit_weight, op_name, shape_of, value_of, with_args

if TYPE_CHECKING:
    from tvm_qplugin.passes.to_nhwc import Layouts

Expr = Any
Var = Any
Rule = Callable[["Layouts", Var, Expr], bool]
MOVED = {0: 0, 1: 3, 2: 1, 3: 2}
POSITION = (0, 2, 3, 1)


def moved(axis: Any, rank: int = 4) -> int:
    """Where an NCHW axis stands in NHWC."""
    return MOVED[int(axis) % rank]


def conv2d(lay: Layouts, var: Var, call: Expr) -> bool:
    """Convolution, weights to OHWI."""
    a = call.attrs
    if (a.data_layout, a.kernel_layout) != ("NCHW", "OIHW"):
        return False
    x, weight = lay.nhwc(call.args[0]), lay.nhwc(call.args[1])
    out = relax.op.nn.conv2d(
        x, weight, a.strides, a.padding, a.dilation, a.groups, "NHWC", "OHWI", "NHWC", a.out_dtype
    )
    lay.nhwc_of[var] = lay.emit(out, var.name)
    return True


def pool(lay: Layouts, var: Var, call: Expr) -> bool:
    """Pooling of images."""
    a = call.attrs
    if a.layout != "NCHW":
        return False
    op = relax.op.nn.max_pool2d if op_name(call) == "nn.max_pool2d" else relax.op.nn.avg_pool2d
    out = op(
        lay.nhwc(call.args[0]),
        a.pool_size,
        a.strides,
        a.padding,
        a.dilation,
        bool(a.ceil_mode),
        bool(a.count_include_pad),
        "NHWC",
        "NHWC",
    )
    lay.nhwc_of[var] = lay.emit(out, var.name)
    return True


def resize2d(lay: Layouts, var: Var, call: Expr) -> bool:
    """Resizing of images."""
    a = call.attrs
    if a.layout != "NCHW":
        return False
    out = relax.op.image.resize2d(
        lay.nhwc(call.args[0]),
        call.args[1],
        tuple(float(r) for r in a.roi),
        "NHWC",
        a.method,
        a.coordinate_transformation_mode,
        a.rounding_method,
        float(a.cubic_alpha),
        int(a.cubic_exclude),
        float(a.extrapolation_value),
    )
    lay.nhwc_of[var] = lay.emit(out, var.name)
    return True


def unary(lay: Layouts, var: Var, call: Expr) -> bool:
    """Element by element on one tensor: in whatever layout it is there."""
    x = call.args[0]
    if lay.transposed(x):
        return _before_transpose(lay, var, lambda y, _axes: with_args(call, [y, *call.args[1:]]))
    if lay.is_nhwc(x):
        lay.nhwc_of[var] = lay.emit(with_args(call, [lay.nhwc(x), *call.args[1:]]), var.name)
    elif isinstance(x, relax.Var) and x in lay.flat_of:
        lay.flat_of[var] = lay.emit(with_args(call, [lay.flat_of[x], *call.args[1:]]), var.name)
    return var in lay.nhwc_of or var in lay.flat_of


def quantization(lay: Layouts, var: Var, call: Expr) -> bool:
    """Quantize and dequantize; a per-axis scale follows its axis."""
    if not shape_of(call.args[1]):
        return unary(lay, var, call)
    x = call.args[0]
    if not lay.is_nhwc(x):
        return False
    op = relax.op.quantize if op_name(call) == "quantize" else relax.op.dequantize
    out = op(lay.nhwc(x), *call.args[1:], axis=moved(call.attrs.axis), out_dtype=call.attrs.out_dtype)
    lay.nhwc_of[var] = lay.emit(out, var.name)
    return True


def binary(lay: Layouts, var: Var, call: Expr) -> bool:
    """Element by element on two tensors; the one that is not there in NHWC is brought there."""
    if _flat_with_scalar(lay, var, call):
        return True
    if len(shape_of(var)) != 4 or not any(lay.is_nhwc(arg) for arg in call.args):
        return False
    args = [_operand(lay, arg) for arg in call.args]
    if any(arg is None for arg in args):
        return False
    lay.nhwc_of[var] = lay.emit(with_args(call, args), var.name)
    return True


def _flat_with_scalar(lay: Layouts, var: Var, call: Expr) -> bool:
    flat = [arg for arg in call.args if isinstance(arg, relax.Var) and arg in lay.flat_of]
    rest = [arg for arg in call.args if not (isinstance(arg, relax.Var) and arg in lay.flat_of)]
    if len(flat) != 1 or any(value_of(arg) is None or np.prod(shape_of(arg)) != 1 for arg in rest):
        return False
    args = [lay.flat_of[arg] if arg in flat else edit_weight(arg, _none, _scalar, {}) for arg in call.args]
    lay.flat_of[var] = lay.emit(with_args(call, args), var.name)
    return True


def _operand(lay: Layouts, arg: Expr) -> Expr | None:
    if lay.is_nhwc(arg):
        return lay.nhwc(arg)
    rank = len(shape_of(arg))
    native = lay.native(arg) if isinstance(arg, relax.Var) else arg
    edited = edit_weight(
        native, lay.defined.get, _broadcast_nhwc, {i: _stripped(arg, i) for i in range(rank)}
    )
    if edited is not None:
        return edited
    return lay.nhwc(arg) if rank == 4 else native if rank == 0 else None


def _stripped(arg: Expr, axis: int) -> int:
    """Where an axis of a broadcast constant ends up in ``_broadcast_nhwc`` of it."""
    shape = (1,) * (4 - len(shape_of(arg))) + shape_of(arg)
    kept = np.trim_zeros([int(shape[i] != 1) for i in POSITION], "f")
    return moved(axis + 4 - len(shape_of(arg))) - (4 - len(kept))


def _broadcast_nhwc(value: Array) -> Array:
    """A constant that broadcasts against NCHW, for NHWC: leading axes of 1 dropped."""
    value = value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(POSITION)
    while value.ndim and value.shape[0] == 1:
        value = value[0]
    return value


def _scalar(value: Array) -> Array:
    return value.reshape(())


def _none(_expr: Expr) -> None:
    return None


def concat(lay: Layouts, var: Var, call: Expr) -> bool:
    """Concatenation, if one part is there in NHWC."""
    fields = list(call.args[0].fields) if isinstance(call.args[0], relax.Tuple) else []
    if not any(lay.is_nhwc(field) for field in fields):
        return False
    parts = [lay.nhwc(field) for field in fields]
    lay.nhwc_of[var] = lay.emit(relax.op.concat(parts, moved(call.attrs.axis)), var.name)
    return True


def along_axis(lay: Layouts, var: Var, call: Expr) -> bool:
    """Softmax and its like."""
    op = relax.op.nn.softmax if op_name(call) == "nn.softmax" else relax.op.nn.log_softmax
    if lay.transposed(call.args[0]):
        return _before_transpose(lay, var, lambda y, axes: op(y, axes[int(call.attrs.axis)]))
    if not lay.is_nhwc(call.args[0]):
        return False
    lay.nhwc_of[var] = lay.emit(op(lay.nhwc(call.args[0]), moved(call.attrs.axis)), var.name)
    return True


def _before_transpose(lay: Layouts, var: Var, make: Callable[[Expr, Sequence[int]], Expr]) -> bool:
    """Apply an operator to what was transposed, then transpose: two transpositions may cancel later."""
    producer = lay.defined[lay.native(lay.bound[var].args[0])]
    axes = [int(a) for a in producer.attrs.axes]
    inner = lay.emit(make(producer.args[0], axes), var.name)
    lay.native_of[var] = lay.emit(relax.op.permute_dims(inner, axes), lay.fresh(f"{var.name}_permuted"))
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


UNARY = (
    "nn.relu nn.leakyrelu nn.gelu nn.gelu_tanh nn.silu nn.softplus clip sigmoid tanh exp log sqrt rsqrt "
    "square negative abs floor ceil round erf sin cos astype sign logical_not"
)
BINARY = "add subtract multiply divide maximum minimum power greater less greater_equal less_equal equal"
ELEMENTWISE = {"quantize", "dequantize", *UNARY.split(), *BINARY.split()}
WINDOWED = {"nn.conv2d", "nn.max_pool2d", "nn.avg_pool2d", "image.resize2d"}
RULES: dict[str, Rule] = {
    "nn.conv2d": conv2d,
    "nn.max_pool2d": pool,
    "nn.avg_pool2d": pool,
    "image.resize2d": resize2d,
    "quantize": quantization,
    "dequantize": quantization,
    "concat": concat,
    "nn.softmax": along_axis,
    "nn.log_softmax": along_axis,
    "split": split,
    "TupleGetItem": item,
    "nn.pad": pad,
    "strided_slice": strided_slice,
    "take": take,
    "permute_dims": permute_dims,
    "reshape": reshape,
    "matmul": matmul,
    **{name: reduce for name in ("mean", "sum", "max", "min")},
    **{name: unary for name in UNARY.split()},
    **{name: binary for name in BINARY.split()},
}
