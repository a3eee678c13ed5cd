"""What quantization is asked of a tensor or an operator, and the annotation that carries it in the IR."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from tvm_qplugin.core.qparams import INTEGER_RANGE, QuantParams

REDUCED = 64
"""The largest code of weights of reduced range: sums of two products with uint8 fit int16."""


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantized: dtype and the way its range becomes parameters.

    ``reduced``: codes of a symmetric spec keep to [-``REDUCED``, ``REDUCED``].
    """

    dtype: str = "int8"
    symmetric: bool = False
    axis: int | None = None
    narrow: bool = False
    observer: str = "min_max"
    dynamic: bool = False
    reduced: bool = False

    def params(self, low: Any, high: Any) -> QuantParams:
        """Parameters for a range (scalars, or one value per channel along ``axis``)."""
        if self.reduced:
            wider = INTEGER_RANGE[self.dtype][1] / REDUCED
            low, high = np.multiply(low, wider), np.multiply(high, wider)
        return QuantParams.from_range(
            low, high, self.dtype, symmetric=self.symmetric, narrow=self.narrow, axis=self.axis
        )


@dataclass(frozen=True)
class FixedSpec:
    """Parameters that the operator fixes, whatever the data: softmax, sigmoid, tanh."""

    scale: float
    zero_point: int
    dtype: str = "int8"

    def params(self) -> QuantParams:
        """The fixed parameters."""
        return QuantParams.of(self.scale, self.zero_point, self.dtype)


@dataclass(frozen=True)
class SharedSpec:
    """The same parameters as another tensor."""

    tensor: str


Spec = QuantSpec | FixedSpec | SharedSpec

ACTIVATION = QuantSpec()
ACTIVATION16 = QuantSpec("int16", symmetric=True)
WEIGHT = QuantSpec(symmetric=True, axis=0, narrow=True)
FIXED = {
    "softmax": FixedSpec(1 / 256, -128),
    "sigmoid": FixedSpec(1 / 256, -128),
    "tanh": FixedSpec(1 / 128, 0),
}
FIXED16 = {kind: FixedSpec(2.0**-15, 0, "int16") for kind in FIXED}
SCHEMES: dict[str, tuple[QuantSpec, dict[str, FixedSpec]]] = {
    "int8": (ACTIVATION, FIXED),
    "int16x8": (ACTIVATION16, FIXED16),
}
"""Of every integer scheme: activations, and outputs that the operator fixes."""


@dataclass(frozen=True)
class OpSpec:
    """How the tensors of one operator are quantized; None stays float."""

    activation: QuantSpec | None = ACTIVATION
    weight: QuantSpec | None = WEIGHT
    bias: QuantSpec | None = field(default_factory=lambda: QuantSpec("int32", symmetric=True))
    output: Spec | None = ACTIVATION


@dataclass(frozen=True)
class OpAnnotation:
    """One operator as quantization sees it: a group of bindings that becomes one kernel.

    ``output`` is the name of the tensor that the group puts out, ``inputs`` the tensors it reads,
    ``members`` all bindings inside, ``spec`` None where it stays float, then with a ``reason``.
    ``scheme`` is that of an integer one, ``result`` that of what it puts out where it is another one.
    """

    kind: str
    output: str
    inputs: tuple[str, ...]
    members: tuple[str, ...]
    weight: QuantSpec | None = None
    integer: bool = True
    reason: str = ""
    scheme: str = "int8"
    result: str = ""

    @property
    def output_scheme(self) -> str:
        """The scheme on whose grid the result is."""
        return self.result or self.scheme


def second(name: str, scheme: str) -> str:
    """The key of a tensor on the grid that operators of another scheme than its own read it on."""
    return f"{name} as {scheme}"


def tensor_of(key: str) -> str:
    """The name of the tensor that a key of ``Annotation.tensors`` is about."""
    return key.partition(" as ")[0]


@dataclass(frozen=True)
class Annotation:
    """All operators, and the specification of every tensor that is quantized.

    Of a tensor that operators of several schemes make or read, its own name stands for the grid of the
    one that makes it (where that is float, of the first that reads it), ``second`` for the others.
    """

    operators: Mapping[str, OpAnnotation]
    tensors: Mapping[str, Spec]

    def with_tensors(self, changed: Mapping[str, Spec]) -> Annotation:
        """The same with some specifications replaced."""
        return replace(self, tensors={**self.tensors, **changed})

    def key(self, op: OpAnnotation, name: str) -> str:
        """The key of a tensor on the grid on which an operator reads or writes it."""
        other = second(name, op.output_scheme if name == op.output else op.scheme)
        return other if other in self.tensors else name

    def observed(self) -> list[str]:
        """Tensors whose range has to be measured."""
        return list(self.observers())

    def spec_of(self, name: str) -> QuantSpec:
        """How an observed tensor is quantized; those that share parameters share it."""
        spec = self.tensors[name]
        spec = self.tensors[spec.tensor] if isinstance(spec, SharedSpec) else spec
        return spec if isinstance(spec, QuantSpec) else ACTIVATION

    def observers(self) -> dict[str, str]:
        """The observer of every tensor that is measured; tensors that share parameters share it."""
        found: dict[str, str] = {}
        for key, spec in self.tensors.items():
            if not isinstance(spec, FixedSpec):
                found.setdefault(tensor_of(key), self.spec_of(key).observer)
        return found

    def dumps(self) -> str:
        """JSON, to be kept as a function attribute."""
        return json.dumps(
            {
                "operators": [asdict(op) for op in self.operators.values()],
                "tensors": {
                    name: {"kind": type(spec).__name__, **asdict(spec)} for name, spec in self.tensors.items()
                },
            }
        )

    @classmethod
    def loads(cls, text: str) -> Annotation:
        """The inverse of ``dumps``."""
        data = json.loads(text)
        operators = (_operator(item) for item in data["operators"])
        return cls(
            {op.output: op for op in operators},
            {name: _spec(dict(item)) for name, item in data["tensors"].items()},
        )


def _operator(item: dict[str, Any]) -> OpAnnotation:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}
    weight = fields.pop("weight")
    return OpAnnotation(**fields, weight=QuantSpec(**weight) if weight else None)


def _spec(item: dict[str, Any]) -> Spec:
    kinds: dict[str, type] = {c.__name__: c for c in (QuantSpec, FixedSpec, SharedSpec)}
    spec: Spec = kinds[item.pop("kind")](**item)
    return spec
