"""The smallest and the largest value ever seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.spec import ACTIVATION, QuantSpec

# Elements per step of ``extremes``: 256 KB of float32 stay in the cache between min and max.
BLOCK = 1 << 16


def extremes(x: Array) -> tuple[float, float]:
    """Minimum and maximum in one pass over memory; raises CalibrationError for NaN, Inf or no elements."""
    flat = x.reshape(-1)
    if not flat.size:
        raise CalibrationError("it has no elements")
    blocks = [flat[i : i + BLOCK] for i in range(0, flat.size, BLOCK)]
    pairs = [(float(block.min()), float(block.max())) for block in blocks]
    for bounds in pairs:
        # numpy's min and max hand a NaN on, and an Inf is always one of the two.
        if not all(map(math.isfinite, bounds)):
            what = "NaN" if any(map(math.isnan, bounds)) else "Inf"
            raise CalibrationError(f"it holds {what}; finite values were expected")
    return min(low for low, _ in pairs), max(high for _, high in pairs)


@dataclass
class MinMax:
    """Range = [smallest value, largest value] over all samples."""

    low: float = math.inf
    high: float = -math.inf
    count: int = 0

    def update(self, x: Array) -> None:
        """Widen the range to hold ``x``."""
        low, high = extremes(x)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += 1

    def merge(self, other: Self) -> None:
        """The union of both ranges."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count

    def range(self, spec: QuantSpec = ACTIVATION) -> tuple[float, float]:
        """Low and high; CalibrationError before the first sample."""
        if not self.count:
            raise CalibrationError("no sample was observed; update the observer before asking for its range")
        return self.low, self.high

    @classmethod
    def resume(cls, low: float, high: float, count: int) -> Self:
        """Go on from a range seen before."""
        return cls(low, high, count)
