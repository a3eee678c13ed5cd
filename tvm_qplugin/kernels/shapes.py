"""The output shape of every kernel, from its parameters and the shapes of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tvm_qplugin.core.attrs import Params

Shape = tuple[int, ...]


def output_shape(name: str, params: Params, arg_shapes: Sequence[Shape]) -> Shape:
    """Physical shape of the output of kernel ``name``, halos included."""
    shapes = [tuple(int(e) for e in shape) for shape in arg_shapes]
    halos = [params.get("in_halo") or params.get("a_halo"), params.get("b_halo")]
    for i, halo in enumerate(halos[: len(shapes)]):
        shapes[i] = _grow(shapes[i], halo, -1)
    return _grow(_INFER.get(name.removesuffix("16"), _same)(params, shapes), params.get("out_halo"), 1)


def _grow(shape: Shape, halo: Sequence[int] | None, sign: int) -> Shape:
    if not halo:
        return shape
    (top, left, bottom, right), (n, h, w, c) = halo, shape
    return n, h + sign * (top + bottom), w + sign * (left + right), c


def _same(p: Params, shapes: Sequence[Shape]) -> Shape:
    return shapes[0]


def _transposed(p: Params, shapes: Sequence[Shape]) -> Shape:
    return tuple(shapes[0][a] for a in p["axes"]) if p.get("axes") else shapes[0]


def _broadcast(p: Params, shapes: Sequence[Shape]) -> Shape:
    return tuple(np.broadcast_shapes(*shapes[:2]))


def _window(p: Params, shapes: Sequence[Shape]) -> Shape:
    """``[N, OH, OW, C]`` of a convolution (kernel size from the weight) or a pool."""
    n, h, w, c = shapes[0]
    kernel = p["pool"] if "pool" in p else shapes[1][1:3]
    (t, left, b, r), (sh, sw), (dh, dw) = p["padding"], p["strides"], p.get("dilation", (1, 1))
    rows = (h + t + b - (kernel[0] - 1) * dh - 1) // sh + 1
    cols = (w + left + r - (kernel[1] - 1) * dw - 1) // sw + 1
    return n, rows, cols, c if "pool" in p else shapes[1][0]


def _dense(p: Params, shapes: Sequence[Shape]) -> Shape:
    return (*shapes[0][:-1], shapes[1][0])


def _matmul(p: Params, shapes: Sequence[Shape]) -> Shape:
    a, b = shapes[:2]
    return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


def _recurrent(p: Params, shapes: Sequence[Shape]) -> Shape:
    """``[N, T, C]``: as many features as the recurrent weights [gates, C, C] have."""
    return (*shapes[0][:2], shapes[2][2])


def _mean(p: Params, shapes: Sequence[Shape]) -> Shape:
    reduced = {axis % len(shapes[0]) for axis in p["axes"]}
    if p["keepdims"]:
        return tuple(1 if a in reduced else e for a, e in enumerate(shapes[0]))
    return tuple(e for a, e in enumerate(shapes[0]) if a not in reduced)


def _resized(p: Params, shapes: Sequence[Shape]) -> Shape:
    n, _, _, c = shapes[0]
    return n, int(p["size"][0]), int(p["size"][1]), c


def _padded(p: Params, shapes: Sequence[Shape]) -> Shape:
    before, after = p["pad_width"][::2], p["pad_width"][1::2]
    return tuple(b + e + a for b, e, a in zip(before, shapes[0], after, strict=True))


_INFER: dict[str, Callable[[Params, Sequence[Shape]], Shape]] = {
    "quantize": _transposed,
    "dequantize": _transposed,
    "qadd": _broadcast,
    "qmul": _broadcast,
    "qconv2d": _window,
    "qconv2d_add": _window,
    "fconv2d": _window,
    "qavgpool2d": _window,
    "qmaxpool2d": _window,
    "qdense": _dense,
    "fdense": _dense,
    "wdense": _dense,
    "wexpand": lambda p, shapes: (p["depth"], shapes[0][0]),
    "qextreme": _broadcast,
    "dmatmul": _matmul,
    "qmatmul": _matmul,
    "qmean": _mean,
    "qsum": _mean,
    "qreduce": _mean,
    "qlstm": _recurrent,
    "qresize2d": _resized,
    "qpad": _padded,
}
