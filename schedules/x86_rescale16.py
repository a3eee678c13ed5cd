"""int16x8: the numbers of a layer on x86. In which form its sums are rescaled, and why that is exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tvm_qplugin.core.attrs import KernelCall, Params
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array

LARGEST = 2**31 - 1
MAGNITUDE = 2**15
"""Of an int16 activation."""
WORD = 16
"""Bits that the short form drops before it rounds."""


@dataclass(frozen=True)
class Rescaling:
    """Weights (int16 where they are doubled, else int8) and the sections of one value per channel.

    Sums start from ``bias`` (int32). ``offset`` (int64), if there is one, is added to them in int64. Then:

    | form | sections | result |
    |---|---|---|
    | short | low, high, round, shift: int32 | ``((acc * factor >> 16) + round) >> shift``, all in int32 |
    | long | factor, round, shift: int64 | ``(acc * factor + round) >> shift`` in int64, the low half of it |
    | double | scale: float64 | ``acc * scale`` within the bounds, half away from zero |
    """

    weights: Array
    channels: Mapping[str, Array]
    bounds: Mapping[str, Array]

    @property
    def offset(self) -> bool:
        """Whether the bias comes after the sum, which then may take several accumulators."""
        return "offset" in self.channels


def rescaling(call: KernelCall) -> Rescaling:
    """The cheapest exact form of a ``qconv2d16`` or ``qdense16``."""
    weights, bias = np.asarray(call.constants[1]), np.asarray(call.constants[2], "int64")
    magnitude = np.abs(weights.astype("int64"))
    sums = magnitude.reshape(len(weights), -1).sum(1) * MAGNITUDE + np.abs(bias)
    if call.name == "qdense16":
        scale = {"scale": np.broadcast_to(np.asarray(call.constants[3], "float64"), bias.shape)}
        start = {"bias": bias.astype("int32")} if sums.max(initial=0) <= LARGEST else _after(bias)
        return Rescaling(weights, {**start, **scale}, _float_bounds(call.params))
    factor, bits = (np.asarray(call.constants[i], "int64") for i in (3, 4))
    return _short(weights, bias, sums, factor, bits, call) or Rescaling(
        weights,
        {**_after(bias), "factor": factor, "round": np.int64(1) << (bits - 1), "shift": bits},
        _word_bounds(call.params, call.out.dtype),
    )


def _short(
    weights: Array, bias: Array, sums: Array, factor: Array, bits: Array, call: KernelCall
) -> Rescaling | None:
    """Where every sum, doubled until its shift is 17, fits int32.

    With ``acc = high * 2**16 + low``, ``floor(acc * factor / 2**16)`` is ``high * factor`` (below 2 ** 30)
    plus the upper half of ``low * factor``; the rounding term, a power of two of at least 2 ** 16, can be
    added after that (below 2 ** 30 again, as no shift is beyond 46).
    """
    bits = np.where(factor == 0, WORD + 1, bits)
    doubled = np.int64(1) << np.maximum(WORD + 1 - bits, 0)
    doubled = np.where(factor == 0, 1, doubled)
    widest = np.abs(weights.astype("int64")).reshape(len(weights), -1).max(1, initial=0)
    if (sums * doubled > LARGEST).any() or (widest * doubled > MAGNITUDE - 1).any() or (bits > 46).any():
        return None
    shift = np.maximum(bits, WORD + 1) - WORD
    shape = (-1, *[1] * (weights.ndim - 1))
    channels = {
        "bias": bias * doubled,
        "low": factor,
        "high": factor << WORD,
        "round": np.int64(1) << (shift - 1),
        "shift": shift,
    }
    return Rescaling(
        weights if (doubled == 1).all() else (weights * doubled.reshape(shape)).astype("int16"),
        {name: values.astype("int32") for name, values in channels.items()},
        _word_bounds(call.params, call.out.dtype),
    )


def _after(bias: Array) -> dict[str, Array]:
    return {"bias": np.zeros(bias.shape, "int32"), "offset": bias}


def _word_bounds(p: Params, dtype: str) -> dict[str, Array]:
    """``lo`` and ``hi`` in 4 bytes each, none for what saturation does anyway."""
    low, high = INTEGER_RANGE[dtype]
    found = {}
    if p["lo"] > low:
        found["lo"] = np.full(2, p["lo"], dtype)
    if p["hi"] < high:
        found["hi"] = np.full(2, p["hi"], dtype)
    return found


def _float_bounds(p: Params) -> dict[str, Array]:
    return {"least": np.full(1, p["lo"], "float64"), "most": np.full(1, p["hi"], "float64")}


@dataclass(frozen=True)
class Cut:
    """How a reduction is cut so that each part fits int32: by outer ``rows``, or each span in ``pieces``."""

    rows: bool
    pieces: int = 1


def cut_of(weights: Array, rows: int, outer: int, span: int, depth: int) -> Cut | None:
    """The coarsest cut that is proven by the weights; None where there is nothing to cut.

    ``weights`` [O, ...] lie as ``outer`` times ``span`` elements; ``rows`` divides ``outer``.
    """
    taps = np.abs(weights.astype("int64")).reshape(len(weights), outer, span)
    if _fits(taps.sum((1, 2))):
        return None
    if rows > 1 and _fits(taps.reshape(len(weights), rows, -1).sum(2)):
        return Cut(True)
    pieces = next(n for n in range(1, span + 1) if _fits(_pieces(taps, n, depth)))
    return Cut(False, pieces)


def _pieces(taps: Array, pieces: int, depth: int) -> Array:
    """Sums over the pieces that ``piece_steps`` cuts the last axis into."""
    starts = [start * depth for start, _ in piece_steps(taps.shape[2] // depth, pieces)]
    return np.add.reduceat(taps, starts, axis=2)


def piece_steps(steps: int, pieces: int) -> list[tuple[int, int]]:
    """(first, count) of the parts of a span of ``steps`` whole steps."""
    size = -(-steps // pieces) or 1
    return [(start, min(size, steps - start)) for start in range(0, steps, size)] or [(0, 0)]


def _fits(sums: Array) -> bool:
    return bool(sums.max(initial=0) * MAGNITUDE <= LARGEST)
