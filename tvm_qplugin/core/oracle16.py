"""The oracle of int16x8: int16 activations with zero point 0, int8 weights, in LiteRT's fixed point.

LiteRT has no delegate for int16: its built-in and reference kernels compute, and this is their arithmetic.
The kernels take what those of ``oracle.py`` take, with these differences. A multiplier is a pair (fixed,
exponent), see ``fixed_point.py``; ``rescaling`` stands for the arrays factor int32 [O] and shift int32 [O].

| kernel | arrays | parameters beside the common ones |
|---|---|---|
| requantize16 | q of any integer dtype | multiplier |
| qconv2d16 | q, weight int8, bias int64, rescaling (``reduced_factors``) | as qconv2d; wide |
| qdense16 | q, weight int8, bias int64, multiplier float64 [N] | wide |
| qmatmul16 | a [.., M, K], b [.., K, N], broadcast | factor, shift (``reduced_factors``) |
| qadd16 | a, b (broadcast) | a_multiplier, b_multiplier, out_multiplier, subtract, vectorized |
| qmul16 | a, b (broadcast) | multiplier |
| qmean16 | q | axes, keepdims, multiplier (1/n included: ``mean_multiplier``) |
| qsum16 | q | axes, keepdims, multiplier (a float32 number) |
| qsoftmax16 | q, exponentials int16 [513], reciprocals int16 [513] (``softmax_tables``) | axis, multiplier |
| qresize2d16 | q | size, coordinate; bilinear |

``wide``: sums without bias may leave int32. ``vectorized``: that many elements in front, in the order of
memory, are rounded as LiteRT's AVX2 code does it (``vectorized_elements``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tvm_qplugin.core.attrs import Params
from tvm_qplugin.core.fixed_point import (
    Multiplier,
    mean_multiplier,
    multiply,
    multiply_reduced,
    quantize_multiplier,
    round_away,
)
from tvm_qplugin.core.interpolated import interpolate
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.windows import convolve

ADD_BITS = 15
"""By which ADD and SUB shift their operands to the left."""
SOFTMAX_RANGE = 10.0
"""SOFTMAX takes exponentials of differences down to minus this."""
MEAN_COUNT = 2**16
"""Elements whose sum is sure to fit int32, LiteRT's accumulator of means."""


def requantize16(p: Params, q: Array, dtype: str) -> Array:
    """The same real numbers on another grid."""
    codes = multiply(q.astype("int64") - p["in_zp"], p["multiplier"]) + p["out_zp"]
    return np.clip(codes, p["lo"], p["hi"]).astype(dtype)


def qconv2d16(p: Params, x: Array, w: Array, bias: Array, factor: Array, shift: Array, dtype: str) -> Array:
    """Convolution with any stride, padding, dilation and group count; a multiplier of 15 bits."""
    acc = convolve(p, x.astype("float64"), w.astype("float64")).astype("int64") + bias
    return _clipped(p, multiply_reduced(acc, factor, shift), dtype)


def qdense16(p: Params, x: Array, w: Array, bias: Array, factor: Array, dtype: str) -> Array:
    """``x @ w.T + bias`` over the last axis of ``x``, rescaled in float64, half away from zero."""
    acc = (x.astype("float64") @ w.astype("float64").T).astype("int64") + bias
    return _clipped(p, round_away(acc.astype("float64") * factor), dtype)


def qmatmul16(p: Params, a: Array, b: Array, dtype: str) -> Array:
    """Product of two activations over the last axis of ``a``; sums in int64."""
    acc = (a.astype("float64") @ b.astype("float64")).astype("int64")
    return _clipped(p, multiply_reduced(acc, p["factor"], p["shift"]), dtype)


def qadd16(p: Params, a: Array, b: Array, dtype: str) -> Array:
    """Sum or difference: both operands on twice the larger scale, with 15 bits more."""
    front = (
        np.arange(np.broadcast(a, b).size).reshape(np.broadcast_shapes(a.shape, b.shape)) < p["vectorized"]
    )

    def term(x: Array, multiplier: Multiplier) -> Array:
        fixed, exponent = multiplier
        once = multiply(x.astype("int64"), (fixed, exponent + ADD_BITS))
        return np.where(front, once, multiply(x.astype("int64") << ADD_BITS, multiplier))

    left, right = term(a, p["a_multiplier"]), term(b, p["b_multiplier"])
    return _clipped(p, multiply(left - right if p["subtract"] else left + right, p["out_multiplier"]), dtype)


def vectorized_elements(a: Sequence[int], b: Sequence[int], subtract: bool) -> int:
    """How many elements of ADD LiteRT's AVX2 code computes: whole vectors of 16, of equal shapes.

    It shifts and scales an operand with one rounding where its scalar code has two: about one result in
    100,000 differs by 1. SUB and broadcasting are scalar.
    """
    return 0 if subtract or tuple(a) != tuple(b) else int(np.prod(a)) // 16 * 16


def qmul16(p: Params, a: Array, b: Array, dtype: str) -> Array:
    """Product of two quantized tensors."""
    return _clipped(p, multiply(a.astype("int64") * b.astype("int64"), p["multiplier"]), dtype)


def qmean16(p: Params, x: Array, dtype: str) -> Array:
    """Mean over ``axes``."""
    total = x.astype("int64").sum(tuple(p["axes"]), keepdims=bool(p["keepdims"]))
    return _clipped(p, multiply(total, p["multiplier"]), dtype)


def qsum16(p: Params, x: Array, dtype: str) -> Array:
    """Sum over ``axes``, rescaled in float32, half away from zero."""
    total = x.astype("int64").sum(tuple(p["axes"]), keepdims=bool(p["keepdims"]))
    scaled = np.clip(total.astype("float32") * np.float32(p["multiplier"]), p["lo"], p["hi"])
    return _clipped(p, round_away(scaled), dtype)


def qsoftmax16(p: Params, x: Array, exponentials: Array, reciprocals: Array, dtype: str) -> Array:
    """Softmax by two interpolated tables; the sum is normalized to [1, 2)."""
    moved = np.moveaxis(x.astype("int64"), p["axis"], -1)
    distance = multiply(moved - moved.max(-1, keepdims=True), p["multiplier"])
    e = interpolate(np.clip(distance + 32767, -32768, 32767), exponentials)
    total = e.sum(-1, keepdims=True)
    bits = np.floor(np.log2(total)).astype("int64")
    normal = ((total << (30 - bits)) + (1 << 13)) >> 14
    inverse = interpolate(np.clip(normal - (1 << 15) - (1 << 16), -32768, 32767), reciprocals)
    codes = (e * inverse + (np.int64(1) << (bits - 1))) >> bits
    return np.moveaxis(_clipped(p, codes, dtype), -1, p["axis"])


def qresize2d16(p: Params, x: Array, dtype: str) -> Array:
    """Bilinear with 10-bit weights, half away from zero."""
    rows, cols = (blend_table(x.shape[axis + 1], p["size"][axis], p["coordinate"]) for axis in (0, 1))
    wide = x.astype("int64")
    weight, other = rows[2][:, None, None].astype("int64"), cols[2][:, None].astype("int64")
    upper, lower = (
        wide[:, row][:, :, cols[0]] * (1024 - other) + wide[:, row][:, :, cols[1]] * other for row in rows[:2]
    )
    total = upper * (1024 - weight) + lower * weight
    return (np.sign(total) * ((np.abs(total) + (1 << 19)) >> 20)).astype(dtype)


def blend_table(size_in: int, size_out: int, coordinate: str) -> tuple[Array, Array, Array]:
    """Low index, high index and 10-bit weight of the high one, per output position, in int32.

    ``coordinate`` is half_pixel, asymmetric or align_corners. Before the first element the weight is
    negative; both indices are 0 there.
    """
    step = (1024 * size_in + size_out // 2) // size_out
    if coordinate == "align_corners" and size_out > 1:
        step = (1024 * (size_in - 1) + (size_out - 1) // 2) // (size_out - 1)
    at = np.arange(size_out) * step + (step // 2 - 512 if coordinate == "half_pixel" else 0)
    low = np.maximum(at, 0) // 1024
    high = np.minimum(np.maximum(at + 1023, 0) // 1024, size_in - 1)
    return low.astype("int32"), high.astype("int32"), (at - 1024 * low).astype("int32")


def add_multipliers(s_a: Any, s_b: Any, s_out: Any) -> dict[str, Multiplier]:
    """The three multipliers of ADD and SUB from float32 scales."""
    twice = 2 * max(float(s_a), float(s_b))
    reals = {"a": float(s_a) / twice, "b": float(s_b) / twice, "out": twice / (float(s_out) * 2**ADD_BITS)}
    return {f"{name}_multiplier": quantize_multiplier(real) for name, real in reals.items()}


def mul_multiplier(s_a: Any, s_b: Any, s_out: Any) -> Multiplier:
    """The multiplier of MUL, in float32 as LiteRT computes it."""
    return quantize_multiplier(float(np.float32(s_a) * np.float32(s_b) / np.float32(s_out)))


def mean_of(s_in: Any, s_out: Any, count: int) -> Multiplier:
    """The multiplier of a mean of ``count`` elements."""
    return mean_multiplier(quantize_multiplier(float(s_in) / float(s_out)), count)


def softmax_multiplier(s_in: Any) -> Multiplier:
    """Of differences to the maximum, so that -65535 stands for -10."""
    return quantize_multiplier(float(s_in) / (SOFTMAX_RANGE / 65535))


def _clipped(p: Params, codes: Array, dtype: str) -> Array:
    return np.clip(codes, p["lo"], p["hi"]).astype(dtype)


ORACLE16: dict[str, Callable[..., Array]] = {
    "requantize16": requantize16,
    "qconv2d16": qconv2d16,
    "qdense16": qdense16,
    "qmatmul16": qmatmul16,
    "qadd16": qadd16,
    "qmul16": qmul16,
    "qmean16": qmean16,
    "qsum16": qsum16,
    "qsoftmax16": qsoftmax16,
    "qresize2d16": qresize2d16,
}
