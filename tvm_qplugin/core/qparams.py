"""Quantization parameters and the arithmetic of requantization: the reference every kernel must equal.

``real = (q - zero_point) * scale``; see TensorFlow Lite's 8-bit quantization specification. Rounding
is that of XNNPACK's float32 requantization: half to even.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

INTEGER_RANGE = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(2**31), 2**31 - 1),
}


@dataclass(frozen=True, eq=False)
class QuantParams:
    """Scale and zero point of one tensor; per channel when ``axis`` is given.

    ``scale`` (float32) and ``zero_point`` (int32) are scalars, or vectors along ``axis``.

    >>> QuantParams.of(0.5, 3).quantize(np.float32([-1, 0, 0.25, 100]))
    array([  1,   3,   3, 127], dtype=int8)
    """

    scale: Array
    zero_point: Array
    dtype: str = "int8"
    axis: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no kernel could compute with."""
        if self.dtype not in INTEGER_RANGE:
            raise ValueError(f"dtype {self.dtype!r}: expected one of {', '.join(INTEGER_RANGE)}")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        lo, hi = INTEGER_RANGE[self.dtype]
        if (self.zero_point < lo).any() or (self.zero_point > hi).any():
            raise ValueError(f"zero point {self.zero_point} does not fit {self.dtype}")

    @classmethod
    def of(
        cls,
        scale: npt.ArrayLike,
        zero_point: npt.ArrayLike = 0,
        dtype: str = "int8",
        axis: int | None = None,
    ) -> QuantParams:
        """Make parameters from anything that numpy understands."""
        scale = np.asarray(scale, "float32")
        zero_point = np.broadcast_to(np.asarray(zero_point, "int32"), scale.shape)
        return cls(scale, zero_point, dtype, axis)

    @classmethod
    def from_range(
        cls,
        low: npt.ArrayLike,
        high: npt.ArrayLike,
        dtype: str = "int8",
        *,
        symmetric: bool = False,
        narrow: bool = False,
        axis: int | None = None,
    ) -> QuantParams:
        """Parameters that cover ``[low, high]`` and represent 0 exactly.

        ``narrow`` leaves out the lowest code (weights: [-127, 127]). A range of zero width gets
        scale 1. Raises ValueError for a range that is not finite or upside down.
        """
        bottom, top = np.asarray(low, "float64"), np.asarray(high, "float64")
        if not (np.isfinite(bottom).all() and np.isfinite(top).all() and (bottom <= top).all()):
            raise ValueError(f"range [{bottom}, {top}] is not finite or upside down")
        bottom, top = np.minimum(bottom, 0.0), np.maximum(top, 0.0)
        qmin, qmax = INTEGER_RANGE[dtype]
        qmin += int(narrow)
        if symmetric:
            bound = np.maximum(-bottom, top)
            scale = _positive(bound / ((qmax - qmin) // 2))
            return cls.of(scale, (qmax + qmin + 1) // 2, dtype, axis)
        scale = _positive((top - bottom) / (qmax - qmin))
        zero_point = np.clip(np.rint(qmin - bottom / scale.astype("float64")), qmin, qmax)
        return cls.of(scale, zero_point, dtype, axis)

    def quantize(self, x: Array) -> Array:
        """``clip(rint(x / scale) + zero_point)`` in float32, half to even."""
        scale, zero_point = self._along(x.ndim)
        lo, hi = INTEGER_RANGE[self.dtype]
        q = np.rint(np.asarray(x, "float32") / scale)
        return np.clip(q + zero_point.astype("float64"), lo, hi).astype(self.dtype)

    def dequantize(self, q: Array) -> Array:
        """``(q - zero_point) * scale`` in float32."""
        scale, zero_point = self._along(q.ndim)
        return (q.astype("int64") - zero_point).astype("float32") * scale

    def fake_quant(self, x: Array) -> Array:
        """``dequantize(quantize(x))``: what is left of ``x`` after quantization."""
        return self.dequantize(self.quantize(x))

    def _along(self, ndim: int) -> tuple[Array, Array]:
        if self.axis is None or self.scale.ndim == 0:
            return self.scale, self.zero_point
        shape = [1] * ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)

    def same(self, other: QuantParams) -> bool:
        """Whether both describe the same integers."""
        return (
            self.dtype == other.dtype
            and self.scale.shape == other.scale.shape
            and bool((self.scale == other.scale).all())
            and bool((self.zero_point == other.zero_point).all())
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back exactly.

        Per-channel scales are packed (``pack_floats``); equal zero points are written once.
        """
        zero = self.zero_point.reshape(-1)
        equal = bool((zero == zero[0]).all())
        return {
            "scale": float(self.scale) if self.scale.ndim == 0 else pack_floats(self.scale),
            "zero_point": int(zero[0]) if equal else zero.tolist(),
            "dtype": self.dtype,
            "axis": self.axis,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> QuantParams:
        """The inverse of ``to_json``."""
        scale = data["scale"]
        values = unpack_floats(scale) if isinstance(scale, str) else scale
        return cls.of(values, data["zero_point"], data["dtype"], data["axis"])


def pack_floats(values: Array) -> str:
    """A float32 vector as text: the four byte planes, deflated, in base 85.

    >>> unpack_floats(pack_floats(np.float32([0.5, 0.25])))
    array([0.5 , 0.25], dtype=float32)
    """
    planes = np.ascontiguousarray(values, "<f4").view("uint8").reshape(-1, 4).T
    return base64.b85encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")


def unpack_floats(text: str) -> Array:
    """The inverse of ``pack_floats``; ValueError where the text is damaged."""
    try:
        planes = np.frombuffer(zlib.decompress(base64.b85decode(text)), "uint8")
    except zlib.error as error:
        raise ValueError(f"packed floats are damaged: {error}") from None
    return np.ascontiguousarray(planes.reshape(4, -1).T).view("<f4").reshape(-1).astype("float32")


def _positive(scale: Array) -> Array:
    scale = np.asarray(scale, "float32")
    smallest = np.finfo("float32").tiny
    return np.where(scale >= smallest, scale, np.float32(1.0)).astype("float32")


def multiplier(s_in: npt.ArrayLike, s_weight: npt.ArrayLike, s_out: npt.ArrayLike) -> Array:
    """``s_in * s_weight / s_out`` in float32, left to right, as XNNPACK computes it."""
    product = np.asarray(s_in, "float32") * np.asarray(s_weight, "float32")
    return np.asarray(product / np.asarray(s_out, "float32"), "float32")


def requantize(acc: Array, factor: npt.ArrayLike, zero_point: int, lo: int, hi: int) -> Array:
    """``clip(rint(float32(acc) * float32(factor)) + zero_point, lo, hi)`` as int64.

    ``acc`` is an int32 accumulator of any shape; ``factor`` a scalar or one value a channel
    (last axis). Half to even.
    """
    scaled = acc.astype("int32").astype("float32") * np.asarray(factor, "float32")
    return np.clip(np.rint(scaled).astype("float64") + zero_point, lo, hi).astype("int64")


def add_params(s_a: float, s_b: float, s_out: float) -> tuple[int, int, int]:
    """Multipliers and shift of XNNPACK's fixed-point ADD: ``(a_mul, b_mul, shift)``.

    For SUB negate ``b_mul``. Source: XNNPACK, ``init_qs8_add_minmax`` parameters.
    """
    ratio_a = np.float32(s_a) / np.float32(s_out)
    ratio_b = np.float32(s_b) / np.float32(s_out)
    shift = 20 - int(np.floor(np.log2(float(max(ratio_a, ratio_b)))))
    a_mul = int(np.rint(float(ratio_a) * 2.0**shift))
    b_mul = int(np.rint(float(ratio_b) * 2.0**shift))
    return a_mul, b_mul, shift


def rescale_multiplier(s_in: Any, s_out: Any) -> int | None:
    """``s_in / s_out`` in 1/256, as XNNPACK converts between 8-bit grids; None beyond [1/256, 128].

    LiteRT's delegate leaves other ratios to the built-in kernel (``core.lite.requantized``).
    """
    ratio = np.float32(s_in) / np.float32(s_out)
    return int(np.rint(np.float32(256) * ratio)) if 2.0**-8 <= ratio <= 2.0**7 else None


def rescale(distance: Array, multiplier: int) -> Array:
    """``distance * multiplier / 256``, half up, in int64."""
    return np.asarray((distance.astype("int64") * multiplier + 128) >> 8)


def mean_factor(s_in: Any, s_out: Any, count: int) -> float:
    """The multiplier of a mean of ``count`` elements, in XNNPACK's order of float32 operations."""
    return float(np.float32(s_in) / np.float32(s_out) * (np.float32(1) / np.float32(count)))


AVERAGE_TAPS = 4096
"""Windows up to this size average exactly with ``average_factor`` in float32."""


def average_factor(count: int) -> float:
    """A float32 a little above ``1 / count``: ``rint(sum * factor)`` is the average, half away from 0.

    The excess of 2 ** -21 moves ties of a sum of up to 4096 codes, and nothing else.
    """
    return float(np.float32((1 + 2.0**-21) / count))


def centre(dtype: str) -> int:
    """The stored code of 0 in int8: uint8 stores int8 plus 128."""
    return 128 if dtype == "uint8" else 0


def mean_offset(p: Mapping[str, Any], count: int, dtype: str) -> Array:
    """What a mean's scaled sum is added to: ``out_zp - count * in_zp * multiplier``, zero points as int8.

    ``p`` are the parameters of ``qmean``, ``dtype`` is that of its input and output.
    """
    z_in, z_out = int(p["in_zp"]) - centre(dtype), int(p["out_zp"]) - centre(dtype)
    return np.asarray(np.float32(z_out) - np.float32(count * z_in) * np.float32(p["multiplier"]))


def clamp_bounds(
    params: QuantParams, low: float | None, high: float | None, builtin: bool = False
) -> tuple[int, int]:
    """Integer bounds of an activation that clips to ``[low, high]`` (None: not bounded).

    XNNPACK rounds ``bound / scale + zero_point`` half to even; LiteRT's ``builtin`` kernels (average
    pools, stand-alone activations) round ``bound / scale`` half away from 0.
    """
    lo, hi = INTEGER_RANGE[params.dtype]
    zero = centre(params.dtype)
    offset = np.float32(int(params.zero_point) - zero)

    def code(bound: float) -> int:
        with np.errstate(over="ignore"):  # "no bound" may be written as the largest float
            steps = np.float32(bound) / np.float32(params.scale)
        away = np.float64(np.copysign(np.floor(abs(np.float64(steps)) + 0.5), steps)) + offset
        return int(np.clip(zero + (away if builtin else np.rint(steps + offset)), lo, hi))

    return lo if low is None else code(low), hi if high is None else code(high)


def channel_scale(params: QuantParams, channels: int) -> Array:
    """The scale as one float32 value a channel."""
    return np.broadcast_to(params.scale, (channels,)).astype("float32")


def union_range(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The smallest range that covers all of them."""
    return min(low for low, _ in ranges), max(high for _, high in ranges)
