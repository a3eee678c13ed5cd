"""Matrix products of two activations, as LiteRT's BATCH_MATMUL; dimensions in front broadcast."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.kernels.arith import Expr, broadcast, wide
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


def _sums(inputs: Sequence[te.Tensor], out: TensorSpec, product: Expr) -> te.Tensor:
    """``product`` of the elements of a row of the first and a column of the second, summed."""
    a, b = inputs
    k = te.reduce_axis((0, int(a.shape[-1])), "k")

    def element(*i: Expr) -> Expr:
        x, y = broadcast(a, [*i[:-1], k]), broadcast(b, [*i[:-2], k, i[-1]])
        return te.sum(product(x, y), axis=k)

    return te.compute(out.shape, element, name="matmul")
