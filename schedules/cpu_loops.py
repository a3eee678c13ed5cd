"""Loop structure of the generic CPU schedule: one function per kind of block."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tvm import s_tir

from tvm_qplugin.schedules.cpu_blocks import REDUCTION, SPATIAL, Block

PARALLEL_WORK = 1 << 16  # iterations that are worth a parallel launch of 1.6 us
BORDER_WORK = 1 << 12
UNROLL = 8
MOST_PIECES = 8
MOST_STACKED = 64
SHORTEST_PIECE = 8


def schedule_spatial(sch: s_tir.Schedule, block: Block, threads: int) -> None:
    """Fuse what is contiguous, so that LLVM finds one long loop to vectorise; parallel outside."""
    outside = any(axis < len(block.extents) - 1 for axis in block.cuts)
    if outside and (block.work >= BORDER_WORK or _stacks(block)):
        _schedule_bordered(sch, block, threads)
        return
    pieces = _pieces(block)
    if pieces:
        loops = sch.get_loops(block.rv)
        sch.loop_partition(loops[-1], [*pieces[:-1], None])
        outer = _outer_count(block, len(loops), threads)
        if outer:
            _parallel(sch, loops[:outer])
        return
    block = _near_what_it_reads(sch, block)
    loops = sch.get_loops(block.rv)
    outer = _outer_count(block, len(loops), threads)
    _shape_inner(sch, block, max(outer, _contiguous_from(block)))
    if outer:
        _parallel(sch, loops[:outer])


def _pieces(block: Block) -> list[int]:
    """Lengths of the pieces that a last axis falls into, as a concatenation does; none if some are short.

    One loop with a choice inside would be computed both ways, and unrolled to kilobytes of code.
    """
    last = len(block.extents) - 1
    if set(block.cuts) != {last} or block.heavy:
        return []
    stops = [0, *(at for at in block.cuts[last] if 0 < at < block.extents[last]), block.extents[last]]
    sizes = [stop - start for start, stop in pairwise(stops)]
    return sizes if 1 < len(sizes) <= MOST_PIECES and min(sizes) >= SHORTEST_PIECE else []


def _stacks(block: Block) -> bool:
    """Whether tensors are laid one behind another, as the states of all steps of a cell are."""
    (axis, *others), last = block.cuts, len(block.extents) - 1
    stops = [0, *block.cuts[axis], block.extents[axis]]
    least = min(stop - start for start, stop in pairwise(stops)) * math.prod(block.extents[axis + 1 :])
    if others or axis == last or len(stops) > MOST_STACKED + 1:
        return False
    return not block.heavy and least >= SHORTEST_PIECE


def _schedule_bordered(sch: s_tir.Schedule, block: Block, threads: int) -> None:
    """Give the border loops of its own, so that the interior has no branches."""
    inside, extents, outermost = block.rv, list(block.extents), None
    for axis in sorted(block.cuts)[: len(extents) - 1]:
        if axis == len(extents) - 1:
            continue
        stops = [0, *(at for at in block.cuts[axis] if 0 < at < extents[axis]), extents[axis]]
        sizes = [stop - start for start, stop in pairwise(stops)]
        if len(sizes) > 1:
            loop = sch.get_loops(inside)[axis - len(extents)]
            parts = sch.loop_partition(loop, [*sizes[:-1], None])
            largest = sizes.index(max(sizes))
            extents[axis], inside = sizes[largest], sch.get_child_blocks(parts[largest])[0]
            outermost = outermost or parts[largest]
    whole = replace(
        block, rv=inside, extents=tuple(extents), branches=len(extents) - 1 in block.cuts, cuts={}
    )
    _shape_inner(sch, whole, max(_contiguous_from(whole), 1 + max(block.cuts)))
    if outermost is not None and threads > 1 and whole.work >= PARALLEL_WORK:
        sch.parallel(outermost)


def _shape_inner(sch: s_tir.Schedule, block: Block, first: int) -> None:
    """Fuse the axes from ``first`` on, or unroll a short last axis along which a load jumps."""
    loops = sch.get_loops(block.rv)
    tail = loops[first - len(block.extents) :] if first < len(block.extents) else []
    if len(tail) > 1:
        sch.fuse(*tail)
    elif block.extents[-1] <= UNROLL and _transposes(block):
        sch.unroll(loops[-1])


def _outer_count(block: Block, rank: int, threads: int) -> int:
    """How many leading loops make the parallel one: enough for every thread, none if not worth it."""
    if threads < 2 or block.work < PARALLEL_WORK:
        return 0
    total = 1
    for i, extent in enumerate(block.extents[: rank - 1]):
        total *= extent
        if total >= 4 * threads:
            return i + 1
    return rank - 1 if total > 1 else 0


def _contiguous_from(block: Block) -> int:
    """The first axis from which on every access walks memory as the store does."""
    first = len(block.extents) - 1
    if block.branches or block.gathers:
        return first
    while first > 0 and all(
        load.strides[first - 1] == (load.strides[first] or 0) * block.extents[first]
        for load in (*block.loads, block.store)
    ):
        first -= 1
    return first


def _transposes(block: Block) -> bool:
    """Whether some load jumps along the last axis."""
    return any(load.strides[-1] not in (0, 1, None) for load in block.loads)


def _near_what_it_reads(sch: s_tir.Schedule, block: Block) -> Block:
    """Move the axis along which a transposing block reads memory next to the one along which it writes."""
    rank = len(block.extents)
    steps = [i for load in block.loads for i in range(rank - 2) if load.strides[i] == 1]
    if not steps or block.branches or block.extents[-1] <= UNROLL or not _transposes(block):
        return block
    order = [*(i for i in range(rank - 1) if i != steps[0]), steps[0], rank - 1]
    loops = sch.get_loops(block.rv)
    sch.reorder(*(loops[i] for i in order))
    return block.permuted(order)


def _parallel(sch: s_tir.Schedule, loops: list[Any]) -> None:
    sch.parallel(sch.fuse(*loops) if len(loops) > 1 else loops[0])


def schedule_reduction(
    sch: s_tir.Schedule, block: Block, epilogue: Block | None, threads: int, width: int, reorder_sums: bool
) -> None:
    """Accumulate a vector of neighbouring outputs if memory allows it, else one output at a time.

    ``reorder_sums`` allows one output to be the sum of partial float sums; integers need no permission.
    """
    loops = sch.get_loops(block.rv)
    spatial, reduction = [loops[i] for i in block.spatial], [loops[i] for i in block.reduction]
    if not spatial:
        return
    across = _across(block)
    lanes = vector_extent(block.extents[block.spatial[-1]], width, block.dtype) if across else None
    if not across and reorder_sums and _splittable(block, width // 4):
        _sum_partially(sch, block, epilogue, width // 4, threads)
        return
    if lanes is None:
        inner = spatial[-1:] if across and len(spatial) > 1 else []
        outside = spatial[: len(spatial) - len(inner)]
        sch.reorder(*outside, *reduction, *inner)
        _attach(sch, epilogue, outside[-1])
    else:
        _accumulate_vector(sch, block, epilogue, spatial, reduction, lanes)
    outer = _outer_count(block, len(spatial), threads)
    if outer:
        _parallel(sch, spatial[:outer])
    start = sch.get_loops(sch.decompose_reduction(block.rv, reduction[0]))
    if lanes is not None:
        sch.vectorize(start[-1])


def _splittable(block: Block, lanes: int) -> bool:
    """Whether a float reduction runs along memory: LLVM may not reorder it, so it stays scalar."""
    last = block.reduction[-1]
    along = all(load.strides[last] in (0, 1) for load in block.loads)
    return block.dtype == "float32" and along and block.extents[last] % lanes == 0


def _sum_partially(
    sch: s_tir.Schedule, block: Block, epilogue: Block | None, lanes: int, threads: int
) -> None:
    """Reduce ``lanes`` interleaved parts side by side, then those."""
    last = sch.get_loops(block.rv)[block.reduction[-1]]
    part = sch.split(last, [None, lanes])[1]
    partial = sch.rfactor(part, len(block.spatial))
    outputs = sch.get_loops(block.rv)[: len(block.spatial)]
    _attach(sch, epilogue, outputs[-1])
    sch.compute_at(partial, outputs[-1], preserve_unit_loops=True)
    kinds = [int(it.iter_type) for it in sch.get(partial).iter_vars]
    inner = list(zip(sch.get_loops(partial)[len(outputs) :], kinds, strict=True))
    lane = [loop for loop, kind in inner if kind == SPATIAL][-1]
    rest = [loop for loop, kind in inner if kind == REDUCTION]
    sch.reorder(*rest, lane)
    sch.vectorize(lane)
    outer = _outer_count(block, len(outputs), threads)
    if outer:
        _parallel(sch, outputs[:outer])
    sch.vectorize(sch.get_loops(sch.decompose_reduction(partial, rest[0]))[-1])


def _across(block: Block) -> bool:
    """Whether neighbours along the last data-parallel axis are neighbours in memory."""
    last = block.spatial[-1]
    steps = [load.strides[last] for load in block.loads]
    return block.store.strides[last] == 1 and 1 in steps and all(s in (0, 1) for s in steps)


def _accumulate_vector(
    sch: s_tir.Schedule,
    block: Block,
    epilogue: Block | None,
    spatial: list[Any],
    reduction: list[Any],
    lanes: int,
) -> None:
    """Registers hold ``lanes`` accumulators, for as many rows as share a load."""
    chunk, lane = sch.split(spatial[-1], [None, lanes])
    tile = _row_tile(sch, block, spatial)
    sch.reorder(*spatial[:-1], chunk, *reduction, *tile, lane)
    _attach(sch, epilogue, chunk)
    if epilogue is not None:
        sch.vectorize(sch.get_loops(epilogue.rv)[-1])
    sch.vectorize(lane)
    for loop in tile:
        sch.unroll(loop)


def _row_tile(sch: s_tir.Schedule, block: Block, spatial: list[Any]) -> list[Any]:
    """Split off up to four rows that use the same vectors; replaces the loop in ``spatial``."""
    if len(spatial) < 2:
        return []
    row, last = block.spatial[-2], block.spatial[-1]
    shared = any(load.strides[last] == 1 and load.strides[row] == 0 for load in block.loads)
    size = next((d for d in (4, 3, 2) if block.extents[row] % d == 0), 1)
    if not shared or size == 1:
        return []
    spatial[-2], inner = sch.split(spatial[-2], [None, size])
    return [inner]


def vector_extent(extent: int, width: int, dtype: str) -> int | None:
    """Accumulators side by side: a divisor of ``extent`` of up to four registers; None: no such.

    Not three of integers: what they sum up is narrower, and LLVM takes vectors of such a length apart.
    """
    lanes = width // 4
    registers = (4, 3, 2, 1) if dtype == "float32" else (4, 2, 1)
    return next((n * lanes for n in registers if extent % (n * lanes) == 0), None)


def _attach(sch: s_tir.Schedule, epilogue: Block | None, loop: Any) -> None:
    if epilogue is not None:
        sch.reverse_compute_at(epilogue.rv, loop)
