"""A histogram of bounded size whose merges are exact: parts of the data give the histogram of the whole."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_qplugin.core.qparams import Array

BINS = 2048
_FINEST = -120
"""Bins are never narrower than 2 to this power."""

_BLOCK = 1 << 16


def _no_counts() -> Array:
    return np.zeros(0, "int64")


@dataclass(eq=False)
class Histogram:
    """Counts of values in at most ``BINS`` bins of equal width.

    The width is the smallest power of two, ``2 ** exponent``, at which the bins from ``low`` to ``high``,
    aligned to 0, are not more than ``BINS`` (and float32 still tells them apart); ``first`` is the index of
    the first one. As values arrive bins are only ever joined in pairs, so that the result depends on what
    was seen, not on its order or division. ``zeros`` counts values that are exactly 0, which no range rounds.
    """

    low: float = math.inf
    high: float = -math.inf
    exponent: int = _FINEST
    first: int = 0
    counts: Array = field(default_factory=_no_counts)
    zeros: int = 0

    def update(self, x: Array, low: float, high: float) -> None:
        """Count the elements of a float32 array whose extremes are known (finite)."""
        self._widen(low, high)
        flat = x.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            index = np.floor(block.astype("float64") * 2.0**-self.exponent).astype("int64") - self.first
            self.counts += np.bincount(index, minlength=len(self.counts))
        self.zeros += int(flat.size - np.count_nonzero(flat))

    def merge(self, other: Histogram) -> None:
        """Take in what another histogram counted."""
        if not len(other.counts):
            return
        self._widen(other.low, other.high)
        index = (other.first + np.arange(len(other.counts))) >> (self.exponent - other.exponent)
        np.add.at(self.counts, index - self.first, other.counts)
        self.zeros += other.zeros

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> Array:
        """float64 [bins + 1], the outermost moved in to ``low`` and ``high``."""
        edges = np.ldexp((self.first + np.arange(len(self.counts) + 1)).astype("float64"), self.exponent)
        return np.clip(edges, self.low, self.high)

    def copy(self) -> Histogram:
        """One that does not change with this one."""
        return Histogram(self.low, self.high, self.exponent, self.first, self.counts.copy(), self.zeros)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back exactly."""
        packed = base64.b85encode(zlib.compress(self.counts.astype("<i8").tobytes(), 6)).decode("ascii")
        head = {"low": self.low, "high": self.high, "exponent": self.exponent, "first": self.first}
        return {**head, "zeros": self.zeros, "counts": packed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        """The inverse of ``to_json``; ValueError, KeyError or TypeError for anything else."""
        low, high = float(data["low"]), float(data["high"])
        exponent, first, zeros = (int(data[key]) for key in ("exponent", "first", "zeros"))
        try:
            counts = np.frombuffer(zlib.decompress(base64.b85decode(data["counts"])), "<i8").astype("int64")
        except zlib.error as error:
            raise ValueError(f"counts are damaged: {error}") from None
        if not math.isfinite(low + high) or (exponent, first, len(counts)) != _bins(low, high):
            raise ValueError(f"bins {first}..{first + len(counts)} do not fit the range [{low}, {high}]")
        if (counts < 0).any() or not counts.sum() or not 0 <= zeros <= counts.sum():
            raise ValueError("counts are not those of values")
        return cls(low, high, exponent, first, counts, zeros)

    def _widen(self, low: float, high: float) -> None:
        """Make room for ``[low, high]``."""
        low, high = min(self.low, low), max(self.high, high)
        exponent, first, size = _bins(low, high)
        counts = np.zeros(size, "int64")
        index = (self.first + np.arange(len(self.counts))) >> (exponent - self.exponent)
        np.add.at(counts, index - first, self.counts)
        self.low, self.high, self.exponent, self.first, self.counts = low, high, exponent, first, counts


def _bins(low: float, high: float) -> tuple[int, int, int]:
    """Exponent of the width, index of the first bin, and number of bins that a range needs."""
    largest = max(abs(low), abs(high))
    finest = max(math.frexp(largest)[1] - 24, _FINEST) if largest else _FINEST
    span = math.frexp(high - low)[1] - BINS.bit_length() if high > low else finest
    exponent = max(finest, span)
    while True:
        first, last = (math.floor(math.ldexp(value, -exponent)) for value in (low, high))
        if last - first < BINS:
            return exponent, first, last - first + 1
        exponent += 1
