"""Convolution, integer and float: any stride, padding, dilation and group count. NHWC x OHWI."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.kernels.arith import Expr, finish
from tvm_qplugin.kernels.elementwise import qadd
from tvm_qplugin.kernels.movement import padded


def qconv2d(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Integer convolution, bias, requantization and clamp."""
    x, w, bias, factor = inputs
    acc = accumulate(p, padded(x, p["padding"], p["in_zp"]), w, out, "int32", p["in_zp"])

    def element(n: Expr, h: Expr, v: Expr, o: Expr) -> Expr:
        return finish(acc[n, h, v, o] + bias[o], factor[o], p, out.dtype)

    return te.compute(out.shape, element, name="requantize")


def qconv2d_add(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Integer convolution and the addition of another tensor of its shape."""
    *operands, other = inputs
    return qadd(p["add"], [qconv2d(p, operands, out), other], out)


def fconv2d(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """Float convolution, bias and clamp, all in the dtype of the output."""
    x, w, bias = inputs
    acc = accumulate(p, padded(x, p["padding"], 0), w, out, out.dtype, 0)

    def element(n: Expr, h: Expr, v: Expr, o: Expr) -> Expr:
        return bounded(p, acc[n, h, v, o] + bias[o].astype(out.dtype))

    return te.compute(out.shape, element, name="bias")


def bounded(p: Params, value: Expr) -> Expr:
    """``value`` clipped to ``lo`` and ``hi``, either of which may be None."""
    dtype = str(value.ty.dtype)
    if p.get("hi") is not None:
        value = tirx.min(value, tirx.const(p["hi"], dtype))
    return tirx.max(value, tirx.const(p["lo"], dtype)) if p.get("lo") is not None else value


def accumulate(
    p: Params, x: te.Tensor, w: te.Tensor, out: TensorSpec, dtype: str, zero_point: int
) -> te.Tensor:
    """Sums ``[N, OH, OW, O]`` over ``kh, kw`` and the channels of the output's group."""
    out_channels, kh, kw, per_group = (int(e) for e in w.shape)
    (sh, sw), (dh, dw) = p["strides"], p["dilation"]
    rh, rw = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")
    rc = te.reduce_axis((0, per_group), "c")
    group = out_channels // int(p["groups"])

    def element(n: Expr, h: Expr, v: Expr, o: Expr) -> Expr:
        c = rc if p["groups"] == 1 else o // group * per_group + rc
        value = x[n, h * sh + rh * dh, v * sw + rw * dw, c]
        left = value.astype(dtype)
        left = left - tirx.const(zero_point, dtype) if zero_point else left
        return te.sum(left * w[o, rh, rw, rc].astype(dtype), axis=[rh, rw, rc])

    return te.compute(out.shape, element, name="conv")
