"""How good a compiled model is: accuracy on labelled samples, and how near it is to a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tvm_qplugin.artifact import Artifact
from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.errors import CalibrationError, InputError
from tvm_qplugin.core.manifest import TensorInfo
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.samples import ModelInput, fit_sample, numbered


@dataclass(frozen=True)
class Evaluation:
    """Shares of the samples (0..1), and the signal-to-noise ratio of the first output in dB.

    ``accuracy`` is top-1 and None without labels; ``agreement`` (same arg-max as the reference), ``sqnr_db``
    and ``reference_accuracy`` are None without a reference, ``sqnr_db`` also where nothing differs.
    """

    samples: int
    accuracy: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    reference_accuracy: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


class Predictor:
    """An artifact with real numbers at both ends, whatever the dtypes of its inputs and outputs."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.inputs = [
            ModelInput(info.name, info.name, TensorSpec(info.shape, wire_dtype(info)))
            for info in artifact.manifest.inputs
        ]

    def __call__(self, index: int, sample: Any) -> Array:
        """The first output as real numbers; CalibrationError (naming the sample) if it does not fit."""
        arrays = fit_sample(index, sample, self.inputs)
        infos = self.artifact.manifest.inputs
        given = [to_wire(info, array) for info, array in zip(infos, arrays, strict=True)]
        return to_real(self.artifact.manifest.outputs[0], self.artifact.run(*given)[0])


def wire_dtype(info: TensorInfo) -> str:
    """The dtype in which samples are expected: real numbers where the input is quantized."""
    return "float32" if info.qparams else info.dtype


def to_wire(info: TensorInfo, array: Array) -> Array:
    """Real numbers as the input takes them."""
    quantized = info.params is not None and array.dtype.kind == "f"
    return info.params.quantize(array) if info.params is not None and quantized else array


def to_real(info: TensorInfo, array: Array) -> Array:
    """An output as real numbers."""
    return array if info.params is None else info.params.dequantize(array)


def evaluate(
    artifact: Artifact,
    samples: Iterable[Any],
    *,
    labelled: bool = True,
    reference: Artifact | None = None,
    labels_offset: int = 0,
    limit: int | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Run every sample; ``samples`` are pairs (sample, label) if ``labelled``, else samples.

    ``labels_offset`` is added to the labels (1 for models with a background class). Raises
    CalibrationError for a sample that does not fit, or when there is none.
    """
    score = Score(labels_offset)
    model = Predictor(artifact)
    other = None if reference is None else Predictor(reference)
    for index, item in numbered(samples, limit):
        sample, label = item if labelled else (item, None)
        output = model(index, sample)
        expected = None if other is None else other(index, sample)
        score.add(output, expected, label)
        advance()
    return score.result(labelled, reference is not None)


@dataclass
class Score:
    """What ``evaluate`` counts, sample by sample; ``offset`` is added to labels."""

    offset: int
    samples: int = 0
    hits: int = 0
    reference_hits: int = 0
    agreed: int = 0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, output: Array, expected: Array | None, label: Any) -> None:
        """The first output of a sample, that of the reference, and the label (None: there is none)."""
        self.samples += 1
        best = int(np.argmax(output))
        self.hits += label is not None and best == self._index(label, output.size)
        if expected is None:
            return
        if expected.shape != output.shape:
            raise InputError(
                f"the reference puts out shape {list(expected.shape)}, the artifact {list(output.shape)}: "
                "give a reference of the same model"
            )
        self.agreed += best == int(np.argmax(expected))
        self.reference_hits += label is not None and int(np.argmax(expected)) == int(label) + self.offset
        wide = expected.astype("float64")
        self.signal += float(np.square(wide).sum())
        self.noise += float(np.square(wide - output).sum())

    def _index(self, label: Any, classes: int) -> int:
        index = int(label) + self.offset
        if not 0 <= index < classes:
            raise CalibrationError(
                f"label {int(label)} with offset {self.offset} is not one of the {classes} classes of the "
                "first output: check the labels and the offset (--labels-offset)"
            )
        return index

    def result(self, labelled: bool, compared: bool) -> Evaluation:
        """The shares; CalibrationError where nothing was counted."""
        if not self.samples:
            raise CalibrationError("the data holds no samples: at least 1 is needed")
        sqnr = 10 * float(np.log10(self.signal / self.noise)) if self.noise and self.signal else None
        return Evaluation(
            self.samples,
            self.hits / self.samples if labelled else None,
            self.agreed / self.samples if compared else None,
            sqnr if compared else None,
            self.reference_hits / self.samples if labelled and compared else None,
        )
