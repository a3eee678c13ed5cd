"""Constants in the layout that the x86 kernels read, and what can be proven about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_qplugin.core.attrs import Params
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.x86_geometry import Geometry

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Requantization:
    """How accumulators become bytes: ``clip(rint(acc * multiplier) + zero_point, lo, hi)``.

    ``guarded``: a scaled accumulator can leave int32, so it is clamped before it is rounded.
    """

    dtype: str
    zero_point: int
    lo: int
    hi: int
    guarded: bool


def pack_weights(weights: Array, geometry: Geometry) -> Array:
    """OHWI (or ``[N, K]``) to ``[groups * blocks, steps, lanes, depth]``, flat.

    The last block has ``last_lanes`` lanes: a vector of it ends with lanes of the next step, which nobody
    uses.
    """
    return to_lanes(in_steps(weights, geometry), geometry)


def in_steps(weights: Array, geometry: Geometry) -> Array:
    """OHWI (or ``[N, K]``) to ``[groups, blocks * lanes, steps, depth]``.

    The overlapping last step of a span holds only the elements that no other step has, zeros else.
    """
    g = geometry
    flat = weights.reshape(g.groups, g.channels, g.outer, g.span)
    if g.folds:
        return _folded(flat, g)
    whole = g.full_steps * g.depth
    packed = np.zeros(
        (g.groups, g.blocks * g.lanes, g.outer, g.full_steps + g.has_tail, g.depth), weights.dtype
    )
    packed[:, : g.channels, :, : g.full_steps] = flat[..., :whole].reshape(*flat.shape[:3], -1, g.depth)
    if g.has_tail:
        rest = g.span - whole
        start = g.depth - rest if g.span >= g.depth else 0
        packed[:, : g.channels, :, -1, start : start + rest] = flat[..., whole:]
    return packed.reshape(*packed.shape[:2], -1, g.depth)


def to_lanes(packed: Array, g: Geometry) -> Array:
    """What ``in_steps`` returns to the order in which it is read, flat."""
    blocks = packed.reshape(g.groups * g.blocks, g.lanes, g.steps, g.depth).transpose(0, 2, 1, 3)
    unread = np.zeros((g.lanes - g.last_lanes) * g.depth, packed.dtype)
    return np.concatenate([blocks[:-1].reshape(-1), blocks[-1, :, : g.last_lanes].reshape(-1), unread])


def _folded(flat: Array, g: Geometry) -> Array:
    """All full steps, then the left-over elements of all taps."""
    whole = g.full_steps * g.depth
    packed = np.zeros((g.groups, g.blocks * g.lanes, g.steps * g.depth), flat.dtype)
    packed[:, : g.channels, : g.outer * whole] = flat[..., :whole].reshape(*flat.shape[:2], -1)
    packed[:, : g.channels, g.outer * whole :][..., : g.outer] = flat[..., whole]
    return packed.reshape(*packed.shape[:2], -1, g.depth)


def pack_channels(values: Array, geometry: Geometry) -> Array:
    """One value a channel to ``[groups * blocks * lanes]``, zero-padded per group."""
    g = geometry
    packed = np.zeros((g.groups, g.blocks * g.lanes), values.dtype)
    packed[:, : g.channels] = values.reshape(g.groups, g.channels)
    return packed.reshape(-1)


def fold_zero_point(weights: Array, bias: Array, zero_point: int) -> Array | None:
    """``bias - zero_point * sum(weights)`` as int32; None where that does not fit."""
    sums = weights.astype("int64").reshape(weights.shape[0], -1).sum(1)
    folded = bias.astype("int64") - zero_point * sums
    return None if np.abs(folded).max(initial=0) > INT32_MAX else folded.astype("int32")


def requantization(p: Params, dtype: str, weights: Array, bias: Array, factor: Array) -> Requantization:
    """The epilogue's parameters; ``bias`` is the folded one."""
    magnitude = np.abs(weights.astype("int64")).reshape(weights.shape[0], -1).sum(1) * 255
    largest = (magnitude + np.abs(bias.astype("int64"))) * np.abs(factor.astype("float64"))
    guarded = bool(largest.max(initial=0.0) >= 2.0**31 - 2.0**10)
    return Requantization(dtype, int(p["out_zp"]), int(p["lo"]), int(p["hi"]), guarded)
