"""Cross-layer equalization: factors per channel, moved from one layer into the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.edit_layers import edit_layers
from tvm_qplugin.passes.layer_pairs import Layer, Pair, layer_pairs
from tvm_qplugin.passes.op_kinds import bias_of

ROUNDS, SETTLED = 20, 1e-3
"""Chains of layers are gone through until no factor changes by more than the second, at most so often."""

HEADROOM = 0.9
"""How near to the bound of an activation a channel may be brought that did not reach it."""

_SMALLEST = 1e-3
"""Channels smaller than this share of the largest are taken to be this large."""


@tvm.transform.module_pass(opt_level=0, name="EqualizeLayers")
@dataclass(frozen=True)
class EqualizeLayers:
    """Divide the outputs of a layer by a factor per channel, and multiply the next layer's weight by it.

    In: a canonical float module. Out: the same function, its channels of about equal range (Nagel et al.,
    Data-Free Quantization, arXiv 1906.04721, section 4.1).

    ``peaks``: by the name of a layer's output the largest magnitude that each channel had on samples, float
    [C]. Then the peaks, not the weights, of the first layer are balanced with the weights of the second,
    completely where that is depthwise; and a channel that reaches the bound of a ReLU6 keeps it, the others
    stay below it: on the samples nothing changes. Without peaks the ranges of both weights are balanced, and
    every ReLU6 in between becomes a ReLU, as in the paper, which changes the function.
    """

    peaks: Mapping[str, Array] | None = None

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        pairs = [p for p in layer_pairs(ir.main_function(mod)) if self._known(p.first)]
        if not pairs:
            return mod
        balance = _Balance(pairs, self.peaks)
        balance.run()
        defined = ir.definitions(ir.main_function(mod))
        biases = {}
        for pair in pairs:
            first = pair.first
            if first.bias is not None:
                bias = bias_of(first.product, defined[first.bias])
                assert bias is not None
                biases[first.bias] = bias / balance.total[first.product]
        bounded = (p.first.clamp for p in pairs if p.first.limit is not None)
        unbounded = frozenset(bounded) if self.peaks is None else frozenset()
        return edit_layers(mod, balance.stored(), biases, unbounded)

    def _known(self, layer: Layer) -> bool:
        return self.peaks is None or layer.output.name in self.peaks


class _Balance:
    """Weights of all layers of some pairs, float64, and the factor of every first layer so far."""

    def __init__(self, pairs: Sequence[Pair], peaks: Mapping[str, Array] | None) -> None:
        self.pairs, self.by_name = pairs, peaks
        self.layers = {layer.product: layer for pair in pairs for layer in (pair.first, pair.second)}
        self.rows = {var: layer.rows(layer.weight).astype("float64") for var, layer in self.layers.items()}
        self.total = {pair.first.product: np.ones(_outputs(pair.first)) for pair in pairs}

    def run(self) -> None:
        """Until it has settled."""
        for _ in range(ROUNDS):
            changes = [self._balance(pair) for pair in self.pairs]
            if max(changes) < SETTLED:
                break

    def stored(self) -> dict[object, Array]:
        """The new weights, as the modules hold them."""
        return {var: layer.stored(self.rows[var]) for var, layer in self.layers.items()}

    def _balance(self, pair: Pair) -> float:
        factor = self._factor(pair)
        first, second = pair.first, pair.second
        shape = self.rows[first.product].shape
        self.rows[first.product] /= factor.reshape(*shape[:2], 1, 1)
        self.rows[second.product] *= factor.reshape(second.groups, 1, 1, -1)
        self.total[first.product] *= factor
        return float(np.abs(np.log(factor)).max())

    def _factor(self, pair: Pair) -> Array:
        rows, following = self.rows[pair.first.product], self.rows[pair.second.product]
        if self.by_name is None:
            mine = np.abs(rows).max((2, 3)).reshape(-1)
            theirs = np.abs(following).max((1, 2)).reshape(-1)
            factor = np.sqrt(_positive(mine) / _positive(theirs))
            return np.where((mine > 0) & (theirs > 0), factor, 1.0)
        known = np.asarray(self.by_name[pair.first.output.name], "float64")
        return _within_bound(
            known, self.total[pair.first.product], _of_peaks(known, self, pair), pair.first.limit
        )


def _of_peaks(known: Array, balance: _Balance, pair: Pair) -> Array:
    """Peaks balanced with the weights that read them, the largest one unchanged."""
    peak = _positive(known / balance.total[pair.first.product])
    rows = np.abs(balance.rows[pair.second.product])
    if rows.shape[3] == 1:
        factor = peak / peak.max()
    else:
        largest = rows.max((2, 3), keepdims=True)
        shares = rows / np.where(largest > 0, largest, 1.0)
        factor = np.sqrt(peak / _positive(shares.max((1, 2)).reshape(-1)))
    return np.asarray(factor * ((peak / factor).max() / known.max() if known.max() else 1.0))


def _within_bound(known: Array, total: Array, factor: Array, limit: float | None) -> Array:
    """The factor, where need be changed so that no channel meets the bound of the activation anew."""
    factor = np.where(known > 0, factor, 1.0)
    if limit is None:
        return factor
    lowest = known / (HEADROOM * limit) / total
    return np.where(known >= HEADROOM * limit, 1.0, np.maximum(factor, lowest))


def _positive(values: Array) -> Array:
    largest = float(values.max()) if values.size else 0.0
    return np.maximum(values, _SMALLEST * largest if largest else 1.0)


def _outputs(layer: Layer) -> int:
    rows = layer.rows(layer.weight)
    return rows.shape[0] * rows.shape[1]
