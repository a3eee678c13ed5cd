"""The smallest and the largest value of every channel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.spec import ACTIVATION, QuantSpec
from tvm_qplugin.observers.min_max import extremes


def _nothing() -> Array:
    return np.zeros(0, "float32")


@dataclass(eq=False)
class PerChannel:
    """Extremes along the last axis: ``low`` and ``high`` are float32 [C].

    What equalization looks at. The range of the whole tensor is the union; a table keeps that alone.
    """

    low: Array = field(default_factory=_nothing)
    high: Array = field(default_factory=_nothing)
    count: int = 0

    def update(self, x: Array) -> None:
        """Widen the ranges to hold ``x`` of shape [..., C]."""
        extremes(x)
        channels = x.shape[-1] if x.ndim else 1
        rows = x.reshape(-1, channels)
        together = math.gcd(len(rows), 1 << max(10 - channels.bit_length(), 0))
        wide = rows.reshape(-1, together * channels)  # numpy reduces long rows many times faster
        low, high = (side.reshape(together, channels) for side in (wide.min(0), wide.max(0)))
        self._widen(low.min(0), high.max(0), 1)

    def merge(self, other: Self) -> None:
        """The union of the ranges of every channel."""
        if other.count:
            self._widen(other.low, other.high, other.count)

    def range(self, spec: QuantSpec = ACTIVATION) -> tuple[float, float]:
        """Low and high of all channels; CalibrationError before the first sample."""
        if not self.count:
            raise CalibrationError("no sample was observed; update the observer before asking for its range")
        return float(self.low.min()), float(self.high.max())

    @classmethod
    def resume(cls, low: float, high: float, count: int) -> Self:
        """Go on from a range of all channels: each of them is taken to have had it."""
        return cls(np.asarray([low], "float32"), np.asarray([high], "float32"), count)

    def _widen(self, low: Array, high: Array, count: int) -> None:
        if self.count and len({len(low), len(self.low), 1}) > 2:
            raise CalibrationError(f"it has {len(low)} channels, and {len(self.low)} were observed before")
        self.low = np.minimum(self.low, low) if self.count else low
        self.high = np.maximum(self.high, high) if self.count else high
        self.count += count
