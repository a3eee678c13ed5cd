"""What the models are judged by: top-1, mean IoU, AP50, mean squared error, SQNR, agreement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tvm_qplugin.core.qparams import Array


class Metric(Protocol):
    """Takes outputs one by one; ``value`` is the figure so far."""

    def add(self, output: Array, target: Any) -> None:
        """One sample's output and what it should have been."""

    def value(self) -> float:
        """The figure over all samples so far."""


class Top1:
    """Percent of samples whose largest output is the label's."""

    def __init__(self) -> None:
        self._right = self._count = 0

    def add(self, output: Array, target: Any) -> None:
        self._right += int(output.argmax()) == int(target)
        self._count += 1

    def value(self) -> float:
        return 100.0 * self._right / max(self._count, 1)


class MeanSquaredError:
    """Mean over samples and elements of the squared difference from the target."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, output: Array, target: Any) -> None:
        self._sum += float(np.square(output.astype("float64").ravel() - target.ravel()).mean())
        self._count += 1

    def value(self) -> float:
        return self._sum / max(self._count, 1)


class MeanIou:
    """Intersection over union from one confusion matrix, averaged over the classes in the masks.

    Outputs are [1,C,H,W]; targets [H,W] with classes 0..C-1, anything above is not judged.
    """

    def __init__(self) -> None:
        self._confusion: Array | None = None

    def add(self, output: Array, target: Any) -> None:
        classes = output.shape[1]
        judged = target < classes
        pairs = target[judged].astype("int64") * classes + output[0].argmax(0)[judged]
        counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        self._confusion = counts if self._confusion is None else self._confusion + counts

    def value(self) -> float:
        if self._confusion is None:
            return 0.0
        hits, wanted = np.diag(self._confusion), self._confusion.sum(1)
        union = wanted + self._confusion.sum(0) - hits
        return float((hits / np.maximum(union, 1))[wanted > 0].mean())


@dataclass(frozen=True)
class Detections:
    """Boxes [N,4] (x1, y1, x2, y2 in pixels), scores [N] in falling order, classes [N]."""

    boxes: Array
    scores: Array
    classes: Array


def decode_fastestdet(output: Array, width: int, height: int, least: float = 0.001) -> Detections:
    """FastestDet's own decoding (dog-qiuqiu/FastestDet, utils/tool.py, ``handle_preds``), without the NMS.

    ``output`` [1,5+classes,H,W]: objectness, x y w h, class probabilities of every cell.
    """
    objects, (x, y, w, h), probabilities = output[0, 0], output[0, 1:5], output[0, 5:]
    rows, columns = np.mgrid[: objects.shape[0], : objects.shape[1]]
    scores = (objects**0.6 * probabilities.max(0) ** 0.4).ravel()
    centre_x = (np.tanh(x) + columns) / objects.shape[1] * width
    centre_y = (np.tanh(y) + rows) / objects.shape[0] * height
    half_w, half_h = 0.5 * width / (1 + np.exp(-w)), 0.5 * height / (1 + np.exp(-h))
    corners = (centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h)
    boxes = np.stack([corner.ravel() for corner in corners], axis=1)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > least]
    return Detections(boxes[order], scores[order], probabilities.argmax(0).ravel()[order])


def suppress(found: Detections, overlap: float = 0.45, most: int = 100) -> Detections:
    """Non-maximum suppression within each class; the best ``most`` boxes of an image stay."""
    alive = np.ones(len(found.scores), bool)
    for i in range(len(alive)):
        if alive[i]:
            later = (np.arange(len(alive)) > i) & (found.classes == found.classes[i])
            alive &= ~(later & (iou(found.boxes[i], found.boxes) > overlap))
    kept = np.flatnonzero(alive)[:most]
    return Detections(found.boxes[kept], found.scores[kept], found.classes[kept])


def iou(box: Array, boxes: Array, of_box: bool = False) -> Array:
    """Overlap of a box with each of [N,4], over the union or (``of_box``) over the box alone."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    own = float(np.prod(box[2:] - box[:2]))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return np.asarray(common / np.maximum(own if of_box else own + areas - common, 1e-12))


class AveragePrecision50:
    """COCO's AP at IoU 0.5: 101 recall points, crowds ignored, averaged over the classes that occur.

    Targets are entries ``{"width", "height", "boxes": [[class, x, y, w, h, crowd], ...]}``.
    """

    def __init__(self) -> None:
        self._hits: dict[int, list[tuple[float, bool]]] = {}
        self._wanted: dict[int, int] = {}

    def add(self, output: Array, target: Any) -> None:
        found = suppress(decode_fastestdet(output, target["width"], target["height"]))
        truth = np.array(target["boxes"], dtype="float64").reshape(-1, 6)
        for label in {*truth[:, 0].astype(int).tolist(), *found.classes.tolist()}:
            mine, own = found.classes == label, truth[truth[:, 0] == label]
            crowd = own[:, 5] > 0
            boxes = np.concatenate([own[:, 1:3], own[:, 1:3] + own[:, 3:5]], axis=1)
            self._wanted[label] = self._wanted.get(label, 0) + int((~crowd).sum())
            judged = _match(found.boxes[mine], found.scores[mine], boxes[~crowd], boxes[crowd])
            self._hits.setdefault(label, []).extend(judged)

    def value(self) -> float:
        precisions = [
            _precision(self._hits.get(label, []), count) for label, count in self._wanted.items() if count
        ]
        return float(np.mean(precisions)) if precisions else 0.0


def _match(boxes: Array, scores: Array, truth: Array, crowd: Array) -> list[tuple[float, bool]]:
    """(score, is it right) of one class in one image; every true box is found once at most."""
    free = np.ones(len(truth), bool)
    judged = []
    for box, score in zip(boxes, scores, strict=True):
        overlaps = np.where(free, iou(box, truth), -1.0)
        best = int(overlaps.argmax()) if len(truth) else -1
        if best >= 0 and overlaps[best] >= 0.5:
            free[best] = False
            judged.append((float(score), True))
        elif not (iou(box, crowd, of_box=True) >= 0.5).any():
            judged.append((float(score), False))
    return judged


def _precision(judged: list[tuple[float, bool]], wanted: int) -> float:
    right = np.array([hit for _, hit in sorted(judged, key=lambda item: -item[0])], dtype="float64")
    if not len(right):
        return 0.0
    hits = np.cumsum(right)
    recall, precision = hits / wanted, hits / np.arange(1, len(right) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(recall, np.linspace(0, 1, 101))].mean())


@dataclass(frozen=True)
class Kind:
    """A metric, how a loss of it is counted in points, and what of an output is a decision.

    For errors, where less is better, a point is a percent of the float figure.
    """

    make: Callable[[], Metric]
    unit: str
    drop: Callable[[float, float], float]
    decisions: Callable[[Array], Array] | None = None


METRICS: Mapping[str, Kind] = {
    "top1": Kind(Top1, "top-1 %", lambda f, q: f - q, lambda out: out.reshape(1, -1).argmax(1)),
    "miou": Kind(MeanIou, "mIoU", lambda f, q: 100 * (f - q), lambda out: out.argmax(1)),
    "ap50": Kind(AveragePrecision50, "AP50", lambda f, q: 100 * (f - q), lambda out: out[:, 5:].argmax(1)),
    "mse": Kind(MeanSquaredError, "MSE", lambda f, q: 100 * (q - f) / f),
}


class Comparison:
    """Float and int8 outputs of the same samples: metric of both, SQNR, agreement of arg-max."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.float_metric, self.int8_metric = kind.make(), kind.make()
        self.samples = 0
        self._signal = self._noise = 0.0
        self._same = self._decided = 0

    def add(self, exact: Array, quantized: Array, target: Any) -> None:
        """One sample."""
        self.samples += 1
        self.float_metric.add(exact, target)
        self.int8_metric.add(quantized, target)
        self._signal += float(np.square(exact, dtype="float64").sum())
        self._noise += float(np.square(exact.astype("float64") - quantized).sum())
        if self._kind.decisions is not None:
            same = self._kind.decisions(exact) == self._kind.decisions(quantized)
            self._same, self._decided = self._same + int(same.sum()), self._decided + same.size

    def drop(self) -> float:
        """What int8 costs, in points."""
        return self._kind.drop(self.float_metric.value(), self.int8_metric.value())

    def sqnr(self) -> float:
        """Signal to quantization noise of the outputs in dB."""
        return float(10 * np.log10(self._signal / self._noise)) if self._noise else float("inf")

    def agreement(self) -> float | None:
        """Percent of decisions (arg-max of a sample, pixel or cell) that are the same; None: no decisions."""
        return 100.0 * self._same / self._decided if self._decided else None
