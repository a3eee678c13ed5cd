"""Observers: what calibration remembers of a tensor."""

from __future__ import annotations

from typing import Protocol, Self

from tvm_qplugin.core.calibration import CalibrationTable, TensorRange
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.recipe import DEFAULT_OBSERVER
from tvm_qplugin.core.registry import Registry
from tvm_qplugin.core.spec import ACTIVATION, QuantSpec


class Observer(Protocol):
    """Sees one tensor's values, sample after sample, in memory that does not grow.

    ``count`` is the number of samples seen. Its class is callable without arguments. One whose class
    ``chooses`` has a ``histogram``, which it gets back as a fourth argument of ``resume``, and chooses its
    range when the table is used.
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
        "entropy": "tvm_qplugin.observers.entropy:Entropy",
        "least_mse": "tvm_qplugin.observers.least_mse:LeastMSE",
        "min_max": "tvm_qplugin.observers.min_max:MinMax",
        "moving_average": "tvm_qplugin.observers.moving_average:MovingAverage",
        "per_channel": "tvm_qplugin.observers.per_channel:PerChannel",
        "percentile": "tvm_qplugin.observers.percentile:Percentile",
    },
)


def range_of(seen: TensorRange, spec: QuantSpec = ACTIVATION) -> tuple[float, float]:
    """The range to quantize of an entry of a calibration table."""
    return resumed(seen).range(spec) if _chooses(seen) else (seen.low, seen.high)


def resumed(seen: TensorRange) -> Observer:
    """The observer that made an entry of a calibration table, as it was then."""
    kind = find_observer(seen.observer)
    if not _chooses(seen):
        return kind.resume(seen.low, seen.high, seen.count)
    return kind.resume(seen.low, seen.high, seen.count, seen.histogram)  # type: ignore[call-arg]


def _chooses(seen: TensorRange) -> bool:
    return seen.histogram is not None and bool(getattr(find_observer(seen.observer), "chooses", False))


def chosen_by(table: CalibrationTable, observer: str) -> CalibrationTable:
    """The table with ranges that ``observer`` chooses from its histograms; CalibrationError without them."""
    able = observer == DEFAULT_OBSERVER or getattr(find_observer(observer), "chooses", False)
    for name, seen in table.ranges.items():
        if seen.observer != observer and (seen.histogram is None or not able):
            raise CalibrationError(
                f"observer {observer!r} cannot choose the range of {name!r} from a table that was made with "
                f"{seen.observer!r}: calibrate again with {observer!r}"
            )
    return table.seen_by(dict.fromkeys(table.ranges, observer))


def find_observer(name: str) -> type[Observer]:
    """An observer class by name; CalibrationError lists what is known."""
    if name not in OBSERVERS:
        raise CalibrationError(f"observer {name!r} is unknown; use one of {', '.join(sorted(OBSERVERS))}")
    return OBSERVERS[name]
