"""Quantizing constants: weights symmetric and narrow, biases int32 with the product of the scales."""

from __future__ import annotations

import numpy as np

from tvm_qplugin.core.qparams import INTEGER_RANGE, Array, QuantParams
from tvm_qplugin.core.spec import REDUCED, QuantSpec

_BIAS_HEADROOM = 2.0**30


def quantize_weight(
    weight: Array, spec: QuantSpec, bias: Array | None, s_in: Array
) -> tuple[Array, QuantParams]:
    """int8 weight and its parameters (TFLite: symmetric, [-127, 127], one scale per output channel).

    Within [-64, 64] where ``spec`` is reduced. A channel whose scale is so small that its bias would not fit
    int32 gets a larger one; a channel of zeros takes the largest scale of the others.
    """
    others = tuple(i for i in range(weight.ndim) if i != spec.axis)
    bound = np.abs(weight).max(axis=others if spec.axis is not None else None)
    params = spec.params(-bound, bound)
    zero = bound == 0
    scale = np.where(zero, params.scale[~zero].max() if (~zero).any() else 1.0, params.scale)
    if bias is not None:
        needed = np.abs(bias.astype("float64")) / (float(s_in) * _BIAS_HEADROOM)
        scale = np.maximum(scale, needed if spec.axis is not None else needed.max())
    params = QuantParams.of(scale, 0, spec.dtype, spec.axis)
    lo, hi = (-REDUCED, REDUCED) if spec.reduced else INTEGER_RANGE[spec.dtype]
    return np.clip(params.quantize(weight), lo + int(spec.narrow and not spec.reduced), hi), params


def quantize_bias(bias: Array, s_in: Array, weight: QuantParams) -> tuple[Array, QuantParams]:
    """int32 bias of shape [O] with scale ``s_in * s_weight`` and zero point 0."""
    scale = np.broadcast_to(np.float32(s_in) * weight.scale, bias.shape)
    q = np.rint(bias.astype("float64") / scale.astype("float64"))
    return np.clip(q, *INTEGER_RANGE["int32"]).astype("int32"), QuantParams.of(scale, 0, "int32", 0)
