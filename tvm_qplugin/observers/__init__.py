"""Observers: what calibration remembers of a tensor."""

from __future__ import annotations

from typing import Protocol, Self

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.registry import Registry
from tvm_qplugin.core.spec import ACTIVATION, QuantSpec


class Observer(Protocol):
    """Sees one tensor's values, sample after sample, in memory that does not grow.

    ``count`` is the number of samples seen. Its class is callable without arguments.
    """

    count: int

    def update(self, x: Array) -> None:
        """Take in one sample's value; raises CalibrationError for NaN, Inf or an empty array."""

    def merge(self, other: Self) -> None:
        """Take in what another observer of the same tensor saw."""

    def range(self, spec: QuantSpec = ACTIVATION) -> tuple[float, float]:
        """The range to quantize, low and high, for a tensor that is quantized as ``spec`` says."""

    @classmethod
    def resume(cls, low: float, high: float, count: int) -> Self:
        """The observer as it was when its range was ``(low, high)`` after ``count`` samples."""


OBSERVERS: Registry[type[Observer]] = Registry(
    "observer",
    {
        "min_max": "tvm_qplugin.observers.min_max:MinMax",
        "moving_average": "tvm_qplugin.observers.moving_average:MovingAverage",
    },
)


def find_observer(name: str) -> type[Observer]:
    """An observer class by name; CalibrationError lists what is known."""
    if name not in OBSERVERS:
        raise CalibrationError(f"observer {name!r} is unknown; use one of {', '.join(sorted(OBSERVERS))}")
    return OBSERVERS[name]
