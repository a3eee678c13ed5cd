"""LiteRT's integer arithmetic of operators on one 8-bit tensor: rescaling, and tables of 256 results.

A table holds the output codes by input code minus the dtype's minimum. Within the scales that LiteRT's
delegate accepts the arithmetic is XNNPACK's, beyond that of the built-in kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tvm_qplugin.core.fixed_point import (
    Multiplier,
    divide_by_power,
    high_product,
    multiply,
    quantize_multiplier,
    round_away,
    saturate,
)
from tvm_qplugin.core.qparams import (
    INTEGER_RANGE,
    Array,
    QuantParams,
    clamp_bounds,
    rescale,
    rescale_multiplier,
)

LARGEST_SLOPE = 2.0**7
Multipliers = tuple[Multiplier, Multiplier]
"""Above and below 0."""


def requantized(source: QuantParams, target: QuantParams) -> Array:
    """QUANTIZE between 8-bit grids."""
    multiplier = rescale_multiplier(source.scale, target.scale)
    if multiplier is not None:
        return _codes(rescale(_distances(source), multiplier), target)
    return _codes(_rescale31(_distances(source), _ratio(source, target)), target)


def leaky_relu(alpha: float, source: QuantParams, target: QuantParams) -> Array:
    """LEAKY_RELU: one multiplier a sign."""
    distance = _distances(source)
    slope = np.float32(source.scale) / np.float32(target.scale) * np.float32(alpha)
    positive = rescale_multiplier(source.scale, target.scale)
    negative = rescale_multiplier(abs(slope), 1.0)
    if positive is None or negative is None or slope <= -LARGEST_SLOPE:
        upper = multiply(distance, _ratio32(source, target))
        slope = np.float32(source.scale) * np.float32(alpha) / np.float32(target.scale)
        lower = multiply(distance, quantize_multiplier(float(slope)))
    else:
        upper = rescale(distance, positive)
        lower = rescale(distance, negative if slope > 0 else -negative)
    return _codes(np.where(distance < 0, lower, upper), target)


def prelu_multipliers(source: QuantParams, slope: QuantParams, target: QuantParams) -> Multipliers | None:
    """PRELU's multipliers above and below 0; None from 2 ** 7 on, where 32 bits may overflow."""
    ratio = np.float32(source.scale) / np.float32(target.scale)
    sloped = np.float32(source.scale) * np.float32(slope.scale) / np.float32(target.scale)
    if max(ratio, sloped) >= LARGEST_SLOPE:
        return None
    return quantize_multiplier(float(ratio)), quantize_multiplier(float(sloped))


def clipped(low: float | None, high: float | None, source: QuantParams, target: QuantParams) -> Array:
    """RELU and RELU6 between grids: rescaled by a float32 ratio, then clamped to the bounds' codes."""
    codes = _codes(multiply(_distances(source), _ratio32(source, target)), target)
    lo, hi = clamp_bounds(target, low, high, builtin=True)
    return np.clip(codes, lo, hi).astype(target.dtype)


def hard_swish(source: QuantParams, target: QuantParams) -> Array | None:
    """HARD_SWISH in 16-bit fixed point; None where LiteRT refuses the scales (output below input / 128)."""
    fine = float(np.float32(1 / 128) * np.float32(source.scale))
    scale, scale_exponent = _multiplier16(float(np.float32(fine) / np.float32(target.scale)))
    relu, relu_exponent = _multiplier16(float(np.float32(fine) / np.float32(3 / 32768)))
    if scale_exponent > 0:
        return None
    value = _distances(source) << 7
    gate = saturate(value << (relu_exponent - 1)) if relu_exponent > 0 else value
    gate = high_product(gate, relu)
    gate = saturate(gate << 1) if relu_exponent > 0 else divide_by_power(gate, -relu_exponent)
    gate = (gate + (1 << 15)) >> 1
    product = gate * high_product(value, scale)
    high = np.sign(product) * (np.abs(product) >> 15)
    return _codes(divide_by_power(high, -scale_exponent), target)


def _ratio(source: QuantParams, target: QuantParams) -> float:
    return float(source.scale) / float(target.scale)


def _ratio32(source: QuantParams, target: QuantParams) -> Multiplier:
    """In float32, as the activations compute it; QUANTIZE has float64."""
    return quantize_multiplier(float(np.float32(source.scale) / np.float32(target.scale)))


def _rescale31(distance: Array, real: float) -> Array:
    """``distance * real`` by a multiplier of 31 bits, half up after the product and after the shift."""
    fixed, exponent = quantize_multiplier(real)
    product = ((distance << max(exponent, 0)) * fixed + (1 << 30)) >> 31
    shift = max(-exponent, 0)
    return (product + ((1 << shift) >> 1)) >> shift


def _multiplier16(real: float) -> tuple[int, int]:
    fixed, exponent = quantize_multiplier(real)
    return min((fixed + (1 << 15)) >> 16, 2**15 - 1), exponent


def float_table(function: Callable[[Array], Array], source: QuantParams, target: QuantParams) -> Array:
    """Any other function, as LiteRT fills its tables: rounded to float32 after every step, half away.

    ``function`` takes and gives float64, so that its results are correctly rounded. Undefined results
    (log of a negative number) become the nearest end of the range.
    """
    inputs = _distances(source).astype("float32") * np.float32(source.scale)
    with np.errstate(all="ignore"):
        results = np.asarray(function(inputs.astype("float64")), "float32")
        scaled = results * (np.float32(1) / np.float32(target.scale))
    lo, hi = INTEGER_RANGE[target.dtype]
    scaled = np.nan_to_num(scaled, nan=lo - hi, posinf=hi - lo, neginf=lo - hi).astype("float64")
    scaled = np.clip(scaled, lo - hi, hi - lo)
    return _codes(round_away(scaled), target)


def _distances(source: QuantParams) -> Array:
    """Every input code minus the zero point, in int64."""
    lo, hi = INTEGER_RANGE[source.dtype]
    return np.arange(lo, hi + 1, dtype="int64") - int(source.zero_point)


def _codes(distance: Array, target: QuantParams) -> Array:
    lo, hi = INTEGER_RANGE[target.dtype]
    return np.clip(distance + int(target.zero_point), lo, hi).astype(target.dtype)
