"""What the observers that choose a range have in common: one histogram."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.histogram import Histogram
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.spec import ACTIVATION, QuantSpec
from tvm_qplugin.observers.min_max import extremes

Cost = Callable[[float, float], float]
SHARES = np.linspace(0.02, 1.0, 99)
"""Of the whole range, how much of it is tried."""


@dataclass
class HistogramObserver(ABC):
    """Counts values in a ``Histogram``; subclasses choose the range from it."""

    chooses: ClassVar[bool] = True

    histogram: Histogram = field(default_factory=Histogram)
    count: int = 0

    def update(self, x: Array) -> None:
        """Count the values of ``x``."""
        self.histogram.update(x, *extremes(x))
        self.count += 1

    def merge(self, other: Self) -> None:
        """The histogram of both; the result is that of one observer that saw all samples."""
        self.histogram.merge(other.histogram)
        self.count += other.count

    def range(self, spec: QuantSpec = ACTIVATION) -> tuple[float, float]:
        """The chosen range; CalibrationError before the first sample."""
        if not self.count:
            raise CalibrationError("no sample was observed; update the observer before asking for its range")
        low, high = self.histogram.low, self.histogram.high
        return (low, high) if low == high else self.choose(spec)

    @abstractmethod
    def choose(self, spec: QuantSpec) -> tuple[float, float]:
        """The range of a histogram with more than one value."""

    @classmethod
    def resume(cls, low: float, high: float, count: int, histogram: Histogram | None = None) -> Self:
        """Go on from a histogram; CalibrationError without one."""
        if histogram is None:
            raise CalibrationError(
                f"a range of [{low:.6g}, {high:.6g}] alone is no histogram to go on from: calibrate again"
            )
        return cls(histogram.copy(), count)


def search(low: float, high: float, cost: Cost, symmetric: bool) -> tuple[float, float]:
    """The part of ``[low, high]`` around 0 with the least cost.

    The whole is shrunk first, then, unless ``symmetric``, each side by itself.
    """
    bottom, top = min(low, 0.0), max(high, 0.0)
    if symmetric:
        bottom, top = -max(-bottom, top), max(-bottom, top)
    tried = [(bottom * share, top * share) for share in SHARES]
    best = min(reversed(tried), key=lambda both: cost(*both))
    if symmetric or not bottom or not top:
        return best
    best = min(((bottom * s, best[1]) for s in SHARES[::-1]), key=lambda both: cost(*both))
    return min(((best[0], top * s) for s in SHARES[::-1]), key=lambda both: cost(*both))


def levels(spec: QuantSpec) -> int:
    """How many steps lie between the lowest and the highest code."""
    return 2 ** int(spec.dtype.removeprefix("u").removeprefix("int")) - 1 - int(spec.narrow)
