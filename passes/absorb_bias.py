"""High-bias absorption: what a channel always has at least moves into the next layer's bias."""

from __future__ import annotations

from collections.abc import Mapping
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


@tvm.transform.module_pass(opt_level=0, name="AbsorbBias")
@dataclass(frozen=True)
class AbsorbBias:
    """Subtract from a layer's bias what the sum of each channel exceeds 0 by, and add what that was worth.

    In: a canonical float module; ``ranges``: by the name of a layer's output the (lowest, highest) value of
    its sum before the activation, float [C] each. Out: the same function for everything in these ranges,
    with smaller activations (Nagel et al., arXiv 1906.04721, section 4.1.3). Only where a relu, or a ReLU6
    that ``highest`` stays below, is all that stands before a layer without padding.
    """

    ranges: Mapping[str, tuple[Array, Array]]

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        defined = ir.definitions(ir.main_function(mod))
        work = _Biases(defined)
        for pair in layer_pairs(ir.main_function(mod)):
            surplus = self._surplus(pair)
            if surplus is not None and surplus.any():
                rows = pair.second.rows(pair.second.weight).astype("float64")
                moved = np.einsum("gotc,gc->go", rows, surplus.reshape(len(rows), -1)).reshape(-1)
                work.add(pair.first, -surplus)
                work.add(pair.second, moved)
        return edit_layers(mod, work.weights, work.biases) if work.biases else mod

    def _surplus(self, pair: Pair) -> Array | None:
        """How far each channel stays above 0; None where it may not be moved."""
        first = pair.first
        known = self.ranges.get(first.output.name)
        if known is None or not pair.local or first.clamp is None or first.bias is None:
            return None
        low, high = (np.asarray(side, "float64") for side in known)
        return np.where(high < (np.inf if first.limit is None else first.limit), np.maximum(low, 0.0), 0.0)


class _Biases:
    """The new biases by the variable that adds them; a layer without one is given its weight again."""

    def __init__(self, defined: Mapping[object, object]) -> None:
        self.defined = defined
        self.biases: dict[object, Array] = {}
        self.weights: dict[object, Array] = {}

    def add(self, layer: Layer, shift: Array) -> None:
        """Shift the bias of a layer."""
        place = layer.before_clamp
        if place not in self.biases:
            found = None if layer.bias is None else bias_of(layer.product, self.defined[layer.bias])
            if layer.bias is None:
                self.weights[layer.product] = layer.weight
            self.biases[place] = np.zeros(len(shift)) if found is None else found.astype("float64")
        self.biases[place] = self.biases[place] + shift
