"""How raw images and arrays become what a model was trained on, declared in one short line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.qparams import Array

RESIZES = ("crop", "stretch", "letterbox")
CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}


@dataclass(frozen=True)
class Preprocess:
    """``(x - mean) * scale / std`` of the pixels 0..255, after cropping or resizing.

    ``size`` is (height, width), None keeps the size. ``resize``: "crop" takes the centre without
    resampling (an image that is too small is enlarged first; with ``shorter`` the shorter side is
    brought to that length first), "stretch" resamples to the size, "letterbox" keeps the proportions
    and pads with grey 114. ``mean`` and ``std`` have one value, or one per channel
    in the order of ``channels``.

    >>> Preprocess.parse("crop=224,scale=1/127.5,mean=127.5") == Preprocess.parse("tf,crop=224")
    True
    """

    size: tuple[int, int] | None = None
    resize: str = "crop"
    shorter: int | None = None
    layout: str = "NCHW"
    channels: str = "RGB"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        _one_of("resize", self.resize, RESIZES)
        _one_of("layout", self.layout, ("NCHW", "NHWC"))
        _one_of("channels", self.channels, tuple(CHANNELS))
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, CHANNELS[self.channels]):
                raise CalibrationError(
                    f"preprocessing: {name} has {len(values)} values, {self.channels} has "
                    f"{CHANNELS[self.channels]} channels; give 1 or {CHANNELS[self.channels]}"
                )
        numbers = (*self.mean, *self.std, self.scale)
        if not np.isfinite(numbers).all() or 0 in (*self.std, self.scale):
            raise CalibrationError("preprocessing: mean, std and scale must be finite, std and scale not 0")

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read presets and ``key=value`` separated by commas; a later part overrides an earlier one.

        Presets: ``raw`` (0..255 as float), ``unit`` (x/255), ``tf`` (x/127.5 - 1), ``imagenet`` (x/255,
        ImageNet's mean and deviation). Keys: ``crop``, ``stretch``, ``letterbox`` = 224 or 240x320 (height
        x width), ``shorter=256``, ``layout=NHWC``, ``channels=BGR``, ``scale=1/255``, ``mean``,
        ``std`` = 1 or 3 numbers with colons. Raises CalibrationError.
        """
        found: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals and part in PRESETS:
                found.update(PRESETS[part])
            elif equals and key.strip() in _READERS:
                found.update(_read(key.strip(), value.strip()))
            else:
                raise CalibrationError(
                    f"preprocessing {text!r}: {part!r} is not understood; use {', '.join(PRESETS)}, or "
                    f"key=value with {', '.join(_READERS)}"
                )
        return cls(**found)

    def __str__(self) -> str:
        """What ``parse`` reads back exactly."""
        parts = [] if self.size is None else [f"{self.resize}={self.size[0]}x{self.size[1]}"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("size", "resize") and value != field.default:
                text = ":".join(map(repr, value)) if isinstance(value, tuple) else str(value)
                parts.append(f"{field.name}={text}")
        return ",".join(parts)

    def image(self, image: Image.Image) -> Array:
        """A decoded image as float32 [C,H,W] or [H,W,C]."""
        image = image.convert("L" if self.channels == "L" else "RGB")
        array = np.asarray(_fitted(image, self))
        array = array[:, :, None] if array.ndim == 2 else array
        return self._layout(self.values(self._order(array)))

    def array(self, x: Array) -> Array:
        """An array: [H,W,1 or 3] as an image, anything else only in its values; float32."""
        if x.ndim != 3 or x.shape[2] != CHANNELS[self.channels]:
            return self.values(x)
        if self.size is None:
            return self._layout(self.values(self._order(x)))
        if x.dtype != np.uint8:
            raise CalibrationError(f"preprocessing: only uint8 images can be resized, this one is {x.dtype}")
        return self.image(Image.fromarray(x if x.shape[2] == 3 else x[:, :, 0]))

    def values(self, x: Array) -> Array:
        """``(x - mean) * scale / std`` over the last axis, computed in float64, as float32."""
        mean, std = np.array(self.mean), np.array(self.std)
        if len(mean) == 1 and len(std) == 1 and x.dtype == np.uint8:
            return np.asarray(((np.arange(256.0) - mean) * self.scale / std).astype("float32")[x])
        if x.ndim == 0 or max(len(mean), len(std)) not in (1, x.shape[-1]):
            raise CalibrationError(
                f"preprocessing: {max(len(mean), len(std))} channels of mean and std do not fit shape "
                f"{list(x.shape)}"
            )
        return np.asarray(((x - mean) * self.scale / std).astype("float32"))

    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value that a pixel can become."""
        ends = (np.array([[0.0], [255.0]]) - np.array(self.mean)) * self.scale / np.array(self.std)
        return float(ends.min()), float(ends.max())

    def _order(self, x: Array) -> Array:
        return x[:, :, ::-1] if self.channels == "BGR" else x

    def _layout(self, x: Array) -> Array:
        return np.ascontiguousarray(x.transpose(2, 0, 1) if self.layout == "NCHW" else x)


def as_preprocess(value: str | Preprocess | None) -> Preprocess | None:
    """A declaration as text, as it is, or None."""
    return Preprocess.parse(value) if isinstance(value, str) else value


PRESETS: dict[str, dict[str, Any]] = {
    "raw": {"scale": 1.0, "mean": (0.0,), "std": (1.0,)},
    "unit": {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,)},
    "tf": {"scale": 1 / 127.5, "mean": (127.5,), "std": (1.0,)},
    "imagenet": {
        "scale": 1 / 255,
        "mean": (0.485 * 255, 0.456 * 255, 0.406 * 255),
        "std": (0.229, 0.224, 0.225),
    },
}


def _fitted(image: Image.Image, how: Preprocess) -> Image.Image:
    """Crop or resize to ``how.size``."""
    if how.shorter is not None:
        image = _scaled(image, how.shorter / min(image.size))
    if how.size is None:
        return image
    height, width = how.size
    if how.resize == "stretch":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    ratios = (width / image.width, height / image.height)
    if how.resize == "letterbox":
        image = _scaled(image, min(ratios))
        canvas = Image.new(image.mode, (width, height), (114,) * len(image.getbands()))
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return canvas
    image = _scaled(image, max(ratios)) if max(ratios) > 1 else image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def _read(key: str, value: str) -> dict[str, Any]:
    """The fields that one ``key=value`` sets."""
    try:
        result = _READERS[key](value)
    except (ValueError, ZeroDivisionError):
        raise CalibrationError(
            f"preprocessing: {key}={value} is not understood; write for example {_EXAMPLES[key]}"
        ) from None
    return {"size": result, "resize": key} if key in RESIZES else {key: result}


def _size(text: str) -> tuple[int, int]:
    sides = [_positive(side) for side in text.split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[0], sides[-1]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _number(text: str) -> float:
    above, slash, below = text.partition("/")
    return float(above) / (float(below) if slash else 1.0)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in text.split(":"))


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise CalibrationError(f"preprocessing: {name} {value!r} is unknown; use one of {', '.join(known)}")


_READERS: dict[str, Any] = {
    "crop": _size,
    "stretch": _size,
    "letterbox": _size,
    "shorter": _positive,
    "layout": str,
    "channels": str,
    "scale": _number,
    "mean": _numbers,
    "std": _numbers,
}
_EXAMPLES = dict.fromkeys(RESIZES, "crop=224 or crop=240x320 (height x width)") | {
    "shorter": "shorter=256",
    "scale": "scale=1/255",
    "mean": "mean=127.5 or mean=123.7:116.3:103.5",
    "std": "std=127.5 or std=58.4:57.1:57.4",
}
