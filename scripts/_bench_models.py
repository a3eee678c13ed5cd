"""What bench.py can run: the zoo's networks, made when they are needed, and the real models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import model_zoo
import numpy as np
import real_models
from real_models import MODELS, ROOT

from tvm_qplugin.core.qparams import Array

ZOO_FOLDER = ROOT / "build" / "zoo"
ZOO_SAMPLES = 8


class Model(Protocol):
    """A float ONNX file with samples, and what TFLite's converter made of the same net, if that exists."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def calibration(self) -> Iterable[Array]: ...
    @property
    def tflite_path(self) -> Path | None: ...


@dataclass(frozen=True)
class ZooModel:
    """A network of model_zoo.py, in ``folder``; calibrated on noise."""

    name: str
    folder: Path = ZOO_FOLDER

    @property
    def path(self) -> Path:
        """The float ONNX file; written when it is missing."""
        path = self.folder / f"{self.name}.onnx"
        return path if path.is_file() else model_zoo.write(self.name, self.folder)

    @property
    def calibration(self) -> list[Array]:
        """Noise from -1 to 1 [1, 3, H, W]."""
        size, rng = model_zoo.ZOO[self.name].size, np.random.default_rng(0)
        return [rng.uniform(-1, 1, (1, 3, size, size)).astype("float32") for _ in range(ZOO_SAMPLES)]

    @property
    def tflite_path(self) -> None:
        """There is none with these weights."""
        return None


def chosen(names: list[str], folder: Path = ZOO_FOLDER) -> list[Model]:
    """Models by name or the beginning of a name (none: all); SystemExit for others and absent data."""
    table: dict[str, Model] = {name: ZooModel(name, folder) for name in model_zoo.ZOO}
    table |= MODELS
    found: list[Model] = []
    for name in names or list(table):
        fits = [name] if name in table else [key for key in table if key.startswith(name)]
        if not fits:
            raise SystemExit(f"no model {name!r}; the models are: {', '.join(table)}")
        found += [table[key] for key in fits if table[key] not in found]
    real_models.require_data([model for model in found if isinstance(model, real_models.RealModel)])
    return found
