"""What an emitter sees of one kernel call, and the helpers that all emitters share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array, QuantParams, clamp_bounds
from tvm_qplugin.tflite.writer import Value, Writer

ACTIVATIONS: dict[str, tuple[float | None, float | None]] = {
    "NONE": (None, None),
    "RELU": (0.0, None),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}
"""Fused activations of TFLite and the real bounds that they stand for."""


@dataclass(frozen=True)
class Node:
    """One kernel call: parameters, arguments (tensors of the file or arrays), the output and its grid.

    ``grids`` are those of all tensors by name; ``function`` says what a table stands for.
    """

    writer: Writer
    name: str
    params: Params
    args: tuple[Value | Array, ...]
    out: TensorSpec
    grids: dict[str, QuantParams]
    function: dict[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> QuantParams:
        """The grid of the output."""
        return self.grids[self.name]

    @property
    def wide(self) -> bool:
        """Whether the output is int16."""
        return self.out.dtype == "int16"

    @property
    def per_channel(self) -> bool:
        """Whether the weight has a scale for every output channel."""
        return self.grids[f"{self.name}_weight"].axis is not None

    def value(self, index: int) -> Value:
        """A quantized argument; a constant one is stored in the file."""
        arg = self.args[index]
        if isinstance(arg, Value):
            return arg
        return self.writer.constant(f"{self.name}_{index}", arg, self.grids.get(f"{self.name}_{index}"))

    def array(self, index: int) -> Array:
        """A constant argument."""
        arg = self.args[index]
        if isinstance(arg, Value):
            raise self.refuse(f"its argument {index} is not constant")
        return arg

    def numbers(self, values: Any, what: str) -> Value:
        """Shapes, axes and the like, as an int32 constant."""
        return self.writer.constant(f"{self.name}_{what}", np.asarray(values, "int32"))

    def parameters(self, x: Value, axis: int, weight: Array) -> list[Value]:
        """Weight (outputs along ``axis``) and bias, whose scale is that of the accumulator."""
        grid = self.grids[f"{self.name}_weight"]
        if x.grid is None:
            raise self.refuse("the scale of its input is not known")
        along = None if grid.axis is None else axis
        weights = QuantParams.of(grid.scale, 0, "int8", along)
        bias = QuantParams.of(x.grid.scale * grid.scale, 0, "int32", None if along is None else 0)
        return [
            self.writer.constant(f"{self.name}_weight", weight, weights),
            self.writer.constant(f"{self.name}_bias", self.array(2), bias),
        ]

    def result(self, spec: TensorSpec | None = None) -> Value:
        """The output's tensor."""
        return self.writer.tensor(self.name, spec or self.out, self.grids.get(self.name))

    def emit(self, code: str, inputs: Sequence[Value], options: str = "", **fields: Any) -> Value:
        """An operator that makes the output as it stands."""
        made = self.result()
        self.writer.operator(code, inputs, [made], options, **fields)
        return made

    def activated(
        self, code: str, inputs: Sequence[Value], options: str, builtin: bool = False, **fields: Any
    ) -> Value:
        """An operator with the clamp ``lo``, ``hi`` as its fused activation, or else behind it."""
        lo, hi = int(self.params["lo"]), int(self.params["hi"])
        fused = self.activation(lo, hi, builtin)
        fields["fusedActivationFunction"] = self.writer.enum("ActivationFunctionType", fused or "NONE")
        if fused is not None:
            return self.emit(code, inputs, options, **fields)
        raw = self.writer.tensor(f"{self.name}_raw", self.out, self.grid)
        self.writer.operator(code, inputs, [raw], options, **fields)
        return self.clamp(raw, lo, hi)

    def unfused(self, code: str, inputs: Sequence[Value], options: str = "", **fields: Any) -> Value:
        """An operator, and the clamp ``lo``, ``hi`` as an operator of its own if it does anything."""
        lo, hi = int(self.params["lo"]), int(self.params["hi"])
        if self.activation(lo, hi, True) == "NONE":
            return self.emit(code, inputs, options, **fields)
        raw = self.writer.tensor(f"{self.name}_raw", self.out, self.grid)
        self.writer.operator(code, inputs, [raw], options, **fields)
        return self.clamp(raw, lo, hi)

    def activation(self, lo: int, hi: int, builtin: bool) -> str | None:
        """The activation whose integer bounds these are."""
        for name, bounds in ACTIVATIONS.items():
            if clamp_bounds(self.grid, *bounds, builtin or self.wide) == (lo, hi):
                return name
        return None

    def clamp(self, x: Value, lo: int, hi: int) -> Value:
        """The output is ``x`` clamped to integers: an activation of TFLite's, or MAXIMUM and MINIMUM."""
        name = self.activation(lo, hi, True)
        if name is not None and not (self.wide and name == "RELU_N1_TO_1"):
            return x if name == "NONE" else self.emit(name, [x])
        lowest, highest = clamp_bounds(self.grid, None, None)
        steps = [("MAXIMUM", lo)] * (lo > lowest) + [("MINIMUM", hi)] * (hi < highest)
        for i, (code, bound) in enumerate(steps):
            limit = np.full([1] * len(self.out.shape), bound, self.out.dtype)
            other = self.writer.constant(f"{self.name}_{code.lower()}", limit, self.grid)
            last = i == len(steps) - 1
            made = self.result() if last else self.writer.tensor(f"{self.name}_low", self.out, self.grid)
            self.writer.operator(code, [x, other], [made], "MaximumMinimumOptions")
            x = made
        return x

    def check_width(self, x: Value, what: str) -> None:
        """ModelError for a layer from int8 to int16."""
        if (x.spec.dtype == "int16") != self.wide:
            raise self.refuse(
                f"TFLite has no {what} from {x.spec.dtype} to {self.out.dtype}, as recurrent cells of int8 "
                "models have: use recipe int16x8 or dynamic"
            )

    def refuse(self, reason: str) -> ModelError:
        """The error for what has no TFLite operator."""
        return ModelError(f"{self.name} cannot be exported to .tflite: {reason}")
