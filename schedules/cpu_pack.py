"""Weights and geometry of the portable convolution and dense kernels: vectors of output channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tvm_qplugin.core.attrs import KernelCall
from tvm_qplugin.core.qparams import Array


@dataclass(frozen=True)
class Plan:
    """``lanes`` output channels by ``pixels`` neighbouring positions are accumulated together.

    ``width`` is the extent of the tiled axis, rounded up to whole tiles.
    """

    lanes: int
    pixels: int
    width: int
    depthwise: bool


def plan(call: KernelCall, vector: int, registers: int) -> Plan | None:
    """Tile sizes for vectors of ``vector`` accumulators; None for grouped convolutions."""
    channels = call.args[1].shape[0]
    groups = int(call.params.get("groups", 1))
    depthwise = groups > 1
    if depthwise and not (call.args[1].shape[3] == 1 and groups == call.args[0].shape[3] == channels):
        return None
    width = call.out.shape[-2] if len(call.out.shape) > 1 else 1
    lanes = _lanes(channels, vector, 4 if width == 1 else 2)
    pixels, rounded = _pixels(width, max(1, (registers * 3 // 4) * vector // lanes))
    return Plan(lanes, pixels, rounded, depthwise)


def _lanes(channels: int, vector: int, most: int) -> int:
    """As many vectors as waste no more channels than one vector would."""
    waste = -channels % vector
    return vector * next(n for n in range(most, 0, -1) if -channels % (n * vector) <= waste)


def _pixels(width: int, most: int) -> tuple[int, int]:
    divisor = max(d for d in range(1, most + 1) if width % d == 0)
    if 2 * divisor > min(most, width):
        return divisor, width
    pixels = -(-width // -(-width // most))
    return pixels, -(-width // pixels) * pixels


def packed(call: KernelCall, tile: Plan) -> list[Array] | None:
    """Constants of the kernel: weight ``[O/lanes, KH, KW, I, lanes]`` (no I if depthwise), bias, factor.

    The zero point of the input is folded into the bias: the kernel multiplies raw codes. None where
    the folded bias does not fit int32.
    """
    constants: Mapping[int, Array] = call.constants
    weight, bias = constants[1], constants[2]
    if not call.out.dtype.startswith("float"):
        total = weight.astype("int64").reshape(weight.shape[0], -1).sum(1)
        folded = bias.astype("int64") - int(call.params["in_zp"]) * total
        if np.abs(folded).max() >= 2**31:
            return None
        bias = folded.astype("int32")
    blocks = -(-weight.shape[0] // tile.lanes)
    rows = _rounded(weight, blocks * tile.lanes).reshape(blocks, tile.lanes, *weight.shape[1:])
    rows = np.moveaxis(rows[..., 0] if tile.depthwise else rows, 1, -1)
    vectors = [_rounded(v, blocks * tile.lanes) for v in (bias, *_factors(call, weight.shape[0]))]
    return [np.ascontiguousarray(rows), *vectors]


def _factors(call: KernelCall, channels: int) -> list[Array]:
    return [np.broadcast_to(call.constants[3], (channels,))] if 3 in call.constants else []


def _rounded(array: Array, size: int) -> Array:
    missing = [(0, size - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, missing)
