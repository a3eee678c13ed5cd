"""A moving average of each sample's minimum and maximum: single outliers weigh little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.spec import ACTIVATION, QuantSpec
from tvm_qplugin.observers.min_max import extremes


@dataclass
class MovingAverage:
    """Range = ``momentum`` * (range so far) + (1 - ``momentum``) * (range of the sample).

    While fewer than ``1 / (1 - momentum)`` samples were seen it is their plain mean, so the first
    sample does not weigh more than the others. TensorFlow trains with 0.999 over many thousand steps;
    0.99 suits the hundreds of samples of a calibration. The result depends on the order of samples.
    """

    momentum: ClassVar[float] = 0.99

    low: float = 0.0
    high: float = 0.0
    count: int = 0

    def update(self, x: Array) -> None:
        """Move the range towards that of ``x``."""
        low, high = extremes(x)
        self.count += 1
        step = max(1 - self.momentum, 1 / self.count)
        self.low += step * (low - self.low)
        self.high += step * (high - self.high)

    def merge(self, other: Self) -> None:
        """The mean of both ranges, weighted by their samples."""
        count = self.count + other.count
        if count:
            self.low = (self.low * self.count + other.low * other.count) / count
            self.high = (self.high * self.count + other.high * other.count) / count
        self.count = count

    def range(self, spec: QuantSpec = ACTIVATION) -> tuple[float, float]:
        """Low and high; CalibrationError before the first sample."""
        if not self.count:
            raise CalibrationError("no sample was observed; update the observer before asking for its range")
        return self.low, self.high

    @classmethod
    def resume(cls, low: float, high: float, count: int) -> Self:
        """Go on from a range averaged before."""
        return cls(low, high, count)
