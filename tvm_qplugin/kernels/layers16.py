"""int16 x int8 convolutions and dense layers: sums in int32 where they fit, biases in int64."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.kernels.arith import Expr, clamp
from tvm_qplugin.kernels.conv import accumulate
from tvm_qplugin.kernels.fixed_point import clipped, multiply_reduced, round_away
from tvm_qplugin.kernels.movement import padded


def qconv2d16(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Convolution, bias, one rounding by a factor of 15 bits, clamp. NHWC x OHWI."""
    x, w, bias, factor, shift = inputs
    acc = accumulate(p, padded(x, p["padding"], 0), w, out, _accumulator(p), 0)

    def element(n: Expr, h: Expr, v: Expr, o: Expr) -> Expr:
        total = acc[n, h, v, o].astype("int64") + bias[o]
        return clipped(multiply_reduced(total, factor[o], shift[o]), p, out.dtype)

    return te.compute(out.shape, element, name="requantize")


def qdense16(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """``x @ w.T``, bias, clamp, rounding in float64.

    The clamp comes first: it keeps the compiler from contracting the product with what follows.
    """
    x, w, bias, factor = inputs
    k, dtype = te.reduce_axis((0, int(w.shape[1])), "k"), _accumulator(p)

    def product(*i: Expr) -> Expr:
        return te.sum(x(*i[:-1], k).astype(dtype) * w[i[-1], k].astype(dtype), axis=k)

    acc = te.compute(out.shape, product, name="dense")

    def element(*i: Expr) -> Expr:
        total = acc(*i).astype("int64") + bias[i[-1]]
        lo, hi = (tirx.const(p[key] - p["out_zp"], "float64") for key in ("lo", "hi"))
        scaled = clamp(total.astype("float64") * factor[i[-1]], lo, hi)
        return clipped(round_away(scaled).astype("int32"), p, out.dtype)

    return te.compute(out.shape, element, name="requantize")


def _accumulator(p: Params) -> str:
    return "int64" if p["wide"] else "int32"
