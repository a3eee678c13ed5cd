"""Bytes multiplied in pairs and added in int16 (``vpmaddubsw``), in an order that weights prove exact.

An int16 holds the sum of products of uint8 and weights if the positive weights among them add up to at most
128 and the negative ones to at least -128: 255 * 128 <= 32767. Steps of four input channels are put together
in chains for which that holds in every output channel; their sums are added to int32 once a chain. A step
that fails alone is done in two, with half of the weights each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.x86_geometry import Geometry
from tvm_qplugin.schedules.x86_pack import in_steps

LIMIT = 128
OPEN = 32  # chains that a step is tried in
SAMPLED_BLOCKS, SAMPLED_STEPS = 8, 64


@dataclass(frozen=True)
class Chains:
    """All steps, chain after chain, those of a vector of output channels together and by length.

    ``offsets`` [n] int32: where a step reads, from a pixel's first element; ``weights`` [n, lanes, depth]
    int8. ``starts`` [blocks, longest] int32: the first step of the chains of each length, ``counts``: how
    many chains. Steps behind the last one belong to no chain.
    """

    offsets: Array
    weights: Array
    starts: Array
    counts: Array

    def sections(self) -> dict[str, Array]:
        """What the kernel reads."""
        return {
            "weights": self.weights,
            "offsets": self.offsets,
            "starts": self.starts,
            "counts": self.counts,
        }


def demand(steps: Array) -> Array:
    """What ``steps`` [..., lanes, 4] take of each int16's room above and below zero: [..., 4 * lanes]."""
    pairs = steps.astype("int16").reshape(*steps.shape[:-2], -1, 2)
    above, below = np.maximum(pairs, 0).sum(-1), -np.minimum(pairs, 0).sum(-1)
    return np.concatenate([above, below], -1).astype("int16")


def halved(steps: Array) -> Array:
    """``steps`` [..., n, lanes, 4] as [..., 2 * n, lanes, 4], two each: pairs that fit no int16 in halves."""
    pairs = steps.reshape(*steps.shape[:-1], 2, 2)
    wide = pairs.astype("int16")
    above, below = np.maximum(wide, 0).sum(-1), np.minimum(wide, 0).sum(-1)
    large = (above > LIMIT) | (below < -LIMIT)
    half = np.where(large[..., None], wide // 2, 0).astype("int8").reshape(steps.shape)
    both = np.stack([steps - half, half], -3)
    return both.reshape(*steps.shape[:-3], -1, *steps.shape[-2:])


def chained(weights: Array, geometry: Geometry, longest: int) -> Chains:
    """The packed weights of a kernel; ``weights`` as ``pack_weights``'."""
    steps = halved(_steps(weights, geometry))
    chain = arranged(steps, longest)
    block, step = np.nonzero(chain >= 0)
    names = chain[block, step]
    sizes = np.zeros((len(steps), names.max(initial=-1) + 1), "int64")
    np.add.at(sizes, (block, names), 1)
    order = np.lexsort((step, names, sizes[block, names], block))
    counts = np.stack([(sizes == n).sum(1) for n in range(1, longest + 1)], 1)
    taken = (counts * np.arange(1, longest + 1)).reshape(-1)
    starts = (np.cumsum(taken) - taken).reshape(counts.shape)
    unit = 1 << max(len(order).bit_length() - 4, 0)  # similar layers are to share their code
    size = -(-len(order) // unit) * unit
    offsets, packed = np.zeros(size, "int32"), np.zeros((size, *steps.shape[2:]), "int8")
    offsets[: len(order)] = np.repeat(_offsets(geometry), 2)[step[order]]
    packed[: len(order)] = steps[block[order], step[order]]
    return Chains(offsets, packed, starts.astype("int32"), counts.astype("int32"))


def multiplies(weights: Array, geometry: Geometry, longest: int) -> float:
    """Multiply instructions for each step, estimated from some steps of some vectors of channels."""
    steps = _steps(weights, geometry)
    some = steps[:: max(1, len(steps) // SAMPLED_BLOCKS), :SAMPLED_STEPS]
    chain = arranged(halved(some), longest)
    return float(((chain >= 0).sum() + (chain.max(1) + 1).sum()) / (len(some) * some.shape[1]))


def _steps(weights: Array, g: Geometry) -> Array:
    """``[groups * blocks, steps, lanes, depth]``."""
    steps = in_steps(weights, g).reshape(g.groups * g.blocks, g.lanes, g.steps, g.depth)
    return steps.transpose(0, 2, 1, 3)


def arranged(steps: Array, longest: int) -> Array:
    """The chain of each of ``steps`` [blocks, n, lanes, 4], counted in every block; -1: it is all zeros.

    A step goes to the first of the open chains in which it fits.
    """
    needed = demand(steps)
    blocks, n, room = needed.shape
    used, every = np.zeros((blocks, OPEN, room), "int16"), np.arange(blocks)
    filled, names = np.full((blocks, OPEN), longest), np.zeros((blocks, OPEN), "int64")
    counts, chain = np.zeros(blocks, "int64"), np.full((blocks, n), -1)
    for i in range(n):
        live = needed[:, i].any(-1)
        fits = ((used + needed[:, i, None]).max(-1) <= LIMIT) & (filled < longest)
        at = np.where(fits.any(-1), fits.argmax(-1), filled.argmax(-1))
        fresh = every[live & ~fits[every, at]]
        used[fresh, at[fresh]], filled[fresh, at[fresh]] = 0, 0
        names[fresh, at[fresh]] = counts[fresh]
        counts[fresh] += 1
        here = every[live], at[live]
        chain[live, i] = names[here]
        used[here] += needed[live, i]
        filled[here] += 1
    return chain


def _offsets(g: Geometry) -> Array:
    """Where each step reads."""
    offsets = np.zeros(1, "int64")
    for tap in g.taps:
        offsets = np.add.outer(offsets, np.arange(tap.extent) * tap.source).reshape(-1)
    inside = [i * g.depth for i in range(g.full_steps)] + [max(g.span - g.depth, 0)] * g.has_tail
    return np.asarray(np.add.outer(offsets, inside).reshape(-1))
