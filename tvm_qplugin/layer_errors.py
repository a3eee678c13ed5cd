"""What quantization does to every layer of a model, beside the float model on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import tvm
from tvm.ir import IRModule

from tvm_qplugin.builder import compile_function, compile_tensors
from tvm_qplugin.core.distance import Distance, Spread
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array, QuantParams
from tvm_qplugin.core.spec import OpAnnotation
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import group
from tvm_qplugin.passes.insert_observers import InsertObservers
from tvm_qplugin.passes.op_kinds import MOVEMENT, SAME_SCALE
from tvm_qplugin.passes.switch_quantization import WEIGHT, Quantized, SwitchQuantization

Advance = Callable[[], object]


@dataclass
class LayerErrors:
    """One layer, or an input of the model (``op`` "input"), by the name of its tensor.

    ``cumulative``: its tensor as deployed, everything before it quantized. The others are of this layer
    alone, all else in float: ``alone`` its tensor, ``effect`` the model's outputs, of which
    ``weights`` and ``activations`` are the parts; they stay empty for layers in float and for those that
    only pass on integers on their input's grid. ``scheme``: int8, int16x8 or float.
    """

    name: str
    op: str
    scheme: str
    switches: tuple[int, ...] = ()
    grid: QuantParams | None = None
    cumulative: Distance = field(default_factory=Distance)
    alone: Distance = field(default_factory=Distance)
    effect: Distance = field(default_factory=Distance)
    weights: Distance = field(default_factory=Distance)
    activations: Distance = field(default_factory=Distance)
    seen: Spread = field(default_factory=Spread)

    @property
    def covered(self) -> tuple[float, float] | None:
        """The real numbers that the grid of its tensor reaches."""
        if self.grid is None:
            return None
        low, high = (edge - int(self.grid.zero_point) for edge in INTEGER_RANGE[self.grid.dtype])
        return low * float(self.grid.scale), high * float(self.grid.scale)

    @property
    def used(self) -> float | None:
        """The share of its grid that the float model's values span; above 1 where they are clipped."""
        if self.covered is None or not self.seen.count:
            return None
        low, high = self.covered
        return (max(self.seen.high, 0.0) - min(self.seen.low, 0.0)) / (high - low)

    def to_json(self) -> dict[str, Any]:
        """The figures; decibels are None where nothing differs, and all of a distance where it is empty."""
        return {
            "name": self.name,
            "op": self.op,
            "scheme": self.scheme,
            "cumulative": _figures(self.cumulative),
            "alone": _figures(self.alone),
            "effect": _figures(self.effect),
            "weights": _figures(self.weights),
            "activations": _figures(self.activations),
            "covered": self.covered,
            "seen": [self.seen.low, self.seen.high] if self.seen.count else None,
            "mean": self.seen.mean,
            "deviation": self.seen.deviation,
            "used": self.used,
        }


def _figures(distance: Distance) -> dict[str, float | None] | None:
    if not distance.count:
        return None
    return {"sqnr_db": distance.sqnr_db, "mse": distance.mse, "cosine": distance.cosine}


class Comparison:
    """A quantized model beside the float one that it was made from; ``samples`` are arrays for the inputs."""

    def __init__(self, module: IRModule, quantized: IRModule, samples: Sequence[list[Array]]) -> None:
        self.module, self.quantized, self.samples = module, quantized, samples
        self.func = ir.main_function(module)
        self.known = Quantized(quantized, self.func)
        self.switches = self.known.switches
        self.operators = group(self.func)
        self.layers = self._layers()
        self._names = tuple(layer.name for layer in self.layers)
        self._width = len(ir.output_vars(self.func))

    def run(self, switches: Iterable[int], arrays: Sequence[Array]) -> list[Array]:
        """The outputs with the switches of these numbers on, in simulation."""
        return [field.numpy() for field in self._simulate(switches, arrays)[: self._width]]

    def references(self) -> list[list[Array]]:
        """The float model's outputs for every sample."""
        return [self.run((), arrays) for arrays in self.samples]

    def measure_alone(self, samples: Sequence[list[Array]], advance: Advance = lambda: None) -> None:
        """Fill in what quantizing each layer alone does; ``advance`` is called for every layer and sample."""
        for arrays in samples:
            base = [field.numpy() for field in self._simulate((), arrays)]
            for i, layer in enumerate(self.layers):
                layer.seen.add(base[self._width + i])
                self._add_alone(i, layer, arrays, base)
                advance()

    def measure_cumulative(self, samples: Sequence[list[Array]], advance: Advance = lambda: None) -> None:
        """Fill in the errors of the model as it is deployed; ``advance`` is called for every sample."""
        visible = [
            self.known.visible[name].name if name in self.known.visible else name for name in self._names
        ]
        real = compile_function(
            tvm.transform.Sequential([InsertObservers(tuple(visible))])(self.quantized), merge=False
        )
        for arrays in samples:
            base = self._simulate((), arrays)
            for layer, plain, found in zip(
                self.layers, base[self._width :], real(arrays)[self._width :], strict=True
            ):
                layer.cumulative.add(plain.numpy(), found)
            advance()

    def ranking(self) -> list[LayerErrors]:
        """The layers that are quantized, the one that alone spoils the outputs most first."""
        return sorted(
            (layer for layer in self.layers if layer.switches), key=lambda layer: -layer.effect.noise
        )

    def _add_alone(self, i: int, layer: LayerErrors, arrays: list[Array], base: Sequence[Array]) -> None:
        weights = [n for n in layer.switches if self.switches[n].kind == WEIGHT]
        activations = [n for n in layer.switches if n not in weights]
        for chosen, distance in ((weights, layer.weights), (activations, layer.activations)):
            if chosen:
                _add(distance, base[: self._width], self.run(chosen, arrays))
        if layer.switches:
            found = self._simulate(layer.switches, arrays)
            layer.alone.add(base[self._width + i], found[self._width + i].numpy())
            _add(layer.effect, base[: self._width], [field.numpy() for field in found[: self._width]])

    def _simulate(self, switches: Iterable[int], arrays: Sequence[Array]) -> list[tvm.runtime.Tensor]:
        chosen = np.zeros(len(self.switches), "float32")
        chosen[list(switches)] = 1
        return self._compiled([*arrays, chosen])

    @cached_property
    def _compiled(self) -> Callable[[Sequence[Array]], list[tvm.runtime.Tensor]]:
        return compile_tensors(
            tvm.transform.Sequential([SwitchQuantization(self.quantized, self._names)])(self.module)
        )

    def _layers(self) -> list[LayerErrors]:
        params = {param.name for param in self.func.params}
        found = [self._layer(name, "input", True) for name in params if name in self.known.grids]
        for op in self.operators:
            follows = self.follows(op)
            if op.output not in self.known.calls or (
                op.kind in MOVEMENT and (follows or not self._rounds(op))
            ):
                continue
            moved_input = op.kind in MOVEMENT and params.issuperset(op.inputs)
            found.append(self._layer(op.output, "input" if moved_input else op.kind, not follows))
        return found

    def _rounds(self, op: OpAnnotation) -> bool:
        return op.output in self.known.grids

    def _layer(self, name: str, op: str, switched: bool) -> LayerErrors:
        grids = self.known.grids.get(name, {})
        grid = next(iter(grids.values()), None)
        own = [i for i, switch in enumerate(self.switches) if switch.name == name]
        scheme = "float" if name in self.known.kept or grid is None else _scheme(grid.dtype)
        return LayerErrors(name, op, scheme, tuple(own) if switched else (), grid)

    def follows(self, op: OpAnnotation) -> bool:
        """Whether it passes on integers on the grid of its input."""
        if op.kind not in SAME_SCALE:
            return False
        grids = [self.known.grids.get(name, {}) for name in (op.output, *op.inputs)]
        return all(_same(grids[0], other) for other in grids[1:])


def _scheme(dtype: str) -> str:
    return "int16x8" if dtype == "int16" else "int8"


def _same(a: dict[str, QuantParams], b: dict[str, QuantParams]) -> bool:
    return a.keys() == b.keys() and all(a[dtype].same(b[dtype]) for dtype in a)


def _add(distance: Distance, wanted: Iterable[Array], found: Iterable[Array]) -> None:
    """All outputs of floating dtype together."""
    for x, y in zip(wanted, found, strict=True):
        if x.dtype.kind == "f":
            distance.add(x, y)
