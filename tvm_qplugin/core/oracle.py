"""The oracle: every kernel of the plugin in numpy. Integer results of all targets equal these.

The arithmetic is that of the kernels that LiteRT runs by default: XNNPACK's, or LiteRT's built-in ones where
the delegate leaves an operator to them (AVERAGE_POOL_2D, SOFTMAX, nearest resizing, most tables).

A kernel function takes the kernel's parameters, its arrays and the output's dtype. Tensors are NHWC,
weights OHWI (I = channels per group), ``q`` is int8 or uint8; where the table says so, int16 as well. The
other kernels of int16 stand in ``oracle16.py``, the LSTM in ``lstm.py``. Common parameters: ``in_zp``/
``a_zp``/``b_zp``/``out_zp`` zero points, ``lo``/``hi`` the clamp of the output (a fused activation narrows
it).

| kernel | arrays | parameters beside the common ones |
|---|---|---|
| quantize (int16) | x float32 | scale; axes (optional transposition applied first) |
| dequantize (int16) | q | scale; axes (optional transposition applied after) |
| requantize | q | multiplier (integer, in 1/256) |
| qconv2d | q, weight int8, bias int32, multiplier float32 [O] | strides, padding (tlbr), dilation, groups |
| qconv2d_add | those of qconv2d, then a second summand | qconv2d's; add: qadd's, the convolution is ``a`` |
| qdense | q [..., K], weight int8 [N, K], bias int32 [N], multiplier float32 [N] | |
| qmatmul | a [.., M, K], b [.., K, N], broadcast | multiplier (31 bits, exponent), to int16 as well |
| dmatmul | a, b float32 as in qmatmul | none; see ``dynamic.matmul`` |
| qadd | a, b (broadcast) | a_mul, b_mul, shift |
| qmul | a, b (broadcast) | multiplier |
| qextreme (int16) | a, b (broadcast) on the grid of the output | largest: or the smaller of two |
| qreduce (int16) | q on the grid of the output | axes, keepdims, largest: or the smallest |
| qprelu (int16) | q [..., C], alpha int8 [C] or [1] | alpha_zp; positive, negative: (fixed, exponent) |
| qavgpool2d (int16) | q | pool, strides, padding, count_include_pad; one grid: in_zp = out_zp |
| qmaxpool2d (int16) | q | pool, strides, padding, dilation |
| qmean, qsum | q | axes, keepdims, multiplier (of a mean 1/n included: ``mean_factor``) |
| qlut (int16) | q, table [256 or 65536] indexed by q - dtype minimum | |
| qsoftmax | q, table float32 [256] | axis, out_scale |
| qresize2d (int16: nearest) | q | size, method, coordinate, rounding |
| qclamp (int16) | q | |
| qpad (int16) | q | pad_width (before, after per axis, flat), value |
| qlstm | q, weights and biases of the gates | see ``lstm.py`` |
| wexpand, wdense | see ``grouped.py`` | depth, group, bits; lo, hi |
| fconv2d, fdense | as qconv2d, qdense in float32, no multiplier | lo, hi may be null |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvm_qplugin.core import dynamic
from tvm_qplugin.core.attrs import Params
from tvm_qplugin.core.fixed_point import multiply
from tvm_qplugin.core.grouped import wdense, wexpand
from tvm_qplugin.core.lstm import qlstm
from tvm_qplugin.core.oracle16 import ORACLE16
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array, centre, mean_offset, requantize, rescale
from tvm_qplugin.core.windows import convolve, windows

Oracle = Callable[..., Array]


def quantize(p: Params, x: Array, dtype: str) -> Array:
    """``clip(rint(x * (1 / scale)) + zp)``, all in float32; ``axes`` transposes first."""
    if p.get("axes"):
        x = x.transpose(p["axes"])
    inverse = np.float32(1) / np.float32(p["scale"])
    with np.errstate(over="ignore"):
        q = np.rint(x.astype("float32") * inverse).astype("float64")
    return np.clip(q + p["out_zp"], p["lo"], p["hi"]).astype(dtype)


def dequantize(p: Params, q: Array, dtype: str = "float32") -> Array:
    """``(q - zp) * scale`` in float32; ``axes`` transposes afterwards."""
    x = (q.astype("int32") - p["in_zp"]).astype("float32") * np.float32(p["scale"])
    return x.transpose(p["axes"]) if p.get("axes") else x


def requantize_tensor(p: Params, q: Array, dtype: str) -> Array:
    """The same real numbers on another grid: fixed point with 8 fractional bits, half up."""
    codes = rescale(q.astype("int64") - p["in_zp"], p["multiplier"]) + p["out_zp"]
    return np.clip(codes, p["lo"], p["hi"]).astype(dtype)


def qconv2d(p: Params, x: Array, w: Array, bias: Array, factor: Array, dtype: str) -> Array:
    """Convolution with any stride, padding, dilation and group count."""
    acc = convolve(p, x.astype("float64") - p["in_zp"], w.astype("float64"))
    return _finish(p, acc.astype("int64") + bias, factor, dtype)


def qdense(p: Params, x: Array, w: Array, bias: Array, factor: Array, dtype: str) -> Array:
    """``x @ w.T + bias`` over the last axis of ``x``."""
    acc = (x.astype("float64") - p["in_zp"]) @ w.astype("float64").T
    return _finish(p, acc.astype("int64") + bias, factor, dtype)


def qmatmul(p: Params, a: Array, b: Array, dtype: str) -> Array:
    """Product of two activations over the last axis of ``a``, by ``fixed_point.multiply``."""
    acc = (a.astype("float64") - p["a_zp"]) @ (b.astype("float64") - p["b_zp"])
    codes = multiply(acc.astype("int64"), p["multiplier"]) + p["out_zp"]
    return np.clip(codes, p["lo"], p["hi"]).astype(dtype)


def dmatmul(p: Params, a: Array, b: Array, dtype: str = "float32") -> Array:
    """Product of two float tensors that are quantized at run time."""
    return dynamic.matmul(a, b)


def qadd(p: Params, a: Array, b: Array, dtype: str) -> Array:
    """Fixed-point addition with one rounding shift (XNNPACK); subtraction has a negative b_mul."""
    wide = (a.astype("int64") - p["a_zp"]) * p["a_mul"] + (b.astype("int64") - p["b_zp"]) * p["b_mul"]
    q = ((wide + (1 << (p["shift"] - 1))) >> p["shift"]) + p["out_zp"]
    return np.clip(q, p["lo"], p["hi"]).astype(dtype)


def qconv2d_add(p: Params, x: Array, w: Array, bias: Array, factor: Array, other: Array, dtype: str) -> Array:
    """``qadd`` of a ``qconv2d`` and another tensor of its shape."""
    return qadd(p["add"], qconv2d(p, x, w, bias, factor, dtype), other, dtype)


def qmul(p: Params, a: Array, b: Array, dtype: str) -> Array:
    """Product of two quantized tensors, requantized."""
    acc = (a.astype("int64") - p["a_zp"]) * (b.astype("int64") - p["b_zp"])
    return _finish(p, acc, p["multiplier"], dtype)


def qextreme(p: Params, a: Array, b: Array, dtype: str) -> Array:
    """The larger or the smaller of two codes."""
    found = np.maximum(a, b) if p["largest"] else np.minimum(a, b)
    return np.clip(found.astype("int64"), p["lo"], p["hi"]).astype(dtype)


def qreduce(p: Params, x: Array, dtype: str) -> Array:
    """The largest or the smallest code along ``axes``."""
    found = (np.max if p["largest"] else np.min)(x, tuple(p["axes"]), keepdims=bool(p["keepdims"]))
    return np.clip(found.astype("int64"), p["lo"], p["hi"]).astype(dtype)


def qprelu(p: Params, x: Array, alpha: Array, dtype: str) -> Array:
    """A slope for each channel below 0, by ``fixed_point.multiply``."""
    distance = x.astype("int64") - p["in_zp"]
    sloped = distance * (alpha.astype("int64") - p["alpha_zp"])
    upper, lower = multiply(distance, p["positive"]), multiply(sloped, p["negative"])
    return np.clip(np.where(distance < 0, lower, upper) + p["out_zp"], p["lo"], p["hi"]).astype(dtype)


def qavgpool2d(p: Params, x: Array, dtype: str) -> Array:
    """Average pooling of signed codes, half away from 0; n counts pads (zero points) only if asked to."""
    zero = centre(str(x.dtype))
    pads = int(p["count_include_pad"])
    total = windows(p, x.astype("int64") - zero, pads * (p["in_zp"] - zero)).sum((3, 4))
    n = windows(p, np.ones((1, *x.shape[1:3], 1), "int64"), pads).sum((3, 4))
    codes = np.sign(total) * ((np.abs(total) + n // 2) // n) + zero
    return np.clip(codes, p["lo"], p["hi"]).astype(dtype)


def qmaxpool2d(p: Params, x: Array, dtype: str) -> Array:
    """Max pooling; padding never wins."""
    found = windows(p, x, INTEGER_RANGE[str(x.dtype)][0])
    return np.clip(found.max((3, 4)), p["lo"], p["hi"]).astype(dtype)


def qmean(p: Params, x: Array, dtype: str) -> Array:
    """Mean or sum over ``axes``: ``rint(total * multiplier + offset)`` in float32, half to even."""
    raw, axes = x.astype("int64") - centre(str(x.dtype)), tuple(p["axes"])
    count = int(np.prod([x.shape[axis] for axis in axes]))
    scaled = raw.sum(axes, keepdims=bool(p["keepdims"])).astype("float32") * np.float32(p["multiplier"])
    codes = np.rint(scaled + mean_offset(p, count, str(x.dtype))).astype("float64")
    return np.clip(codes + centre(dtype), p["lo"], p["hi"]).astype(dtype)


def qlut(p: Params, x: Array, table: Array, dtype: str) -> Array:
    """Any unary function, as a table of all results."""
    return table[x.astype("int64") - INTEGER_RANGE[str(x.dtype)][0]].astype(dtype)


def qsoftmax(p: Params, x: Array, table: Array, dtype: str) -> Array:
    """Softmax by table, as LiteRT's int8 kernel: float32 sum in index order, half up.

    ``table[255 - d]`` is ``exp(-d * input scale)`` for a distance ``d`` to the maximum.
    """
    moved = np.moveaxis(x.astype("int64"), p["axis"], -1)
    e = table[255 - (moved.max(-1, keepdims=True) - moved)].astype("float32")
    total = np.zeros(e.shape[:-1], "float32")
    for i in range(e.shape[-1]):
        total = total + e[..., i]
    inverse = np.float32(1.0) / (total * np.float32(p["out_scale"]))
    q = np.floor(e * inverse[..., None] + np.float32(0.5)).astype("int64") + p["out_zp"]
    return np.moveaxis(np.clip(q, p["lo"], p["hi"]), -1, p["axis"]).astype(dtype)


def qresize2d(p: Params, x: Array, dtype: str) -> Array:
    """Nearest, or bilinear with 11-bit weights as in XNNPACK's ``s8-ibilinear``."""
    rows = resize_table(x.shape[1], p["size"][0], p)
    cols = resize_table(x.shape[2], p["size"][1], p)
    if p["method"] == "nearest":
        return x[:, rows[0]][:, :, cols[0]].astype(dtype)
    top, bottom = (_blend_columns(x[:, r].astype("int64"), cols) for r in rows[:2])
    alpha = rows[2][:, None, None].astype("int64")
    acc = (top << 11) + (bottom - top) * alpha
    return ((acc + (1 << 21)) >> 22).astype(dtype)


def resize_table(size_in: int, size_out: int, p: Params) -> tuple[Array, Array, Array]:
    """Low index, high index and 11-bit weight of the high one, per output position.

    For ``nearest`` the first array is the source index. Coordinates in float32; ``coordinate`` is
    half_pixel, pytorch_half_pixel, asymmetric or align_corners, ``rounding`` (nearest only)
    round_prefer_floor, round_prefer_ceil, floor or ceil, as in ONNX's Resize.
    """
    at = _coordinates(size_in, size_out, p["coordinate"])
    if p["method"] == "nearest":
        half = np.float32(0.5)
        index = {
            "floor": np.floor(at),
            "ceil": np.ceil(at),
            "round_prefer_floor": np.ceil(at - half),
            "round_prefer_ceil": np.floor(at + half),
        }[p["rounding"]]
        index = np.clip(index, 0, size_in - 1).astype("int32")
        return index, index, np.zeros_like(index)
    at = np.clip(at, np.float32(0), np.float32(size_in - 1))
    low = np.floor(at).astype("int32")
    high = np.minimum(low + 1, size_in - 1).astype("int32")
    return low, high, np.rint((at - low.astype("float32")) * np.float32(2048)).astype("int32")


def _coordinates(size_in: int, size_out: int, mode: str) -> Array:
    y = np.arange(size_out, dtype="float32")
    if mode == "align_corners":
        return y * np.float32((size_in - 1) / max(size_out - 1, 1))
    scale = np.float32(size_in) / np.float32(size_out)
    if mode == "asymmetric":
        return y * scale
    if mode == "pytorch_half_pixel" and size_out == 1:
        return np.zeros(1, "float32")
    return (y + np.float32(0.5)) * scale - np.float32(0.5)


def _blend_columns(x: Array, cols: tuple[Array, Array, Array]) -> Array:
    left, right = x[:, :, cols[0]], x[:, :, cols[1]]
    return np.asarray((left << 11) + (right - left) * cols[2][:, None].astype("int64"))


def qclamp(p: Params, x: Array, dtype: str) -> Array:
    """A stand-alone activation on one grid."""
    return np.clip(x.astype("int64"), p["lo"], p["hi"]).astype(dtype)


def qpad(p: Params, x: Array, dtype: str) -> Array:
    """Constant padding, usually with the zero point."""
    width = np.asarray(p["pad_width"]).reshape(-1, 2)
    return np.pad(x, [(int(a), int(b)) for a, b in width], constant_values=p["value"])


def fconv2d(p: Params, x: Array, w: Array, bias: Array, dtype: str = "float32") -> Array:
    """Convolution in floating point (computed in float64: kernels agree to rounding only)."""
    acc = convolve(p, x.astype("float64"), w.astype("float64")) + bias
    return np.clip(acc, p["lo"], p["hi"]).astype(dtype) if _bounded(p) else acc.astype(dtype)


def fdense(p: Params, x: Array, w: Array, bias: Array, dtype: str = "float32") -> Array:
    """Dense layer in floating point."""
    acc = x.astype("float64") @ w.astype("float64").T + bias
    return np.clip(acc, p["lo"], p["hi"]).astype(dtype) if _bounded(p) else acc.astype(dtype)


def _bounded(p: Params) -> bool:
    return p.get("lo") is not None or p.get("hi") is not None


def _finish(p: Params, acc: Array, factor: Any, dtype: str) -> Array:
    return requantize(acc, factor, p["out_zp"], p["lo"], p["hi"]).astype(dtype)


ORACLE: dict[str, Oracle] = {
    "quantize": quantize,
    "dequantize": dequantize,
    "requantize": requantize_tensor,
    "qconv2d": qconv2d,
    "qconv2d_add": qconv2d_add,
    "qdense": qdense,
    "qmatmul": qmatmul,
    "dmatmul": dmatmul,
    "qadd": qadd,
    "qmul": qmul,
    "qextreme": qextreme,
    "qreduce": qreduce,
    "qprelu": qprelu,
    "qavgpool2d": qavgpool2d,
    "qmaxpool2d": qmaxpool2d,
    "qmean": qmean,
    "qsum": qmean,
    "qlut": qlut,
    "qsoftmax": qsoftmax,
    "qresize2d": qresize2d,
    "qclamp": qclamp,
    "qpad": qpad,
    "qlstm": qlstm,
    "fconv2d": fconv2d,
    "fdense": fdense,
    "wexpand": wexpand,
    "wdense": wdense,
    **ORACLE16,
}
