"""How each operator is said in NHWC. A rule fills a version of ``var``, or returns False: it stays NCHW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.nhwc_movement import (
    POSITION,
    concat,
    item,
    matmul,
    moved,
    pad,
    permute_dims,
    reduce,
    reshape,
    split,
    strided_slice,
    take,
)
from tvm_qplugin.passes.rebuild import edit_weight, op_name, shape_of, value_of, with_args

if TYPE_CHECKING:
    from tvm_qplugin.passes.to_nhwc import Layouts

Expr = Any
Var = Any
Rule = Callable[["Layouts", Var, Expr], bool]


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


def prelu(lay: Layouts, var: Var, call: Expr) -> bool:
    """A slope for each channel: it follows its axis."""
    if not lay.is_nhwc(call.args[0]):
        return False
    out = relax.op.nn.prelu(lay.nhwc(call.args[0]), call.args[1], axis=moved(call.attrs.axis))
    lay.nhwc_of[var] = lay.emit(out, var.name)
    return True


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


UNARY = (
    "nn.relu nn.leakyrelu nn.gelu nn.gelu_tanh nn.silu nn.softplus clip sigmoid tanh exp log sqrt rsqrt "
    "square negative abs floor ceil round erf sin cos tan sinh cosh asin acos atan asinh acosh atanh nn.selu "
    "astype sign logical_not"
)
BINARY = "add subtract multiply divide maximum minimum power greater less greater_equal less_equal equal"
ELEMENTWISE = {"quantize", "dequantize", "nn.prelu", *UNARY.split(), *BINARY.split()}
WINDOWED = {"nn.conv2d", "nn.max_pool2d", "nn.avg_pool2d", "image.resize2d"}
RULES: dict[str, Rule] = {
    "nn.conv2d": conv2d,
    "nn.max_pool2d": pool,
    "nn.avg_pool2d": pool,
    "image.resize2d": resize2d,
    "quantize": quantization,
    "dequantize": quantization,
    "nn.prelu": prelu,
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
