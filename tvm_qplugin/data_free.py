"""Ranges without data: synthetic samples, their activations matched to what batch norms remember."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm.ir import IRModule

from tvm_qplugin.builder import Runner, compile_function
from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.calibration import CalibrationTable, TensorRange
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.insert_affine import InsertAffine
from tvm_qplugin.passes.insert_observers import InsertObservers
from tvm_qplugin.passes.note_batch_norm import Moments, norms_of
from tvm_qplugin.progress import progress_bar
from tvm_qplugin.samples import inputs_of

DATA_FREE = "data-free"
"""What is given in place of samples, and the observer that stands in the table."""

SAMPLES, SEED = 16, 0
_SETTLED = 1e-3
_FLAT = 1e-6
"""A channel whose deviation is below this share of its tensor's has none that could be scaled."""

WARNING = (
    "calibrated without data: ranges are estimates from batch norms; samples of what the model will see, "
    "even a few, give better accuracy"
)


def data_free_table(
    module: IRModule,
    names: Sequence[str],
    input_range: tuple[float, float] | None,
    *,
    model_hash: str,
    progress: bool = False,
) -> CalibrationTable:
    """Ranges of tensors of a canonical float module that was loaded with ``statistics=True``.

    Noise in ``input_range``, coarse and fine, runs through the model, where layer by layer every channel that
    a batch norm put out is shifted and scaled to the mean and deviation that it had in training (after
    Nagel et al., arXiv 1906.04721, section 4.2, and Cai et al., ZeroQ, arXiv 2001.00281). The
    extremes of that are the ranges. Raises CalibrationError without statistics or without a range.
    """
    norms = _present(module)
    if not norms:
        raise CalibrationError(
            "no batch norms with statistics are left in the model, from which ranges could be estimated: "
            "calibrate with samples, or give the model as it was before they were folded"
        )
    if input_range is None or not input_range[0] < input_range[1]:
        raise CalibrationError(
            f"input_range {input_range}: without data the range of the inputs has to be given, (low, high), "
            "such as (-1, 1); for a command by --preprocess"
        )
    samples = list(_noise(module, *input_range))
    affine: IRModule = tvm.transform.Sequential([InsertAffine(tuple(norms))])(module)
    fitted = _fitted(affine, norms, samples, progress)
    extremes = _extremes(affine, names, samples, fitted)
    ranges = {name: TensorRange(*both, DATA_FREE, SAMPLES) for name, both in extremes.items()}
    return CalibrationTable(model_hash, SAMPLES, ranges)


def _present(module: IRModule) -> dict[str, Moments]:
    """Statistics of the tensors that the module still has, in order of execution."""
    known = norms_of(module)
    variables = [var for var, _ in ir.bindings(ir.main_function(module)) if var.name in known]
    return {v.name: known[v.name] for v in variables if ir.spec_of(v).shape[-1:] == known[v.name].mean.shape}


@dataclass
class _Sums:
    """Of all values of a tensor by channel: how many, their sum and the sum of squares, float64."""

    count: int = 0
    total: Array | float = 0.0
    squares: Array | float = 0.0

    def add(self, value: Array) -> None:
        rows = value.reshape(-1, value.shape[-1]).astype("float64")
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + np.square(rows).sum(0)

    def affine(self, wanted: Moments) -> list[Array]:
        """Factor and offset that give the wanted moments."""
        mean = np.asarray(self.total) / self.count
        std = np.sqrt(np.maximum(np.asarray(self.squares) / self.count - mean**2, 0))
        flat = std <= _FLAT * max(float(std.max()), _FLAT)
        factor = np.where(flat, 1.0, wanted.std / np.where(flat, 1.0, std))
        return [factor.astype("float32"), (wanted.mean - factor * mean).astype("float32")]


def _fitted(
    affine: IRModule, norms: Mapping[str, Moments], samples: Sequence[list[Array]], progress: bool
) -> list[Array]:
    """Factors and offsets: after each round one more layer sees what those before it were fitted to."""
    names = [f"{name}_raw" for name in norms]
    run = compile_function(tvm.transform.Sequential([InsertObservers(tuple(names))])(affine))
    fitted = [part for m in norms.values() for part in (np.ones_like(m.mean), np.zeros_like(m.mean))]
    with progress_bar(progress, names, label="match statistics", unit="layers") as advance:
        for _ in names:
            sums = _sums(run, samples, fitted, len(names))
            new = [part for s, wanted in zip(sums, norms.values(), strict=True) for part in s.affine(wanted)]
            moved = max(float(np.abs(a - b).max()) for a, b in zip(new, fitted, strict=True))
            fitted = new
            advance()
            if moved < _SETTLED:
                break
    return fitted


def _sums(run: Runner, samples: Sequence[list[Array]], fitted: list[Array], count: int) -> list[_Sums]:
    sums = [_Sums() for _ in range(count)]
    for arrays in samples:
        for seen, value in zip(sums, run([*arrays, *fitted])[-count:], strict=True):
            seen.add(value)
    return sums


def _extremes(
    affine: IRModule, names: Sequence[str], samples: Sequence[list[Array]], fitted: list[Array]
) -> dict[str, tuple[float, float]]:
    run = compile_function(tvm.transform.Sequential([InsertObservers(tuple(names))])(affine))
    found: dict[str, tuple[float, float]] = {}
    for arrays in samples:
        for name, value in zip(names, run([*arrays, *fitted])[-len(names) :], strict=True):
            low, high = found.get(name, (np.inf, -np.inf))
            found[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return found


def _noise(module: IRModule, low: float, high: float) -> list[list[Array]]:
    """Samples that reach both ends of the range; integer inputs are 0."""
    rng = np.random.default_rng(SEED)
    return [[_array(rng, item.spec, low, high) for item in inputs_of(module)] for _ in range(SAMPLES)]


def _array(rng: np.random.Generator, spec: TensorSpec, low: float, high: float) -> Array:
    """Uniform noise; where there are two long axes, half of it in blocks, as images have areas."""
    if "float" not in spec.dtype:
        return np.zeros(spec.shape, spec.dtype)
    fine = rng.uniform(size=spec.shape)
    long = [extent > 8 for extent in spec.shape]
    coarse = rng.uniform(
        size=[-(-n // 8) if is_long else n for n, is_long in zip(spec.shape, long, strict=True)]
    )
    for axis, is_long in enumerate(long):
        if is_long:
            coarse = coarse.repeat(8, axis).take(range(spec.shape[axis]), axis)
    mixed = np.clip(0.75 * coarse + 0.5 * (fine - 0.25), 0, 1) if any(long) else fine
    return (low + (high - low) * mixed).astype(spec.dtype)
