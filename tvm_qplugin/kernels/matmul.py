"""Matrix products of two activations; those of integers as LiteRT's BATCH_MATMUL."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.kernels.arith import Expr, broadcast, clamp, f32, separate, wide
from tvm_qplugin.kernels.fixed_point import clipped, multiply, multiply_reduced


def qmatmul(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """8-bit operands with zero points; sums in int32, rounded by a multiplier of 31 bits."""

    def product(x: Expr, y: Expr) -> Expr:
        return wide(x, p["a_zp"]) * wide(y, p["b_zp"])

    acc = _sums(inputs, out, product)
    return te.compute(
        out.shape,
        lambda *i: clipped(multiply(acc(*i), p["multiplier"]), p, out.dtype),
        name="requantize",
    )


def qmatmul16(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """int16 operands; sums in int64, rounded once by a factor of 15 bits."""
    acc = _sums(inputs, out, lambda x, y: x.astype("int64") * y.astype("int64"))
    factor, shift = (tirx.const(p[key], "int32") for key in ("factor", "shift"))
    return te.compute(
        out.shape,
        lambda *i: clipped(multiply_reduced(acc(*i), factor, shift), p, out.dtype),
        name="requantize",
    )


def dmatmul(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Float operands, quantized first: ``core/dynamic.py``."""
    a, b = inputs
    steps, zero = _row_grids(a)
    inverse = _column_grids(b)

    def code(*i: Expr) -> Expr:
        bounded = clamp(tirx.nearbyint(a(*i) * steps(*i[:-1])) + zero(*i[:-1]), f32(-128), f32(127))
        return (bounded - zero(*i[:-1])).astype("int32")

    left = te.compute(a.shape, code, name="codes_a")
    scaled = te.compute(b.shape, lambda *i: tirx.nearbyint(b(*i) * inverse(*i[:-2], i[-1])), name="scaled_b")
    right = te.compute(b.shape, lambda *i: scaled(*i).astype("int32"), name="codes_b")
    acc = _sums([left, right], out, lambda x, y: x * y)

    def element(*i: Expr) -> Expr:
        row, column = broadcast(steps, i[:-1]), broadcast(inverse, [*i[:-2], i[-1]])
        return (acc(*i).astype("float32") * (f32(1) / row)) * (f32(1) / column)

    return te.compute(out.shape, element, name="real")


def _row_grids(a: te.Tensor) -> tuple[te.Tensor, te.Tensor]:
    """Codes per unit and zero point of every row, as XNNPACK finds them."""
    low, high = (_extreme(a, a.shape[:-1], True, kind) for kind in (te.min, te.max))

    def step(*i: Expr) -> Expr:
        flat = low(*i) == high(*i)
        span = tirx.Select(flat, f32(1), high(*i) - low(*i))
        return tirx.Select(flat, f32(1), f32(255) / span)

    steps = te.compute(a.shape[:-1], step, name="steps")

    def zero(*i: Expr) -> Expr:
        below, above = (separate(edge(*i) * steps(*i)) for edge in (low, high))
        nearer = (f32(-128) + below) + (f32(127) + above) > f32(0)
        found = tirx.Select(nearer, f32(-128) - below, f32(127) - above)
        return tirx.nearbyint(clamp(found, f32(-128), f32(127)))

    return steps, te.compute(a.shape[:-1], zero, name="zero")


def _column_grids(b: te.Tensor) -> te.Tensor:
    """Codes per unit of every column, zero point 0."""
    shape = [*b.shape[:-2], b.shape[-1]]
    low, high = (_extreme(b, shape, False, kind) for kind in (te.min, te.max))

    def step(*i: Expr) -> Expr:
        largest = tirx.max(high(*i), -low(*i))
        flat = largest == f32(0)
        return tirx.Select(flat, f32(1), f32(127) / tirx.Select(flat, f32(1), largest))

    return te.compute(shape, step, name="inverse")


def _extreme(x: te.Tensor, shape: Sequence[Expr], rows: bool, kind: Expr) -> te.Tensor:
    """The least or largest of 0 and every row (or column)."""
    k = te.reduce_axis((0, int(x.shape[-1 if rows else -2])), "k")

    def element(*i: Expr) -> Expr:
        return kind(x(*i, k) if rows else x(*i[:-1], k, i[-1]), axis=k)

    found = te.compute(shape, element, name="extreme")
    bound = tirx.min if kind is te.min else tirx.max
    return te.compute(shape, lambda *i: bound(found(*i), f32(0)), name="edge")


def _sums(inputs: Sequence[te.Tensor], out: TensorSpec, product: Expr) -> te.Tensor:
    """``product`` of the elements of a row of the first and a column of the second, summed."""
    a, b = inputs
    k = te.reduce_axis((0, int(a.shape[-1])), "k")

    def element(*i: Expr) -> Expr:
        x, y = broadcast(a, [*i[:-1], k]), broadcast(b, [*i[:-2], k, i[-1]])
        return te.sum(product(x, y), axis=k)

    return te.compute(out.shape, element, name="matmul")
