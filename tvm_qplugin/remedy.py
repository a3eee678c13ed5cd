"""Find the layers that must not be int8 for a model to stay within a budget."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tvm_qplugin.core.distance import Distance
from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.evaluate import Evaluation, Score
from tvm_qplugin.layer_errors import Comparison, LayerErrors
from tvm_qplugin.passes.op_kinds import obstacle16
from tvm_qplugin.passes.switch_quantization import WEIGHT

SQNR_DB = 20.0


@dataclass(frozen=True)
class Budget:
    """What a quantized model must keep: the SQNR of its outputs in dB, and all but a share of the accuracy.

    None asks for nothing; ``accuracy_loss`` (0.01: one sample in a hundred) needs labels.
    """

    sqnr_db: float | None = SQNR_DB
    accuracy_loss: float | None = None

    def __post_init__(self) -> None:
        """Refuse what asks for nothing."""
        if self.sqnr_db is None and self.accuracy_loss is None:
            raise RecipeError(
                "the budget asks for nothing: give a least SQNR, a largest loss of accuracy, or both"
            )

    def meets(self, found: Evaluation) -> bool:
        """Whether a model is good enough."""
        if self.accuracy_loss is not None:
            if found.accuracy is None or found.reference_accuracy is None:
                raise RecipeError("a loss of accuracy is only known with labels: give labelled samples")
            if found.reference_accuracy - found.accuracy > self.accuracy_loss + 1e-9:
                return False
        return self.sqnr_db is None or found.sqnr_db is None or found.sqnr_db >= self.sqnr_db


@dataclass(frozen=True)
class Repair:
    """Layers that get ``scheme`` so that what ``cause`` (a layer) does to the outputs goes away."""

    cause: str
    scheme: str
    layers: tuple[str, ...]
    noise: float


class Judge:
    """Compares outputs with those of the float model."""

    def __init__(self, references: Sequence[list[Array]], labels: Sequence[Any] | None) -> None:
        self.references, self.labels = references, labels

    def __call__(self, outputs: Iterable[Sequence[Array]]) -> Evaluation:
        """SQNR over all floating outputs; agreement and accuracy of the first."""
        score, distance = Score(0), Distance()
        labels = self.labels if self.labels is not None else [None] * len(self.references)
        for found, wanted, label in zip(outputs, self.references, labels, strict=True):
            score.add(found[0], wanted[0], label)
            for x, y in zip(wanted, found, strict=True):
                if x.dtype.kind == "f":
                    distance.add(x, y)
        return replace(score.result(self.labels is not None, True), sqnr_db=distance.sqnr_db)


@dataclass
class Search:
    """Repairs in the order of what they gain; measured by simulation, which compiles nothing.

    ``wide``: tensors may become int16 (int16x8) where all who make and read them have kernels for that;
    else, and where weights are at fault, layers become float.
    """

    comparison: Comparison
    judge: Judge
    budget: Budget
    wide: bool = True

    @cached_property
    def repairs(self) -> list[Repair]:
        """All of them, the most useful first."""
        found = []
        for layer in self.comparison.layers:
            kinds = {self.comparison.switches[i].kind for i in layer.switches}
            if layer.scheme != "float":
                found.append(Repair(layer.name, "float", (layer.name,), layer.weights.noise))
            if not kinds.isdisjoint(("int8", "uint8")):
                around = self._around(layer)
                found.append(Repair(layer.name, self._scheme(around), around, layer.activations.noise))
        return sorted((r for r in found if r.noise > 0), key=lambda repair: -repair.noise)

    def smallest(self) -> list[Repair]:
        """The first repairs that are enough in simulation, without those that turn out to be needless."""
        low, high = 0, len(self.repairs)
        while low < high:
            middle = (low + high) // 2
            enough = self.enough(self.repairs[:middle])
            low, high = (low, middle) if enough else (middle + 1, high)
        chosen = self.repairs[:low]
        for repair in reversed(chosen):
            fewer = [other for other in chosen if other is not repair]
            chosen = fewer if self.enough(fewer) else chosen
        return chosen

    def enough(self, repairs: Sequence[Repair]) -> bool:
        """Whether the budget is met in simulation."""
        switches = self._switches(schemes_of(repairs))
        samples = self.comparison.samples
        return self.budget.meets(self.judge(self.comparison.run(switches, arrays) for arrays in samples))

    def _switches(self, schemes: dict[str, str]) -> list[int]:
        """The numbers of what stays quantized where layers have these schemes instead."""
        found = []
        for i, switch in enumerate(self.comparison.switches):
            if switch.kind == WEIGHT:
                kept = schemes.get(switch.name) != "float"
            else:
                kept = not self._ends(switch.name).issubset(schemes)
            if kept:
                found.append(i)
        return found

    def _scheme(self, names: Sequence[str]) -> str:
        """The scheme in which the tensors between these operators lose little."""
        kinds = [op.kind for op in self.comparison.operators if op.output in names]
        return "int16x8" if self.wide and not any(map(obstacle16, kinds)) else "float"

    def _ends(self, name: str) -> set[str]:
        """The operators that make or read a tensor."""
        operators = self.comparison.operators
        return {op.output for op in operators if name in op.inputs or name == op.output}

    def _around(self, layer: LayerErrors) -> tuple[str, ...]:
        """Who has to change for a tensor to lie on another grid: its producer, its readers, what follows."""
        names, found = [layer.name], dict[str, None]()
        followers = {op.output for op in self.comparison.operators if self.comparison.follows(op)}
        while names:
            for end in sorted(self._ends(names.pop())):
                if end not in found:
                    found[end] = None
                    names += [end] if end in followers else []
        order = [op.output for op in self.comparison.operators]
        return tuple(sorted(found, key=order.index))


def schemes_of(repairs: Iterable[Repair]) -> dict[str, str]:
    """The scheme of every layer that is repaired; float prevails."""
    found: dict[str, str] = {}
    for repair in repairs:
        for name in repair.layers:
            if found.get(name) != "float":
                found[name] = repair.scheme
    return found


def with_schemes(recipe: Recipe, schemes: dict[str, str]) -> Recipe:
    """The recipe with one more rule for each of these layers."""
    rules = tuple(Rule(scope=f"^{re.escape(name)}$", scheme=scheme) for name, scheme in schemes.items())
    return replace(recipe, name=f"{recipe.name}-selective", rules=(*recipe.rules, *rules))
