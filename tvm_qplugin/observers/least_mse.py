"""The range with the least mean squared error of quantization."""

from __future__ import annotations

import numpy as np

from tvm_qplugin.core.spec import QuantSpec
from tvm_qplugin.observers.histogram import HistogramObserver, levels, search


class LeastMSE(HistogramObserver):
    """Range = the part of the range seen whose squared error, rounding and clipping, is smallest.

    Rounding costs a twelfth of a squared step for every value but 0, which is exact; clipping costs the
    squared distance.
    """

    def choose(self, spec: QuantSpec) -> tuple[float, float]:
        """Search over ranges."""
        seen = self.histogram
        centres = (seen.edges[:-1] + seen.edges[1:]) / 2
        counts = seen.counts.astype("float64")

        def cost(low: float, high: float) -> float:
            distance = centres - np.clip(centres, low, high)
            inside = counts[distance == 0].sum() - seen.zeros
            step = (high - low) / levels(spec)
            return float(inside * step**2 / 12 + (counts * distance**2).sum())

        return search(seen.low, seen.high, cost, spec.symmetric)
