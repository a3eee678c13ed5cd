"""The range that keeps most of a tensor's distribution, by relative entropy."""

from __future__ import annotations

import numpy as np

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.spec import QuantSpec
from tvm_qplugin.observers.histogram import HistogramObserver, levels, search


class Entropy(HistogramObserver):
    """Range = where the Kullback-Leibler divergence of the quantized distribution is smallest.

    Migacz, 8-bit Inference with TensorRT (GTC 2017), for ranges of two sides: values outside are counted
    at the edge, zeros, which are exact, nowhere. Of a tensor with 256 distinct bins or fewer, and in
    more than 8 bits, where the histogram is coarser than the codes, all is kept.
    """

    def choose(self, spec: QuantSpec) -> tuple[float, float]:
        """Search over ranges."""
        seen, steps = self.histogram, levels(spec)
        centres = (seen.edges[:-1] + seen.edges[1:]) / 2
        counts = seen.counts.astype("float64")
        counts[-seen.first] -= seen.zeros if 0 <= -seen.first < len(counts) else 0.0
        if np.count_nonzero(counts) <= steps + 1:
            return seen.low, seen.high
        return search(
            seen.low,
            seen.high,
            lambda low, high: _divergence(counts, centres, low, high, steps),
            spec.symmetric,
        )


def _divergence(counts: Array, centres: Array, low: float, high: float, steps: int) -> float:
    """How much a distribution loses when its values get the codes of a range."""
    first, last = np.searchsorted(centres, [low, high])
    if last - first <= steps:
        return np.inf
    inside = counts[first:last]
    wanted = inside.copy()
    wanted[0] += counts[:first].sum()
    wanted[-1] += counts[last:].sum()
    code = np.rint((centres[first:last] - low) / ((high - low) / steps)).astype("int64")
    used = inside > 0
    held = np.bincount(code, weights=inside, minlength=steps + 1)
    bins = np.bincount(code, weights=used, minlength=steps + 1)
    found = np.where(used, held[code] / np.maximum(bins[code], 1), 0.0)
    return _relative_entropy(wanted, found)


def _relative_entropy(wanted: Array, found: Array) -> float:
    """Of two histograms, made distributions; what the second one never shows costs as one value would."""
    p, q = wanted / max(wanted.sum(), 1.0), np.maximum(found, 1e-3) / max(found.sum(), 1.0)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())
