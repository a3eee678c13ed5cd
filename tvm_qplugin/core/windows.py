"""Sliding windows over NHWC tensors, and the exact sums of a convolution."""

from __future__ import annotations

import numpy as np

from tvm_qplugin.core.attrs import Params
from tvm_qplugin.core.qparams import Array


def windows(p: Params, x: Array, fill: int) -> Array:
    """Sliding windows ``[N, OH, OW, KH, KW, C]`` of a padded NHWC tensor."""
    (t, left, b, r), (kh, kw), (sh, sw) = p["padding"], p["pool"], p["strides"]
    dh, dw = p.get("dilation", (1, 1))
    x = np.pad(x, ((0, 0), (t, b), (left, r), (0, 0)), constant_values=fill)
    span = ((kh - 1) * dh + 1, (kw - 1) * dw + 1)
    view = np.lib.stride_tricks.sliding_window_view(x, span, axis=(1, 2))
    return np.moveaxis(view[:, ::sh, ::sw, :, ::dh, ::dw], 3, 5)


def convolve(p: Params, x: Array, w: Array) -> Array:
    """Exact sums in float64 of a zero-padded convolution, NHWC x OHWI."""
    out_channels, kh, kw, per_group = w.shape
    groups = p["groups"]
    columns = windows({**p, "pool": (kh, kw)}, x, 0)
    if per_group == 1 and out_channels % groups == 0 and groups == x.shape[3]:
        taps = w.reshape(groups, out_channels // groups, kh, kw)
        acc = np.einsum("nhwklc,cmkl->nhwcm", columns, taps, optimize=True)
        return np.asarray(acc.reshape(*acc.shape[:3], out_channels))
    n, oh, ow = columns.shape[:3]
    parts = []
    for g in range(groups):
        block = columns[..., g * per_group : (g + 1) * per_group].reshape(n * oh * ow, -1)
        rows = w[g * out_channels // groups : (g + 1) * out_channels // groups]
        parts.append((block @ rows.reshape(rows.shape[0], -1).T).reshape(n, oh, ow, -1))
    return np.concatenate(parts, 3)
