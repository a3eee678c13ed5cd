"""A measured model: its figures, the limits that they must hold, and how both are kept and printed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _metrics import METRICS
from real_models import MODELS, RealModel
from rich.table import Table

from tvm_qplugin.core.recipe import find_recipe

SIZE_RATIOS = {"int8": 0.30, "int16x8": 0.30, "fp16": 0.505, "dynamic": 0.27}  # of the float ONNX,
SIZE_RATIO_FROM = 3_000_000  # for models above that size
TOO_SMALL = "fewer than 1024"  # what layers say that storing small would not pay for
BELOW_ONNXRUNTIME = 0.3
PREPARE_SECONDS, PREPARE_BYTES = 90.0, 2e9


@dataclass(frozen=True)
class Options:
    """What a row was measured with; a kept row is used again only under equal options."""

    samples: int | None = None
    exact: int = 50
    calibration: int | None = None
    recipe: str = "int8"
    accuracy: str | None = None

    @property
    def scheme(self) -> str:
        """That of the recipe."""
        return find_recipe(self.recipe).scheme


@dataclass(frozen=True)
class Check:
    """One limit: what was found, what was asked for, whether it is held."""

    name: str
    found: str
    limit: str
    held: bool


@dataclass(frozen=True)
class Row:
    """All that was measured on one model; sizes in bytes, times in seconds. ``error``: it failed."""

    model: str
    options: Options
    error: str = ""
    samples: int = 0
    float_metric: float = 0.0
    int8_metric: float = 0.0
    drop: float = 0.0
    agreement: float | None = None
    sqnr: float = 0.0
    differing: int = 0
    compared: int = 0
    exact_samples: int = 0
    quantize_seconds: float = 0.0
    build_seconds: float = 0.0
    peak_bytes: int = 0
    artifact_bytes: int = 0
    weight_bytes: int = 0
    float_bytes: int = 0
    calibrated: int = 0
    integer_operators: int = 0
    islands: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        """The inverse of ``asdict``."""
        return cls(**{**data, "options": Options(**data["options"])})

    def checks(self) -> list[Check]:
        """The limits of the acceptance table, as far as they apply to this model and run."""
        model = MODELS[self.model]
        if self.error:
            return [Check("runs", self.error, "no error", False)]
        found = [self._islands(model), self._size(model)]
        if self.options.accuracy is None:
            found.append(self._prepare())
        if self.exact_samples:
            text = f"{self.differing} of {self.compared:,} elements"
            found.append(Check("equals the oracle", text, "0 differing", self.differing == 0))
        if self.float_bytes > SIZE_RATIO_FROM:
            ratio, most = self.artifact_bytes / self.float_bytes, SIZE_RATIOS.get(self.options.scheme, 1.0)
            found.append(Check("size / float ONNX", f"{ratio:.3f}", f"<= {most}", ratio <= most))
        return found + self._accuracy(model)

    def _islands(self, model: RealModel) -> Check:
        unnamed = {
            name: why
            for name, why in self.islands.items()
            if name not in model.islands and TOO_SMALL not in why
        }
        text = "; ".join(f"{name} ({why})" for name, why in unnamed.items()) or "none"
        return Check("unnamed float islands", text, "none", not unnamed)

    def _size(self, model: RealModel) -> Check:
        extra = self.artifact_bytes - self.weight_bytes
        held = extra <= model.max_extra
        return Check("size beside weights", f"{extra:,} bytes", f"<= {model.max_extra:,}", held)

    def _prepare(self) -> Check:
        seconds, memory = self.quantize_seconds + self.build_seconds, self.peak_bytes
        held = seconds < PREPARE_SECONDS and memory < PREPARE_BYTES
        text = f"{seconds:.1f} s, {memory / 1e9:.2f} GB"
        return Check("calibrate + quantize + build", text, "< 90 s, < 2 GB", held)

    def _accuracy(self, model: RealModel) -> list[Check]:
        best = self.options.accuracy is not None and self.options.scheme == "int8"
        found, most = [], model.drop_limit(self.options.scheme)
        if best and model.best is not None and self.agreement is not None:
            most, agreement = model.best
            text, limit = f"{self.agreement:.2f} %", f">= {agreement} %"
            held = self.agreement >= agreement - 1e-6
            found.append(Check("agreement with float", text, limit, held))
        if most is not None:
            text, limit = f"{self.drop:+.2f} points", f"<= {most}"
            found.append(Check("drop", text, limit, self.drop <= most + 1e-9))
        if self.options.samples is None:
            off = abs(self.float_metric - model.reference.float_metric)
            text, limit = f"{self.float_metric:.3f}", f"{model.reference.float_metric} as in DATA.md"
            found.append(Check("float metric", text, limit, off <= model.reference.tolerance))
        if self.options.samples is None and model.reference.int8 is not None:
            least = model.reference.int8 - BELOW_ONNXRUNTIME
            held = self.int8_metric >= least - 5e-3
            found.append(Check("onnxruntime's int8", f"{self.int8_metric:.2f}", f">= {least:.2f}", held))
        return found


class Kept:
    """Finished rows in a JSON file, written after each."""

    def __init__(self, path: Path | None, fresh: bool) -> None:
        self._path = path
        self._rows: dict[str, Row] = {}
        if path is not None and path.is_file() and not fresh:
            self._rows = {name: Row.from_json(data) for name, data in json.loads(path.read_text()).items()}

    def find(self, name: str, options: Options) -> Row | None:
        """A row that was measured under the same options without an error."""
        row = self._rows.get(name)
        return row if row is not None and row.options == options and not row.error else None

    def add(self, row: Row) -> None:
        """Keep a row."""
        self._rows[row.model] = row
        if self._path is not None:
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            temporary.write_text(
                json.dumps({name: asdict(row) for name, row in self._rows.items()}, indent=1)
            )
            os.replace(temporary, self._path)


HEADERS = (
    *("model", "metric", "n", "float", "int8", "drop", "ORT int8", "agree %", "SQNR dB"),
    *("differing", "size KB", "beside", "/ float", "prepare s", "peak GB", "float islands", "limits"),
)
SHORT = ("model", "metric", "float", "int8", "drop", "agree %", "SQNR dB", "size KB", "limits")
LEFT = ("model", "metric", "limits")


def cells(row: Row) -> list[str]:
    """A row of the final table."""
    model = MODELS[row.model]
    if row.error:
        return [row.model, *[""] * (len(HEADERS) - 3), row.error, "FAIL"]
    digits = 2 if model.metric in ("top1", "mse") else 4
    missed = [check.name for check in row.checks() if not check.held]
    return [
        row.model,
        METRICS[model.metric].unit,
        str(row.samples),
        f"{row.float_metric:.{digits}f}",
        f"{row.int8_metric:.{digits}f}",
        f"{row.drop:+.2f}",
        "" if model.reference.int8 is None else f"{model.reference.int8:.2f}",
        "" if row.agreement is None else f"{row.agreement:.1f}",
        f"{row.sqnr:.1f}",
        f"{row.differing} / {row.exact_samples} samples",
        f"{row.artifact_bytes / 1000:.0f}",
        f"{(row.artifact_bytes - row.weight_bytes) / 1000:.0f}",
        f"{row.artifact_bytes / row.float_bytes:.3f}",
        f"{row.quantize_seconds + row.build_seconds:.1f}",
        f"{row.peak_bytes / 1e9:.2f}",
        str(len(row.islands)),
        "MISSED: " + ", ".join(missed) if missed else "ok",
    ]


def as_markdown(rows: list[Row]) -> str:
    """The final table in Markdown."""
    lines = [HEADERS, ["---"] * len(HEADERS), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_table(rows: list[Row]) -> Table:
    """The final table for a terminal: the columns that fit, and which limits are missed."""
    shown = [HEADERS.index(name) for name in SHORT]
    table = Table()
    for name in SHORT:
        table.add_column(name, no_wrap=name != "limits", justify="left" if name in LEFT else "right")
    for row in rows:
        line = cells(row)
        table.add_row(*[line[i] for i in shown], style="red" if line[-1] != "ok" else None)
    return table
