"""What calibration knows of a model: the range of every observed tensor, and how it is stored."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.histogram import Histogram
from tvm_qplugin.core.qparams import Array

CalibrationHook = Callable[[str, Array], None]
"""``(tensor name, value)``: called for every observed tensor of every sample; the value is read-only."""

FORMAT = "qplugin.calibration"
VERSION = 1
LARGEST = 3.4028234663852886e38
"""The largest float32."""


@dataclass(frozen=True)
class TensorRange:
    """The range of one tensor as an observer saw it over ``count`` samples.

    With a ``histogram`` ``low`` and ``high`` are the extremes, and the observer chooses the range when the
    table is used (``observers.range_of``).
    """

    low: float
    high: float
    observer: str
    count: int
    histogram: Histogram | None = None

    def merge(self, other: TensorRange) -> TensorRange:
        """Both together: the mean by count for ``moving_average``, the union for every other observer."""
        count = self.count + other.count
        if self.observer == "moving_average":
            low = (self.low * self.count + other.low * other.count) / count
            high = (self.high * self.count + other.high * other.count) / count
            return TensorRange(low, high, self.observer, count)
        low, high = min(self.low, other.low), max(self.high, other.high)
        return TensorRange(low, high, self.observer, count, self._merged(other))

    def seen_by(self, observer: str) -> TensorRange:
        """The same with another observer; one that does not choose from histograms gets the extremes."""
        return replace(self, observer=observer)

    def _merged(self, other: TensorRange) -> Histogram | None:
        if self.histogram is None or other.histogram is None:
            return None
        merged = self.histogram.copy()
        merged.merge(other.histogram)
        return merged

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        plain = {"low": self.low, "high": self.high, "observer": self.observer, "count": self.count}
        return plain if self.histogram is None else {**plain, "histogram": self.histogram.to_json()}


@dataclass(frozen=True)
class CalibrationTable:
    """Ranges by tensor name, of the model with ``model_hash``, over ``samples`` samples."""

    model_hash: str
    samples: int
    ranges: dict[str, TensorRange]

    def merge(self, other: CalibrationTable) -> CalibrationTable:
        """The table of both sets of samples; CalibrationError unless model, tensors, observers agree."""
        if self.model_hash != other.model_hash:
            raise CalibrationError(
                f"tables of different models cannot be merged: {self.model_hash} and {other.model_hash}; "
                "calibrate both from the same model"
            )
        odd = sorted(self.ranges.keys() ^ other.ranges.keys())
        if odd:
            raise CalibrationError(
                f"tables of different tensors cannot be merged: only one of them has {_some(odd)}; "
                "calibrate both with the same names"
            )
        for name, mine in self.ranges.items():
            if mine.observer != other.ranges[name].observer:
                raise CalibrationError(
                    f"tensor {name!r} was observed by {mine.observer!r} in one table and by "
                    f"{other.ranges[name].observer!r} in the other; calibrate both with the same observer"
                )
        ranges = {name: mine.merge(other.ranges[name]) for name, mine in self.ranges.items()}
        return CalibrationTable(self.model_hash, self.samples + other.samples, ranges)

    def seen_by(self, observers: Mapping[str, str]) -> CalibrationTable:
        """What other observers, by tensor, would have made of the same histograms; the rest stays."""
        ranges = dict(self.ranges)
        for name, observer in observers.items():
            if ranges[name].histogram is not None:
                ranges[name] = ranges[name].seen_by(observer)
        return replace(self, ranges=ranges)

    def check(self, model_hash: str, names: Iterable[str]) -> None:
        """Raise CalibrationError unless the table is of this model and has all these tensors."""
        if self.model_hash != model_hash:
            raise CalibrationError(
                f"the calibration table belongs to another model: it is of {self.model_hash}, this model is "
                f"{model_hash}; calibrate this model for this target, or use the model that the table is of"
            )
        names = list(names)
        missing = [name for name in names if name not in self.ranges]
        if missing:
            raise CalibrationError(
                f"the calibration table has no range for {_some(missing)}; it was made with other names or "
                "another recipe: calibrate again"
            )
        for name in names:
            low, high = self.ranges[name].low, self.ranges[name].high
            if max(-low, high) > LARGEST:
                raise CalibrationError(
                    f"the range [{low:g}, {high:g}] of {name!r} is beyond float32: calibrate again"
                )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back exactly."""
        ranges = {name: item.to_json() for name, item in self.ranges.items()}
        head = {"format": FORMAT, "version": VERSION}
        return {**head, "model_hash": self.model_hash, "samples": self.samples, "ranges": ranges}

    @classmethod
    def from_json(cls, data: Any) -> CalibrationTable:
        """The inverse of ``to_json``; CalibrationError for anything else."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CalibrationError(
                f'not a calibration table: an object with "format": "{FORMAT}" was expected; '
                "give a file written by CalibrationTable.save"
            )
        if data.get("version") != VERSION:
            raise CalibrationError(
                f"calibration table of version {data.get('version')}, this program reads version {VERSION}: "
                "update tvm-qplugin or calibrate again"
            )
        try:
            ranges = {str(name): _range(item) for name, item in data["ranges"].items()}
            if _of(int, data["samples"]) < 0:
                raise ValueError(f"samples {data['samples']}")
            return cls(_of(str, data["model_hash"]), data["samples"], ranges)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(f"damaged calibration table ({error!r}): calibrate again") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table; the file is complete or as it was before."""
        target = Path(path)
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            draft.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False), encoding="utf-8")
            os.replace(draft, target)
        except OSError as error:
            raise CalibrationError(
                f"cannot write {target} ({error.strerror or error}): choose a path that can be written"
            ) from error
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationTable:
        """Read a table; CalibrationError names the file and what is wrong with it."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise CalibrationError(
                f"{path} cannot be read ({error.strerror or error}): give the path of a calibration table"
            ) from None
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"{path} is not JSON ({error}): calibrate again") from None
        try:
            return cls.from_json(data)
        except CalibrationError as error:
            raise CalibrationError(f"{path}: {error}") from None


def _range(item: dict[str, Any]) -> TensorRange:
    counted = item.get("histogram")
    found = TensorRange(
        float(item["low"]),
        float(item["high"]),
        _of(str, item["observer"]),
        _of(int, item["count"]),
        None if counted is None else Histogram.from_json(counted),
    )
    if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low <= found.high):
        raise ValueError(f"range [{found.low}, {found.high}]")
    if found.count < 1:
        raise ValueError(f"count {found.count}")
    return found


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} where {kind.__name__} was expected")
    return value


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
