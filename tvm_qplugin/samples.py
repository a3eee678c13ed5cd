"""Bring one sample, as a user gives it, into the arrays that a model's function takes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from tvm.ir import IRModule

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.errors import CalibrationError, QPluginError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir

Sample = Array | Sequence[Array] | Mapping[str, Array]


@dataclass(frozen=True)
class ModelInput:
    """One input: its name in the IR, its name in the model file, and what it holds."""

    name: str
    original: str
    spec: TensorSpec


@dataclass
class Reservoir:
    """A fair choice of at most ``size`` of the samples that it is offered (algorithm R, seeded)."""

    size: int
    samples: list[Sample] = field(default_factory=list)
    seen: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0), repr=False)

    def offer(self, sample: Sample) -> None:
        """Keep a sample, perhaps in place of another."""
        place = len(self.samples) if self.seen < self.size else self._random.randrange(self.seen + 1)
        if place < self.size:
            self.samples[place : place + 1] = [sample]
        self.seen += 1


def inputs_of(module: IRModule) -> list[ModelInput]:
    """The inputs of ``main`` in order."""
    func = ir.main_function(module)
    text = (func.attrs or {}).get("qplugin.io")
    known = json.loads(str(text))["inputs"] if text else [{"name": var.name} for var in func.params]
    return [
        ModelInput(var.name, item["name"], ir.spec_of(var))
        for var, item in zip(func.params, known, strict=True)
    ]


def numbered(samples: Iterable[Sample], limit: int | None = None) -> Iterator[tuple[int, Sample]]:
    """Samples with their index; CalibrationError for what holds no samples, or fails while being read."""
    if isinstance(samples, Mapping | str | bytes) or not isinstance(samples, Iterable):
        raise CalibrationError(
            f"a {type(samples).__name__} is not a set of samples: give an iterable of arrays or of "
            "{input: array} (put a single sample in a list; open files with tvm_qplugin.data.open_samples)"
        )
    if limit is not None and limit < 1:
        raise CalibrationError(f"limit {limit}: expected at least 1 sample, or None for all")
    if isinstance(samples, np.ndarray) and samples.ndim == 0:
        raise CalibrationError("samples are a single number: give an array whose first axis counts samples")
    source = iter(samples)
    for index in count() if limit is None else range(limit):
        try:
            sample = next(source)
        except StopIteration:
            return
        except QPluginError as error:
            raise CalibrationError(f"sample {index}: {error}") from error
        except Exception as error:
            raise CalibrationError(
                f"sample {index}: reading it failed with {type(error).__name__}: {error}; "
                "mend or remove this sample"
            ) from error
        yield index, sample


def fit_sample(index: int, sample: Sample, inputs: Sequence[ModelInput]) -> list[Array]:
    """The arrays of one sample, in the order, shape and dtype of ``inputs``, all finite.

    A missing batch dimension (or any leading 1) is added; floating dtypes are cast. Raises
    CalibrationError, naming sample and input, for anything else that does not fit.
    """
    values = _by_position(index, sample, inputs)
    pairs = zip(inputs, values, strict=True)
    return [fit_array(f"sample {index}, input {i.original!r}", value, i.spec) for i, value in pairs]


def _by_position(index: int, sample: Sample, inputs: Sequence[ModelInput]) -> list[Any]:
    if isinstance(sample, Mapping):
        return _by_name(index, sample, inputs)
    if hasattr(sample, "shape") or isinstance(sample, int | float):
        values = [sample]
    elif isinstance(sample, Sequence) and not isinstance(sample, str | bytes):
        values = list(sample)
    else:
        raise CalibrationError(
            f"sample {index} is a {type(sample).__name__}: expected an array, a sequence of arrays or "
            "{input: array}"
        )
    if len(values) != len(inputs):
        names = ", ".join(i.original for i in inputs)
        raise CalibrationError(
            f"sample {index} has {len(values)} arrays, the model has {len(inputs)} inputs ({names}): "
            "give one array for each, in this order, or a mapping"
        )
    return values


def _by_name(index: int, sample: Mapping[str, Array], inputs: Sequence[ModelInput]) -> list[Any]:
    known = {name for i in inputs for name in (i.name, i.original)}
    unknown = [str(name) for name in sample if name not in known]
    missing = [i.original for i in inputs if i.name not in sample and i.original not in sample]
    if unknown or missing:
        complaints = [f"unknown: {', '.join(unknown)}"] * bool(unknown)
        complaints += [f"missing: {', '.join(missing)}"] * bool(missing)
        names = ", ".join(i.original for i in inputs)
        raise CalibrationError(f"sample {index}: inputs {'; '.join(complaints)}; the model's are: {names}")
    return [sample[i.original] if i.original in sample else sample[i.name] for i in inputs]


def fit_array(where: str, value: Any, spec: TensorSpec) -> Array:
    """One array in the shape and dtype of ``spec``; CalibrationError begins with ``where``."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise CalibrationError(f"{where}: not an array ({error}); expected {_describe(spec)}") from None
    array = _cast(where, array, spec)
    if _without_ones(array.shape) != _without_ones(spec.shape) or array.ndim > len(spec.shape):
        raise CalibrationError(
            f"{where}: shape {list(array.shape)} was given, {list(spec.shape)} is expected (leading 1 may be "
            f"left out); {_remedy(array.shape, spec.shape)}"
        )
    array = np.ascontiguousarray(array).reshape(spec.shape)
    if array.dtype.kind == "f" and not np.isfinite([array.min(), array.max()]).all():
        position = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise CalibrationError(
            f"{where}: it holds {array[position]} at {list(position)}; finite values are expected: "
            "mend or remove this sample"
        )
    return array


def _cast(where: str, array: Array, spec: TensorSpec) -> Array:
    given, wanted = array.dtype, np.dtype(spec.dtype)
    if given == wanted:
        return array
    if given.kind == wanted.kind == "f":
        with np.errstate(over="ignore"):
            return array.astype(wanted)
    if given.kind in "iu" and wanted.kind in "iu" and (array == array.astype(wanted)).all():
        return array.astype(wanted)
    advice = (
        "preprocess the data as in training (for files: the preprocess option, such as 'unit' or 'imagenet')"
        if given.kind in "iu" and wanted.kind == "f"
        else "convert it"
    )
    raise CalibrationError(f"{where}: dtype {given} was given, {wanted} is expected: {advice}")


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    first = next((i for i, extent in enumerate(shape) if extent != 1), len(shape))
    return tuple(shape[first:])


def _remedy(given: Sequence[int], expected: Sequence[int]) -> str:
    """What to do about a shape: another layout where that is all that is wrong."""
    image, wanted = tuple(given[-3:]), tuple(expected[-3:])
    if len(image) == len(wanted) == 3:
        for layout, axes in (("NHWC", (1, 2, 0)), ("NCHW", (2, 0, 1))):
            if tuple(image[axis] for axis in axes) == wanted:
                return (
                    f"the model takes images as {layout}: transpose the data (for files of images add "
                    f"layout={layout} to the preprocess option)"
                )
        if image[::2] in ((3, image[2]), (image[0], 3)) and wanted in ((1, *image[1:]), (*image[:2], 1)):
            return "the model takes grey images (for files of images add channels=L to the preprocess option)"
    return "resize or transpose the data, or load the model for this shape"


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"
