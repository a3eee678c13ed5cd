"""What an emitter sees of one operator on floats: as ``Node``, with constants stored as the scheme says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.tflite.node import ACTIVATIONS, Node
from tvm_qplugin.tflite.writer import Value

HYBRID_DENSE = 9
"""The version of FULLY_CONNECTED that quantizes its input asymmetrically, with one scale for the weight."""


@dataclass(frozen=True)
class FloatNode(Node):
    """``halves``: arguments that are stored as float16; ``weight_grid``: that of an int8 weight."""

    halves: frozenset[int] = frozenset()
    weight_grid: QuantParams | None = None

    @property
    def per_channel(self) -> bool:
        """Whether the weight is int8 with a scale for every output channel."""
        return self.weight_grid is not None and self.weight_grid.axis is not None

    def value(self, index: int) -> Value:
        """An argument; a constant one is stored in the file."""
        arg = self.args[index]
        return arg if isinstance(arg, Value) else self.stored(f"{self.name}_{index}", index, arg)

    def stored(self, name: str, index: int, array: Array) -> Value:
        """A float constant: as it is, or as float16 and DEQUANTIZE."""
        if index not in self.halves:
            return self.writer.constant(name, array)
        half = self.writer.constant(f"{name}_f16", array.astype("float16"))
        made = self.writer.tensor(name, TensorSpec(half.spec.shape, "float32"))
        self.writer.operator("DEQUANTIZE", [half], [made])
        return made

    def parameters(self, x: Value, axis: int, weight: Array) -> list[Value]:
        """Weight, int8 or float, and bias."""
        bias = self.stored(f"{self.name}_bias", 2, self.array(2))
        name, grid = f"{self.name}_weight", self.weight_grid
        if grid is None:
            return [self.stored(name, 1, weight), bias]
        along = None if grid.axis is None else axis
        return [self.writer.constant(name, weight, QuantParams.of(grid.scale, 0, "int8", along)), bias]

    def activated(
        self, code: str, inputs: Sequence[Value], options: str, builtin: bool = False, **fields: Any
    ) -> Value:
        """An operator with the clamp ``lo``, ``hi`` as its fused activation, or else behind it."""
        if code == "FULLY_CONNECTED" and self.weight_grid is not None:
            fields["asymmetricQuantizeInputs"] = True
        fields["version"] = self.version(code, fields)
        lo, hi = self.params.get("lo"), self.params.get("hi")
        fused = next((name for name, bounds in ACTIVATIONS.items() if bounds == (lo, hi)), None)
        fields["fusedActivationFunction"] = self.writer.enum("ActivationFunctionType", fused or "NONE")
        if fused is not None:
            return self.emit(code, inputs, options, **fields)
        raw = self.writer.tensor(f"{self.name}_raw", self.out)
        self.writer.operator(code, inputs, [raw], options, **fields)
        return self.clamped(raw, lo, hi)

    def unfused(self, code: str, inputs: Sequence[Value], options: str = "", **fields: Any) -> Value:
        """An operator, and the clamp ``lo``, ``hi`` as an operator of its own if there is one."""
        lo, hi = self.params.get("lo"), self.params.get("hi")
        if (lo, hi) == (None, None):
            return self.emit(code, inputs, options, **fields)
        raw = self.writer.tensor(f"{self.name}_raw", self.out)
        self.writer.operator(code, inputs, [raw], options, **fields)
        return self.clamped(raw, lo, hi)

    def version(self, code: str, fields: Mapping[str, Any]) -> int:
        """The version of the operator that TFLite's converter gives a layer like this one."""
        hybrid = self.weight_grid is not None
        if code == "CONV_2D":
            grouped = self.params["groups"] > 1
            return 6 if grouped else 5 if self.per_channel else 2 if hybrid else 1
        if code == "DEPTHWISE_CONV_2D":
            return 6 if hybrid else 2 if max(self.params["dilation"]) > 1 else 1
        if code == "FULLY_CONNECTED" and hybrid:
            return 12 if self.per_channel else HYBRID_DENSE
        return 5 if fields.get("keepNumDims") else 1

    def clamped(self, x: Value, lo: float | None, hi: float | None) -> Value:
        """The output is ``x`` between two bounds: a stand-alone activation, or MAXIMUM and MINIMUM."""
        for name, bounds in ACTIVATIONS.items():
            if bounds == (lo, hi) and name != "NONE":
                return self.emit(name, [x])
        steps = [(code, bound) for code, bound in (("MAXIMUM", lo), ("MINIMUM", hi)) if bound is not None]
        for i, (code, bound) in enumerate(steps):
            other = self.writer.constant(f"{self.name}_{code.lower()}", np.array(bound, "float32"))
            last = i == len(steps) - 1
            made = self.result() if last else self.writer.tensor(f"{self.name}_low", self.out)
            self.writer.operator(code, [x, other], [made], "MaximumMinimumOptions")
            x = made
        return x
