"""How near a quantized module comes to the float one on samples that it was not made with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.insert_observers import InsertObservers

FLAT_DB = 100.0
"""The signal-to-noise ratio of a sample without any noise."""


@dataclass(frozen=True)
class Score:
    """``same``: for each sample the share of equal decisions (arg-max), empty where outputs are none.

    ``ratios``: for each sample the signal-to-noise ratio in dB of what the decisions are taken from (before
    a softmax at the end).
    """

    same: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def agreement(self) -> float | None:
        """Mean share of equal decisions, 0..1."""
        return float(np.mean(self.same)) if self.same else None

    @property
    def sqnr_db(self) -> float:
        """Mean over the samples, in dB."""
        return float(np.mean(self.ratios))

    def better_than(self, other: Score) -> bool:
        """Whether there is more gain than loss, each in its standard errors, on the same samples."""
        return _certainty(self.ratios, other.ratios) + _certainty(self.same, other.same) > 0


def _certainty(a: Sequence[float], b: Sequence[float]) -> float:
    """The mean of the differences in units of its standard error; 0 where there are none."""
    difference = np.subtract(a, b)
    if not difference.any():
        return 0.0
    error = float(difference.std()) / math.sqrt(difference.size)
    return float(difference.mean()) / max(error, 1e-9)


class Judge:
    """Compares modules with the float module on samples (arrays for the inputs)."""

    def __init__(self, module: IRModule, samples: Sequence[list[Array]]) -> None:
        """Run the float module."""
        self.samples = samples
        self.wanted = self._outputs(module)

    def score(self, quantized: IRModule) -> Score:
        """Of a QDQ module with float inputs and outputs."""
        found = self._outputs(quantized)
        pairs = list(zip(self.wanted, found, strict=True))
        same = [_same(a[0], b[0]) for a, b in pairs if a[0].ndim and a[0].shape[-1] > 1]
        return Score(tuple(same), tuple(_ratio(a, b) for a, b in pairs))

    def _outputs(self, module: IRModule) -> list[list[Array]]:
        names = tuple(decisive(module))
        run = compile_function(tvm.transform.Sequential([InsertObservers(names)])(module))
        return [run(arrays)[-len(names) :] for arrays in self.samples]


def decisive(module: IRModule) -> list[str]:
    """The outputs of a module by name; of a softmax its input."""
    func = ir.main_function(module)
    defined = ir.definitions(func)
    return [_before_softmax(var, defined).name for var in ir.output_vars(func)]


def _before_softmax(var: relax.Var, defined: dict[relax.Var, relax.Expr]) -> relax.Var:
    """Seen through quantization and reshaping."""
    place = var
    while ir.op_name(defined.get(place)) in ("relax.dequantize", "relax.quantize", "relax.reshape"):
        source = defined[place].args[0]
        if not isinstance(source, relax.Var):
            return var
        place = source
    if ir.op_name(defined.get(place)) != "relax.nn.softmax":
        return var
    source = defined[place].args[0]
    return source if isinstance(source, relax.Var) else var


def _same(wanted: Array, found: Array) -> float:
    return float((wanted.argmax(-1) == found.argmax(-1)).mean())


def _ratio(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    pairs = [(a.astype("float64"), b.astype("float64")) for a, b in zip(wanted, found, strict=True)]
    signal = sum(float(np.square(a).sum()) for a, _ in pairs)
    noise = sum(float(np.square(a - b).sum()) for a, b in pairs)
    if not noise:
        return FLAT_DB
    return float(np.clip(10 * math.log10(signal / noise), -FLAT_DB, FLAT_DB)) if signal else -FLAT_DB
