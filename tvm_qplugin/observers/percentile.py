"""The range that all but a small share of the values lie in."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tvm_qplugin.core.spec import QuantSpec
from tvm_qplugin.observers.histogram import HistogramObserver


class Percentile(HistogramObserver):
    """Range = [lowest, highest] without the outermost ``outside`` of the values on each side.

    To the resolution of the histogram (1/1024 of the range or better), linear inside a bin.
    """

    outside: ClassVar[float] = 0.00005

    def choose(self, spec: QuantSpec) -> tuple[float, float]:
        """The two quantiles."""
        seen = self.histogram
        below = np.concatenate([[0], np.cumsum(seen.counts)]) / seen.total
        low, high = np.interp([self.outside, 1 - self.outside], below, seen.edges)
        return float(low), float(high)
