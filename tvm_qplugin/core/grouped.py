"""Weights of dense layers stored in 8 or 4 bits for float inputs: the definition, in numpy.

A weight [N, K] has codes and a scale for every ``group`` of successive k of a row (the last one may be
shorter): ``weight[n, k] = float32(code[n, k]) * float32(scale[n, k // group])``, a product of float32.

Codes of 8 bits are int8 in [-127, 127]. Codes of 4 bits are in [-8, 7], two a byte (uint8), in two's
complement: code 2i in the low nibble of byte i, code 2i + 1 in the high one, 0 behind the last of an odd row.
Scales are float32 where a row has one; of groups they are float16, unless the largest of a layer is
outside of [2^-14, 65504], where float16 loses digits. Groups of 32 so take 4.5 bits a weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_qplugin.core.attrs import Params
from tvm_qplugin.core.qparams import Array

HALF_RANGE = (2.0**-14, 65504.0)
SHRINKING = (1.0, 0.94, 0.88, 0.82, 0.76)
"""Fractions that are tried of the scale that maps the largest of a group to -8; less than 1 clips it."""


@dataclass(frozen=True, eq=False)
class Grouped:
    """A stored weight: ``codes`` int8 [N, K] or uint8 [N, ceil(K/2)], ``scale`` [N, ceil(K/group)]."""

    codes: Array
    scale: Array
    depth: int
    group: int

    @property
    def bits(self) -> int:
        """Of a code."""
        return 8 if self.codes.dtype == "int8" else 4

    @property
    def params(self) -> dict[str, int]:
        """What the kernels have to know beside the arrays."""
        return {"bits": self.bits, "group": self.group, "depth": self.depth}

    @property
    def arrays(self) -> tuple[Array, Array]:
        """Codes and scales."""
        return self.codes, self.scale

    def values(self) -> Array:
        """Codes as int8 [N, K]."""
        return self.codes if self.bits == 8 else unpack_nibbles(self.codes, self.depth)

    def real(self) -> Array:
        """The float32 weight [N, K]."""
        return self.values().astype("float32") * repeated(self.scale, self.group, self.depth)


def repeated(scale: Array, group: int, depth: int) -> Array:
    """Scales [N, G] as float32 [N, K], one for each weight."""
    return np.repeat(scale.astype("float32"), group, axis=1)[:, :depth]


def pack_nibbles(codes: Array) -> Array:
    """Codes [N, K] in [-8, 7] as uint8 [N, ceil(K/2)], the first of two in the low nibble."""
    nibbles = (codes.astype("uint8") & 15).astype("uint8")
    even = np.pad(nibbles, ((0, 0), (0, codes.shape[1] % 2)))
    return even[:, ::2] | (even[:, 1::2] << 4).astype("uint8")


def unpack_nibbles(packed: Array, depth: int) -> Array:
    """The inverse: int8 [N, ``depth``]."""
    both = np.stack([packed << 4, packed & 0xF0], axis=-1).astype("uint8").view("int8") >> 4
    return both.reshape(len(packed), -1)[:, :depth]


def quantize_grouped(weight: Array, bits: int, group: int = 0) -> Grouped:
    """A float weight [N, K] in 8 or 4 bits; ``group`` 0: one scale for the row.

    8 bits: the largest of a group becomes 127 or -127. 4 bits: it becomes -8 (so a scale may be negative), or
    is clipped where that makes the squared error of its group smaller; then the scale is the one of least
    squared error for these codes.
    """
    outputs, depth = weight.shape
    group = min(group, depth) or depth
    groups = -(-depth // group)
    blocks = np.pad(weight.astype("float32"), ((0, 0), (0, groups * group - depth)))
    blocks = blocks.reshape(outputs, groups, group)
    scale = _linear_scale(blocks) if bits == 8 else _best_scale(blocks)
    scale = scale if groups == 1 else _halved(scale)
    codes = _codes(blocks, scale[..., None].astype("float32"), bits).reshape(outputs, -1)[:, :depth]
    stored = codes if bits == 8 else pack_nibbles(codes)
    return Grouped(np.ascontiguousarray(stored), scale, depth, group)


def _linear_scale(blocks: Array) -> Array:
    return np.abs(blocks).max(axis=2) / np.float32(127)


def _best_scale(blocks: Array) -> Array:
    """Of the scales [N, G] that are tried, the one of the least squared error."""
    at = np.abs(blocks).argmax(axis=2)[..., None]
    extreme = np.take_along_axis(blocks, at, axis=2)
    best, least = np.zeros_like(extreme), np.full_like(extreme, np.inf)
    for part in SHRINKING:
        for sign in (-8, 8):
            scale = extreme * np.float32(part / sign)
            codes = _codes(blocks, scale, 4).astype("float32")
            scale = _fitted(blocks, codes, scale)
            error = np.square(blocks - codes * scale).sum(axis=2, keepdims=True)
            better = error < least
            best, least = np.where(better, scale, best), np.where(better, error, least)
    return best[..., 0]


def _fitted(blocks: Array, codes: Array, scale: Array) -> Array:
    """The scale of least squared error for codes; ``scale`` where all are 0."""
    power = np.square(codes).sum(axis=2, keepdims=True)
    product = (blocks * codes).sum(axis=2, keepdims=True)
    return np.where(power > 0, product / np.where(power > 0, power, 1), scale)


def _halved(scale: Array) -> Array:
    """As float16 where that keeps its digits."""
    low, high = HALF_RANGE
    return scale.astype("float16") if low <= np.abs(scale).max(initial=0) <= high else scale


def _codes(blocks: Array, scale: Array, bits: int) -> Array:
    """The nearest codes; 0 where the scale is 0."""
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    with np.errstate(over="ignore"):
        ratio = blocks / np.where(scale == 0, np.float32(1), scale)
    return np.clip(np.rint(np.where(scale == 0, 0, ratio)), low, high).astype("int8")


def wexpand(p: Params, codes: Array, scale: Array, dtype: str = "float32") -> Array:
    """The weight [K, N] that codes and scales stand for."""
    return Grouped(codes, scale, p["depth"], p["group"]).real().T.astype(dtype)


def wdense(p: Params, x: Array, codes: Array, scale: Array, bias: Array, dtype: str = "float32") -> Array:
    """``x @ weight.T + bias``, clamped, in float64: kernels agree to within ``rounding``."""
    weight = Grouped(codes, scale, p["depth"], p["group"]).real()
    total = x.astype("float64") @ weight.astype("float64").T + bias
    low, high = (p.get(key) for key in ("lo", "hi"))
    return (total if low is None and high is None else np.clip(total, low, high)).astype(dtype)


def rounding(x: Array, weight: Array, bias: Array) -> Array:
    """How far a float32 kernel may be from ``wdense``: Higham's bound, whatever the order of its sums.

    Each product is rounded at most twice (by the scale, by itself), and takes part in at most K + 2 sums.
    """
    steps = weight.shape[1] + 4
    size = np.abs(x).astype("float64") @ np.abs(weight).astype("float64").T + np.abs(bias)
    return steps * 2.0**-24 / (1 - steps * 2.0**-24) * size
