"""The x86 generator: one parallel loop over register tiles of pixels x output channels.

Each kind of tile (sizes differ by one, the last block of channels may be partial) is emitted once, under
a condition on the loop's index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from tvm.tirx import PrimFunc

from tvm_qplugin.core.attrs import KERNEL, PARAMS, Implementation, KernelCall, TensorSpec, encode_params
from tvm_qplugin.schedules.primfunc import arguments, scheduled
from tvm_qplugin.schedules.x86_border import fill_halo, padded_copy
from tvm_qplugin.schedules.x86_constants import Constants, Reader
from tvm_qplugin.schedules.x86_geometry import Axis, Geometry
from tvm_qplugin.schedules.x86_isa import Expr, Isa, T, accumulator
from tvm_qplugin.schedules.x86_reduce import Cells, Kernel, Spot
from tvm_qplugin.schedules.x86_tiles import MIN_PARALLEL_INSTRUCTIONS, Part, Tile, balanced

PREFETCHED_BYTES = 64 * 1024  # smaller weights stay in L1 or L2 from run to run
SINGLE_BYTES = 256 * 1024  # the same for one pixel, which reads them in one go: the hardware fetches ahead


class Epilogue(Protocol):
    """Multiplies, and turns accumulators into stored results."""

    def reduce(self, kernel: Kernel, spot: Spot, acc: Cells) -> Cells:
        """Add all products, in ``acc`` or to the sums that are given back."""
        ...

    def finish(self, kernel: Kernel, spot: Spot, acc: Cells) -> None:
        """Store every accumulator of a tile."""
        ...


@dataclass(frozen=True)
class _Form:
    """All that the code of a kernel depends on: layers that agree in it share the function."""

    name: str
    source: TensorSpec
    packed: TensorSpec
    out: TensorSpec
    isa: Isa
    geometry: Geometry
    tile: Tile
    epilogue: Epilogue
    residual: tuple[TensorSpec, ...]
    starts: tuple[tuple[str, int], ...]
    halves: frozenset[str]


def implement(
    call: KernelCall, isa: Isa, geometry: Geometry, tile: Tile, epilogue: Epilogue, constants: Constants
) -> Implementation:
    """The scheduled PrimFunc ``(activation, residual where the call has one, constants, output)``.

    Sections: ``weights``, ``bias``, ``scale``, those of the epilogue, ``fill_in`` and ``fill_out``.
    """
    packed = TensorSpec(constants.data.shape, str(constants.data.dtype))
    starts = tuple(constants.starts.items())
    others = _residuals(call)
    residual = tuple(call.args[i] for i in others)
    shapes = call.args[0], packed, call.out
    form = _Form(call.name, *shapes, isa, geometry, tile, epilogue, residual, starts, constants.halves)
    func = _function(form).with_attr(KERNEL, call.name).with_attr(PARAMS, encode_params(call.params))
    return Implementation(func, (0, *others, constants.data))


@lru_cache(maxsize=64)
def _function(form: _Form) -> PrimFunc:
    with scheduled(form.name) as builder:
        _body(form)
    return builder.get()


def _residuals(call: KernelCall) -> tuple[int, ...]:
    """The arguments beside the activation that are known only at run time: at most one."""
    return tuple(i for i in range(1, len(call.args)) if i not in call.constants)


def _body(form: _Form) -> None:
    geometry = form.geometry
    source, *residual, packed, out = arguments([form.source, *form.residual, form.packed, form.out])
    dtype, reader = form.source.dtype, Reader(form.packed.dtype, dict(form.starts), packed, form.halves)
    if geometry.scratch:
        pad = reader.scalar("fill_in", geometry.scratch.dtype)
        source = padded_copy(geometry.scratch, source, dtype, pad)
        dtype = geometry.scratch.dtype
    if geometry.halo:
        fill_halo(geometry.halo, out, reader.scalar("fill_out", form.out.dtype))
    walk(Kernel(form.isa, form.tile, geometry, source, dtype, reader, out, *residual), form.epilogue)


def walk(k: Kernel, epilogue: Epilogue) -> None:
    """The loop over all tiles: the index gives group, channel vectors, image, rows and columns."""
    g = k.geometry
    axes = (Axis(1, 0), Axis(1, 0), *g.pixels)[-3:]
    cuts = (
        balanced(axes[1].extent, k.tile.rows),
        balanced(axes[2].extent, max(1, k.tile.mt // k.tile.rows)),
        channel_blocks(g, k.tile.nt),
    )
    n_rows, n_columns, n_blocks = (sum(part.count for part in parts) for parts in cuts)
    tiles, units = axes[0].extent * n_rows * n_columns, g.groups * n_blocks
    parallel = g.instructions >= MIN_PARALLEL_INSTRUCTIONS and tiles * units > 1
    with (T.parallel if parallel else T.serial)(0, tiles * units) as t:
        unit, place = _decode(t, tiles, units, k.tile.order)
        group, block = T.floordiv(unit, n_blocks), T.floormod(unit, n_blocks)
        image = T.floordiv(place, n_columns * n_rows)
        row, column = T.floormod(T.floordiv(place, n_columns), n_rows), T.floormod(place, n_columns)

        def emit(parts: list[Part]) -> None:
            y, x, first = (
                i * part.size + part.offset for i, part in zip((row, column, block), parts, strict=True)
            )
            _tile(k, _spot(g, axes, (image, y, x), group, first, parts), epilogue, place, tiles)

        _branch([row, column, block], cuts, emit)


def _decode(t: Expr, tiles: int, units: int, order: str) -> tuple[Expr, Expr]:
    """(unit of channels, tile of pixels) of iteration ``t``."""
    if order == "om":
        return T.floordiv(t, tiles), T.floormod(t, tiles)
    return T.floormod(t, units), T.floordiv(t, units)


def channel_blocks(g: Geometry, largest: int) -> list[Part]:
    """The parts of a group's channel vectors; a tile whose last vector is partial is a part of its own."""
    parts = balanced(g.blocks, largest)
    valid = g.channels % g.lanes
    if valid:
        last = parts.pop()
        if last.count > 1:
            parts.append(replace(last, count=last.count - 1))
        parts.append(replace(last, count=1, valid=valid))
    return parts


def _branch(indices: Sequence[Expr], cuts: Sequence[list[Part]], emit: Callable[[list[Part]], None]) -> None:
    """Call ``emit`` for every combination of parts, under the condition that the indices lie in them."""
    if not indices:
        emit([])
        return

    def cut(parts: list[Part], start: int) -> None:
        part, rest = parts[0], parts[1:]

        def inside() -> None:
            _branch(indices[1:], cuts[1:], lambda others: emit([part, *others]))

        if not rest:
            inside()
            return
        with T.If(indices[0] < start + part.count):
            with T.Then():
                inside()
            with T.Else():
                cut(rest, start + part.count)

    cut(cuts[0], 0)


def _spot(
    g: Geometry, axes: tuple[Axis, ...], at: tuple[Expr, ...], group: Expr, block: Expr, parts: list[Part]
) -> Spot:
    """The tile at (image, row, column) ``at`` and vector ``block`` of a group."""
    rows, columns = axes[1:]
    places = [(y, x) for y in range(parts[0].size) for x in range(parts[1].size)]
    source = sum(i * axis.source for i, axis in zip(at, axes, strict=True))
    out = sum(i * axis.out for i, axis in zip(at, axes, strict=True))
    step = g.channels if g.group_out is None else g.group_out
    return Spot(
        source + group * g.group_step + g.source_origin,
        out + (group * step + block * g.lanes + g.out_origin),
        group * g.blocks + block,
        tuple((y * rows.source + x * columns.source, y * rows.out + x * columns.out) for y, x in places),
        parts[2].size,
        parts[2].valid or g.lanes,
    )


def _tile(k: Kernel, spot: Spot, epilogue: Epilogue, place: Expr, tiles: int) -> None:
    with T.sblock("tile"):
        T.reads()
        T.writes()
        spot = _ahead(k, spot, place, tiles)
        acc = [[accumulator(k.isa) for _ in range(spot.vectors)] for _ in spot.pixels]
        epilogue.finish(k, spot, epilogue.reduce(k, spot, acc))


def _ahead(k: Kernel, spot: Spot, place: Expr, tiles: int) -> Spot:
    """The tile with its share of the next channels' weights to prefetch, if weights are read in turn."""
    g, step = k.geometry, k.isa.lanes * k.isa.depth
    if (
        k.isa.chain
        or k.tile.order != "om"
        or g.weight_bytes < (SINGLE_BYTES if tiles == 1 else PREFETCHED_BYTES)
    ):
        return spot
    size = spot.vectors * g.steps * step
    stride = -(-size // (tiles * g.steps))
    return replace(
        spot, ahead=((spot.block + spot.vectors) * (g.steps * step) + place * (stride * g.steps), stride)
    )
