"""LiteRT's arithmetic of layers with int8 weights and float inputs (dynamic range), in numpy.

Inputs are quantized to int8 with the range that they have at run time, products summed exactly in int32, the
sum returned to float32. XNNPACK computes CONV_2D and FULLY_CONNECTED, whatever the file says of
``asymmetric_quantize_inputs``; it quantizes every image on its own, and where one pixel is all that a
sum covers (dense layers, 1x1 convolutions) every row of channels. LiteRT's built-in kernel computes
DEPTHWISE_CONV_2D. Both are reproduced to the last bit as they run on x86-64 with FMA and AVX2 or AVX-512.

Weights are OHWI or [N, K], ``scale`` float32 [O] or one number, ``bias`` float32 [O]; parameters are
those of ``fconv2d`` and ``fdense`` in ``core/oracle.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvm_qplugin.core.attrs import Params
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.windows import convolve

LOW, HIGH = np.float32(-128), np.float32(127)


def conv2d(p: Params, x: Array, weight: Array, scale: Array, bias: Array) -> Array:
    """Convolution with any stride, padding, dilation and group count; float32 in, float32 out."""
    if is_depthwise(p, x.shape, weight.shape):
        return _depthwise(p, x, weight, scale, bias)
    if _is_pointwise(p, weight):
        t, left, b, r = p["padding"]
        image = np.pad(x, ((0, 0), (t, b), (left, r), (0, 0)))
        return dense(p, image, weight.reshape(weight.shape[0], -1), scale, bias)
    q, factor = quantize_rows(x)
    acc = convolve(p, q, weight.astype("float64"))
    return _clamped(p, _scaled(acc, factor[:, :, None, None], scale, bias))


def dense(p: Params, x: Array, weight: Array, scale: Array, bias: Array) -> Array:
    """``x @ weight.T + bias`` over the last axis of ``x``; every row has its own range."""
    rows = x.reshape(-1, weight.shape[1])
    q, factor = quantize_rows(rows)
    result = _scaled(q @ weight.astype("float64").T, factor, scale, bias)
    return _clamped(p, result.reshape(*x.shape[:-1], weight.shape[0]))


def matmul(a: Array, b: Array) -> Array:
    """Product of two float tensors: rows of ``a`` as in ``dense``, columns of ``b`` symmetric in 8 bits.

    LiteRT has nothing like it: its BATCH_MATMUL of two float tensors computes in float.
    """
    q, factor = quantize_rows(a.reshape(-1, a.shape[-1]))
    largest = np.abs(b.astype("float32")).max(-2, keepdims=True)
    inverse = np.where(largest == 0, np.float32(1), np.float32(127) / np.where(largest == 0, 1, largest))
    codes = np.rint(b * inverse).astype("float64")
    acc = (q.reshape(a.shape) @ codes).astype("float32")
    return (acc * factor.reshape(*a.shape[:-1], 1)) * (np.float32(1) / inverse)


def is_depthwise(p: Params, x: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether a file has DEPTHWISE_CONV_2D for it, by the shapes of input and weight."""
    return bool(weight[3] == 1 and p["groups"] == x[3] and p["groups"] > 1)


def _is_pointwise(p: Params, weight: Array) -> bool:
    return tuple(weight.shape[1:3]) == (1, 1) and p["groups"] == 1 and list(p["strides"]) == [1, 1]


def quantize_rows(x: Array) -> tuple[Array, Array]:
    """XNNPACK: codes minus zero point as float64; the step of each row (first axis), float32 [rows, 1]."""
    flat = x.astype("float32").reshape(x.shape[0], -1)
    low, high = (np.float32(0) + bound for bound in (flat.min(1).clip(max=0), flat.max(1).clip(min=0)))
    span = np.where(low == high, np.float32(1), high - low)
    steps = np.where(low == high, np.float32(1), (HIGH - LOW) / span).astype("float32")
    below, above = low * steps, high * steps
    zero = np.where((LOW + below) + (HIGH + above) > 0, LOW - below, HIGH - above)
    zero = np.rint(np.clip(zero, LOW, HIGH)).astype("float64")[:, None]
    codes = np.clip(np.rint(flat * steps[:, None]).astype("float64") + zero, LOW, HIGH)
    return (codes - zero).reshape(x.shape), (np.float32(1) / steps)[:, None]


def _scaled(acc: Array, factor: Array, scale: Array, bias: Array) -> Array:
    """``fma(float32(acc) * factor, scale, bias)``."""
    real = acc.astype("float32") * factor
    return _fma(real, np.asarray(scale, "float32"), bias.astype("float32"))


def _fma(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` of float32, rounded once: the float64 sum is rounded to odd before the last step."""
    product, c = a.astype("float64") * b.astype("float64"), c.astype("float64")
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    even = (np.ascontiguousarray(total).view("int64") & 1) == 0
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & even, odd, total).astype("float32")


def _depthwise(p: Params, x: Array, weight: Array, scale: Array, bias: Array) -> Array:
    """Channels in fours are scaled by the weight's step first, those left over by the input's."""
    q, factor = zip(*map(_quantize_image, x), strict=True)
    acc = convolve(p, np.stack(q), weight.astype("float64")).astype("float32")
    step = np.array(factor, "float32").reshape(-1, 1, 1, 1)
    scale = np.broadcast_to(np.asarray(scale, "float32"), bias.shape)
    fours = weight.shape[0] // 4 * 4
    real = np.concatenate(
        [(acc[..., :fours] * scale[:fours]) * step, (acc[..., fours:] * step) * scale[fours:]], axis=3
    )
    return _clamped(p, real + bias.astype("float32"))


def _quantize_image(x: Array) -> tuple[Array, np.float32]:
    """LiteRT's ``AsymmetricQuantizeFloats``: codes minus zero point as float64, and the step."""
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    if low == high:
        return np.zeros(x.shape), np.float32(1)
    step = float(high - low) / 255.0
    below, above = float(low) / step, float(high) / step
    nearer = 128.0 + abs(below) < 127.0 + abs(above)
    zero = np.clip(_half_away(np.float64(-128.0 - below if nearer else 127.0 - above)), -128, 127)
    inverse = np.float32(1) / np.float32(step)
    scaled = x * inverse
    codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype("float64") + zero
    return np.clip(codes, -128, 127) - zero, np.float32(step)


def _half_away(x: Any) -> Array:
    return np.asarray(np.sign(x) * np.floor(np.abs(x) + 0.5))


def _clamped(p: Params, x: Array) -> Array:
    lo, hi = p.get("lo"), p.get("hi")
    return x if lo is None and hi is None else np.clip(x, lo, hi).astype("float32")
