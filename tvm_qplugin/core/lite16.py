"""LiteRT's operators on one int16 tensor as tables of 65536 results, by code + 32768. Zero points are 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tvm_qplugin.core import interpolated
from tvm_qplugin.core.fixed_point import multiply, quantize_multiplier
from tvm_qplugin.core.qparams import Array, QuantParams, clamp_bounds

CODES = np.arange(-32768, 32768, dtype="int64")


def requantized(source: QuantParams, target: QuantParams) -> Array:
    """QUANTIZE between int16 grids."""
    return _codes(multiply(CODES, quantize_multiplier(float(source.scale) / float(target.scale))))


def logistic(source: QuantParams, _target: QuantParams) -> Array:
    """LOGISTIC; the output is on the scale 2 ** -15."""
    return _codes(interpolated.logistic(CODES, float(source.scale)))


def tanh(source: QuantParams, _target: QuantParams) -> Array:
    """TANH; the output is on the scale 2 ** -15."""
    return _codes(interpolated.tanh(CODES, float(source.scale)))


def clipped(low: float | None, high: float | None, source: QuantParams, target: QuantParams) -> Array:
    """RELU and RELU6 between grids: rescaled by a float32 ratio, then clamped to the bounds' codes."""
    lo, hi = clamp_bounds(target, low, high, builtin=True)
    return np.clip(multiply(CODES, _ratio(source, target)), lo, hi).astype("int16")


def leaky_relu(alpha: float, source: QuantParams, target: QuantParams) -> Array:
    """LEAKY_RELU: one multiplier a sign, both ratios in float32."""
    upper = multiply(CODES, _ratio(source, target))
    slope = np.float32(source.scale) * np.float32(alpha) / np.float32(target.scale)
    return _codes(np.where(CODES < 0, multiply(CODES, quantize_multiplier(float(slope))), upper))


def smooth(function: Callable[[Array], Array], source: QuantParams, target: QuantParams) -> Array:
    """EXP: interpolated, in float32. ``function`` takes and gives float64."""
    scale = np.float32(source.scale)
    with np.errstate(over="ignore"):
        table = interpolated.interpolation_table(
            function, float(scale * -32768), float(scale * 32767), float(target.scale)
        )
    return _codes(interpolated.interpolate(CODES, table))


def _ratio(source: QuantParams, target: QuantParams) -> tuple[int, int]:
    return quantize_multiplier(float(np.float32(source.scale) / np.float32(target.scale)))


def _codes(values: Array) -> Array:
    return np.clip(values, -32768, 32767).astype("int16")
