"""A convolution or dense layer as a walk over flat buffers: what the x86 generator is told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm_qplugin.schedules.x86_tiles import Shape


@dataclass(frozen=True)
class Axis:
    """A loop and how far one iteration moves in the source and in the output, in elements."""

    extent: int
    source: int
    out: int = 0


@dataclass(frozen=True)
class Scratch:
    """A copy of the needed part of the input, padded (and widened to ``dtype``).

    ``box`` is (images, rows, columns, channels); row y, column x of it come from input row ``y + top``,
    column ``x + left`` where the input (``size`` = rows, columns) has one.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    top: int
    left: int
    dtype: str


@dataclass(frozen=True)
class Halo:
    """The border of the output that the kernel fills: rows above, columns left, below, right."""

    shape: tuple[int, ...]
    border: tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """Everything about a call except its numbers and its tile.

    ``pixels`` has the axes of the output outermost first, merged where both buffers allow it. The
    reduction is ``taps`` (outer loops) around ``span`` contiguous elements, taken ``depth`` at a time;
    when ``depth`` does not divide ``span``, the last step reads the last ``depth`` elements again, or
    (``folds``, only if ``foldable``) the single elements left over from up to ``depth`` taps are gathered
    into one step. ``group_out``: elements from group to group in the output, where groups are not
    neighbours in a pixel. ``spread``: so many groups of the call, ``span`` elements each, are one here: each
    has its part of the channels, all in one vector.
    """

    pixels: tuple[Axis, ...]
    taps: tuple[Axis, ...]
    span: int
    depth: int
    lanes: int
    groups: int
    channels: int
    group_step: int
    source_origin: int = 0
    out_origin: int = 0
    scratch: Scratch | None = None
    halo: Halo | None = None
    foldable: bool = True
    group_out: int | None = None
    spread: int = 1

    @property
    def full_steps(self) -> int:
        """Steps of the innermost loop without the overlapping one."""
        return self.span // self.depth

    @property
    def folds(self) -> bool:
        """Whether each tap leaves one element over (three channels), worth gathering across the taps."""
        leaves_one = self.depth == 4 and self.span % 4 == 1 and self.span > 4
        return self.foldable and leaves_one and len(self.taps) == 1

    @property
    def has_tail(self) -> bool:
        """Whether every tap ends with an overlapping step."""
        return self.span % self.depth != 0 and not self.folds

    @property
    def outer(self) -> int:
        """Iterations of all taps."""
        return math.prod(tap.extent for tap in self.taps)

    @property
    def steps(self) -> int:
        """Steps of the whole reduction."""
        gathered = -(-self.outer // self.depth) if self.folds else 0
        return self.outer * (self.full_steps + self.has_tail) + gathered

    @property
    def blocks(self) -> int:
        """Vectors of output channels a group."""
        return -(-self.channels // self.lanes)

    @property
    def last_lanes(self) -> int:
        """Lanes for which weights of the last vector of channels are stored; a group's are always full."""
        alone = self.groups == 1 and self.group_out is None
        return self.channels - (self.blocks - 1) * self.lanes if alone else self.lanes

    @property
    def shape(self) -> Shape:
        """The part that the choice of a tile depends on."""
        rows = self.pixels[-2].extent if len(self.pixels) > 1 else 1
        return Shape(rows, self.pixels[-1].extent, self.blocks, self.steps, self.folds)

    @property
    def instructions(self) -> int:
        """Multiply instructions of the whole kernel."""
        return math.prod(axis.extent for axis in self.pixels) * self.groups * self.blocks * self.steps

    @property
    def weight_bytes(self) -> int:
        """Size of the packed weights as the multiply reads them."""
        return self.groups * self.blocks * self.steps * self.lanes * (4 if self.depth == 1 else self.depth)


def merge(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Drop axes of extent 1 and fuse neighbours that continue each other in source and output."""
    merged: list[Axis] = []
    for axis in axes:
        if axis.extent == 1 and not (axis is axes[-1] and not merged):
            continue
        outer = merged[-1] if merged else None
        if outer and outer.source == axis.extent * axis.source and outer.out == axis.extent * axis.out:
            merged[-1] = Axis(outer.extent * axis.extent, axis.source, axis.out)
        else:
            merged.append(axis)
    return tuple(merged)
