"""The real models that the project is measured on: where they lie, what they eat, how good they are.

Everything is read lazily from ``QPLUGIN_DATA`` (default ``../shared``), whose DATA.md gives the sources.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.data import open_labelled, open_samples

ROOT = Path(__file__).resolve().parent.parent


def data_root() -> Path:
    """``QPLUGIN_DATA``, relative to the repository; default ``../shared``. SystemExit if it is empty."""
    setting = os.environ.get("QPLUGIN_DATA", "../shared")
    if not setting:
        raise SystemExit("QPLUGIN_DATA is empty: set it to the folder that holds models/ and data/")
    return (ROOT / setting).resolve()


@dataclass(frozen=True)
class Samples:
    """Every ``step``-th sample of a folder or file, at most ``limit``.

    ``skip``: every ``step``-th is left out instead. ``labels``: "" for none, "y" or "labels.csv" for
    classes, "input" for the sample itself, "boxes" for the annotations in the folder, else
    ``file.npz:array``.
    """

    path: str
    preprocess: str | None = None
    labels: str = ""
    step: int = 1
    skip: bool = False
    limit: int | None = None

    def __iter__(self) -> Iterator[Array]:
        """The samples alone, in the model's layout without the batch."""
        return self._chosen(iter(open_samples(self.file, preprocess=self.preprocess)))

    def pairs(self) -> Iterator[tuple[Array, Any]]:
        """Samples with their labels."""
        return self._chosen(self._all_pairs())

    @property
    def file(self) -> Path:
        """The folder or file."""
        return data_root() / "data" / self.path

    def _chosen(self, items: Iterator[Any]) -> Iterator[Any]:
        kept = (item for i, item in enumerate(items) if (i % self.step == 0) is not self.skip)
        return islice(kept, self.limit)

    def _all_pairs(self) -> Iterator[tuple[Array, Any]]:
        if self.labels in ("y", "labels.csv"):
            return iter(open_labelled(self.file, preprocess=self.preprocess))
        samples = iter(open_samples(self.file, preprocess=self.preprocess))
        if self.labels == "input":
            return ((x, x) for x in samples)
        if self.labels == "boxes":
            entries = json.loads((self.file / "annotations.json").read_text())["images"]
            return zip(samples, sorted(entries, key=lambda entry: str(entry["file"])), strict=True)
        path, _, name = self.labels.partition(":")
        return zip(samples, open_samples(self.file.parent / path, key=name), strict=True)


@dataclass(frozen=True)
class Reference:
    """What DATA.md says of a model on its whole dev set.

    ``tolerance``: how near the harness must come to ``float_metric``. ``int8``: onnxruntime's static
    quantization. ``note`` says what is known beside.
    """

    float_metric: float
    tolerance: float
    int8: float | None = None
    note: str = ""


@dataclass(frozen=True)
class RealModel:
    """One entry of the table. ``metric`` is a key of ``_metrics.METRICS``.

    ``label_offset`` is added to a label to give the output's index; ``labels`` are those of the outputs,
    where they are in another order. ``max_drop`` in points (None: report only), ``drops`` those of schemes
    with a limit of their own, ``best``: that of accuracy="best" in int8, and the agreement with float in
    percent. ``max_extra`` in bytes: code and manifest beside the weights. ``islands`` are
    the float operators that are known and named.
    ``tflite`` is the same net in int8 by TFLite's converter.
    """

    name: str
    metric: str
    calibration: Samples
    dev: Samples
    reference: Reference
    label_offset: int = 0
    labels: tuple[int, ...] = ()
    max_drop: float | None = 0.7
    drops: Mapping[str, float] = field(default_factory=dict)
    best: tuple[float, float] | None = None
    max_extra: int = 400_000
    islands: tuple[str, ...] = ()
    tflite: str | None = None
    about: str = field(default="", compare=False)

    @property
    def path(self) -> Path:
        """The float ONNX file."""
        return data_root() / "models" / f"{self.name}.onnx"

    @property
    def tflite_path(self) -> Path | None:
        """LiteRT's int8 file of the same net."""
        return None if self.tflite is None else data_root() / "models" / "tflite" / self.tflite

    def drop_limit(self, scheme: str) -> float | None:
        """The largest drop that a scheme may have, in points."""
        usual = _TOP1_DROPS if self.metric == "top1" else {}
        return {**usual, **self.drops}.get(scheme, self.max_drop)

    def evaluation(self, limit: int | None = None) -> Iterator[tuple[Array, Any]]:
        """Samples of the dev set with the index, mask, boxes or array that the output should show."""
        for sample, label in islice(self.dev.pairs(), limit):
            yield sample, self._index(label) if self.metric == "top1" else label

    def _index(self, label: Any) -> int:
        return self.labels.index(label) if self.labels else int(label) + self.label_offset


_IMAGENET = Samples("imagenet_val_dev", "tf,crop=224", "labels.csv")
_IMAGENET_CALIBRATION = Samples("imagenet_calib", "tf,crop=224")
_CIFAR = Samples("cifar10_dev.npz", "imagenet", "y")
_TOP1_DROPS, _SMALL_BEST = {"int16x8": 0.15, "fp16": 0.03, "dynamic": 0.3}, (0.2, 99.0)
_CIFAR_CALIBRATION = Samples("cifar10_train4000.npz", "imagenet", limit=200)

_TABLE = (
    RealModel(
        "mobilenet_v1_0.25_224",
        "top1",
        _IMAGENET_CALIBRATION,
        _IMAGENET,
        Reference(63.23, 0.2, 58.00, "the hard case: needs bias correction"),
        label_offset=1,
        max_drop=None,
        best=(0.5, 92.0),
    ),
    RealModel(
        "mobilenet_v1_0.75_224",
        "top1",
        _IMAGENET_CALIBRATION,
        _IMAGENET,
        Reference(76.31, 0.2, 75.69),
        best=(0.3, 96.0),
    ),
    RealModel(
        "mobilenet_v2_1.0_224",
        "top1",
        _IMAGENET_CALIBRATION,
        _IMAGENET,
        Reference(79.54, 0.2, 78.92, "LiteRT int8: 78.92"),
        label_offset=1,
        best=(0.3, 96.0),
        tflite="mobilenet_v2_1.0_224_ptq_u8io_int8.tflite",
    ),
    RealModel(
        "resnet20_cifar10", "top1", _CIFAR_CALIBRATION, _CIFAR, Reference(91.2, 0.2, 91.0), best=_SMALL_BEST
    ),
    RealModel(
        "resnet56_cifar10", "top1", _CIFAR_CALIBRATION, _CIFAR, Reference(92.0, 0.2, 92.2), best=_SMALL_BEST
    ),
    RealModel(
        "tiny_resnet8_cifar10",
        "top1",
        Samples("cifar10_train4000.npz", "raw", limit=200),
        Samples("cifar10_dev.npz", "raw", "y"),
        Reference(88.2, 0.2, 88.2, "LiteRT int8: 88.2"),
        best=_SMALL_BEST,
        tflite="tiny_resnet8_cifar10_int8.tflite",
    ),
    RealModel(
        "tiny_kws_dscnn",
        "top1",
        Samples("kws_mfcc_calib.npz"),
        Samples("kws_mfcc_dev.npz", labels="y"),
        Reference(92.15, 0.2, 92.32, "LiteRT int8: 92.03"),
        best=_SMALL_BEST,
        tflite="tiny_kws_dscnn_int8.tflite",
    ),
    RealModel(
        "tiny_vww_mobilenetv1_025_96",
        "top1",
        Samples("imagenet_calib", "unit,shorter=96,crop=96"),
        Samples("vww_coco128.npz", "unit", "y"),
        Reference(85.16, 0.2, note="LiteRT int8: 85.16; one image is 0.78 points"),
        best=_SMALL_BEST,
        tflite="tiny_vww_mobilenetv1_025_96_int8.tflite",
        about="calibrated on shrunk ImageNet images: all 128 COCO images are evaluated",
    ),
    RealModel(
        "tiny_ad_autoencoder",
        "mse",
        Samples("ad_toycar_normal1.npz", step=4),
        Samples("ad_toycar_normal1.npz", labels="input", step=4, skip=True),
        Reference(9.71, 0.05, note="LiteRT int8: SQNR 31.9 dB"),
        tflite="tiny_ad_autoencoder_int8.tflite",
        about="every 4th frame calibrates, the other 147 are evaluated (float 9.69; all 196: 9.71)",
    ),
    RealModel(
        "deeplabv3_mnv2_dm05_257",
        "miou",
        Samples("imagenet_calib", "tf,stretch=257"),
        Samples("coco128", "tf,stretch=257", "seg_coco128_masks257.npz:mask"),
        Reference(0.343, 0.015),
        about="calibrated on ImageNet images; mean over the 19 classes that the masks hold; 0.330 with "
        "Pillow's bilinear resize, 0.335 bicubic, 0.338 box",
    ),
    RealModel(
        "fastestdet_coco_352",
        "ap50",
        Samples("imagenet_calib", "unit,stretch=352,channels=BGR"),
        Samples("coco128", "unit,stretch=352,channels=BGR", "boxes"),
        Reference(0.316, 0.015),
        about="calibrated on ImageNet images; 0.306 with Pillow's bilinear resize, 0.317 box",
    ),
)

_UNROLLED = 1_000_000
"""Code of all steps of a cell, and what the manifest tells of each."""
_DROPS = {"dynamic": 0.2, "int16x8": 0.1}
_KEYWORDS = (10, 11, 9, 3, 8, 0, 2, 6, 5, 4, 7, 1)
_TABLE += (
    RealModel(
        "kws_lstm_m",
        "top1",
        Samples("kws_tfmfcc40_calib.npz"),
        Samples("kws_tfmfcc40_dev.npz", labels="y"),
        Reference(86.52, 0.05),
        labels=_KEYWORDS,
        max_drop=0.5,
        drops=_DROPS,
        max_extra=_UNROLLED,
    ),
    RealModel(
        "kws_crnn_m",
        "top1",
        Samples("kws_tfmfcc40_calib.npz"),
        Samples("kws_tfmfcc40_dev.npz", labels="y"),
        Reference(88.06, 0.05),
        labels=_KEYWORDS,
        max_drop=0.5,
        drops=_DROPS,
        islands=("conv_out_conv2d", "conv_out", "relu_1", "gru0_out_0_inputs_reshape"),
        max_extra=_UNROLLED,
        about="what comes before the recurrent cells stays in float",
    ),
    RealModel(
        "mnist_lstm",
        "top1",
        Samples("mnist_calib.npz", "unit"),
        Samples("mnist_dev.npz", "unit", "y"),
        Reference(97.40, 0.05, note="LiteRT int8: 97.47"),
        max_drop=0.5,
        drops=_DROPS,
        max_extra=_UNROLLED,
    ),
)

MODELS: dict[str, RealModel] = {model.name: model for model in _TABLE}


def chosen(names: list[str]) -> list[RealModel]:
    """Models by name or the beginning of a name; all of them if none is given; SystemExit for others."""
    if not names:
        return list(_TABLE)
    found = []
    for name in names:
        fits = [m for m in _TABLE if m.name == name] or [m for m in _TABLE if m.name.startswith(name)]
        if not fits:
            raise SystemExit(f"no model {name!r}; the models are: {', '.join(MODELS)}")
        found += [m for m in fits if m not in found]
    return found


def require_data(models: list[RealModel]) -> None:
    """SystemExit with a reason when a file that these models need is absent."""
    missing = [m.path for m in models if not m.path.is_file()]
    missing += [s.file for m in models for s in (m.calibration, m.dev) if not s.file.exists()]
    if missing:
        listing = "\n  ".join(dict.fromkeys(map(str, missing)))
        raise SystemExit(
            f"not found:\n  {listing}\nset QPLUGIN_DATA to the folder that holds models/ and data/"
        )


def batched(sample: Array) -> Array:
    """A sample with the batch of 1 in front, contiguous."""
    return np.ascontiguousarray(sample)[None]
