"""Convolutions (not depthwise) on x86: ``qconv2d``, ``qconv2d16`` with integer instructions, ``fconv2d``.

Beside the parameters of ``core/oracle.py`` a call may carry ``in_halo`` and ``out_halo`` (t, l, b, r): the
physical tensors have that many rows and columns of zero points around the logical ones.
"""

from __future__ import annotations

import numpy as np
import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.schedules.x86_geometry import Axis, Geometry, Halo, Scratch, merge
from tvm_qplugin.schedules.x86_isa import Isa, select_isa
from tvm_qplugin.schedules.x86_kernel import Plan, computable, with_pairs
from tvm_qplugin.schedules.x86_residual import addable
from tvm_qplugin.schedules.x86_tiles import Tile

KERNELS = ("qconv2d", "qconv2d_add", "qconv2d16", "fconv2d")
WIDEST_BYTES = 64


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel with the default tile; None when another rule or the portable kernel must serve."""
    found = fastest(call, target)
    return None if found is None else found.implement(found.default())


def with_tile(call: KernelCall, target: tvm.target.Target, tile: Tile) -> Implementation | None:
    """The kernel with a given tile; None as ``rule``."""
    found = fastest(call, target)
    return None if found is None else found.implement(tile)


def candidates(call: KernelCall, target: tvm.target.Target) -> list[Tile]:
    """Tiles worth measuring, the default first; empty when the rule does not apply."""
    found = fastest(call, target)
    return [] if found is None else found.candidates()


def plan(call: KernelCall, target: tvm.target.Target) -> Plan | None:
    """Instruction set and geometry, if this file serves the call."""
    if not computable(call, KERNELS):
        return None
    if "add" in call.params and not addable(call):
        return None
    groups = call.params.get("groups", 1)
    if groups > 1 and groups == call.args[0].shape[3] and call.args[1].shape[3] == 1:
        return None
    isa = select_isa(call.args[0].dtype, target)
    return None if isa is None else Plan(call, isa, conv_geometry(call, isa))


def fastest(call: KernelCall, target: tvm.target.Target) -> Plan | None:
    """``plan``, with bytes in pairs where the weights make that faster."""
    found = plan(call, target)
    return None if found is None else with_pairs(found, conv_geometry)


def fuses(call: KernelCall, target: tvm.target.Target) -> bool:
    """Whether a convolution with an addition is better one kernel than two: not where vectors are partial."""
    found = plan(call, target) if call.name == "qconv2d_add" else None
    return found is not None and found.geometry.channels % found.geometry.lanes == 0


def conv_geometry(call: KernelCall, isa: Isa) -> Geometry:
    """NHWC convolution with physical halos around input and output (see the module)."""
    _, height, width, c = call.args[0].shape
    groups, o, spread = call.params.get("groups", 1), call.out.shape[3], _spread(call, isa)
    scratch = _conv_scratch(call, isa)
    top, left, *_ = _window(call)
    if scratch:
        (_, height, width, _), top, left = scratch.box, 0, 0
    pitch, halo = width * c, _halo(call, "out_halo")
    taps, span = _conv_reduction(call, pitch)
    return Geometry(
        pixels=merge(_conv_pixels(call, height, width)),
        taps=taps,
        span=span,
        depth=isa.depth,
        lanes=isa.lanes,
        groups=groups // spread,
        channels=o // groups * spread,
        group_step=c // groups * spread,
        source_origin=top * pitch + left * c,
        out_origin=(halo[0] * call.out.shape[2] + halo[1]) * o,
        scratch=scratch,
        halo=Halo(call.out.shape, halo) if any(halo) else None,
        foldable=not isa.chain,
        spread=spread,
    )


def _spread(call: KernelCall, isa: Isa) -> int:
    """How many groups fill a vector of channels, if their inputs can be read as one vector."""
    groups, span = call.params.get("groups", 1), call.args[1].shape[3]
    if groups == 1 or isa.chain or span % isa.depth:
        return 1
    item = np.dtype(isa.source or call.args[0].dtype).itemsize
    most = min(isa.lanes // (call.out.shape[3] // groups), WIDEST_BYTES // (span * item))
    return next((n for n in range(most, 1, -1) if groups % n == 0 and (n * span).bit_count() == 1), 1)


def _halo(call: KernelCall, name: str) -> tuple[int, ...]:
    return tuple(call.params.get(name) or (0, 0, 0, 0))


def _output_size(call: KernelCall) -> tuple[int, int]:
    """Rows and columns of the logical output."""
    top, left, bottom, right = _halo(call, "out_halo")
    return call.out.shape[1] - top - bottom, call.out.shape[2] - left - right


def _window(call: KernelCall) -> tuple[int, int, int, int]:
    """First row and column of the physical input that is read (may be negative), and how many."""
    p, (kh, kw) = call.params, call.args[1].shape[1:3]
    (sh, sw), (dh, dw), halo = p["strides"], p.get("dilation", (1, 1)), _halo(call, "in_halo")
    oh, ow = _output_size(call)
    rows, columns = (oh - 1) * sh + (kh - 1) * dh + 1, (ow - 1) * sw + (kw - 1) * dw + 1
    return halo[0] - p["padding"][0], halo[1] - p["padding"][1], rows, columns


def _conv_scratch(call: KernelCall, isa: Isa) -> Scratch | None:
    """A copy, if the input lacks padding, is too narrow to be read in words, or has the wrong dtype."""
    n, height, width, c = call.args[0].shape
    top, left, rows, columns = _window(call)
    inside = top >= 0 and left >= 0 and top + rows <= height and left + columns <= width
    if inside and not isa.source and _span(call) >= isa.depth:
        return None
    return Scratch((n, rows, columns, c), (height, width), top, left, isa.source or call.args[0].dtype)


def _span(call: KernelCall) -> int:
    """Contiguous elements that one kernel row (or, dilated or in groups, one tap) reads."""
    kw, per_group = call.args[1].shape[2:]
    return kw * per_group if _rows_contiguous(call) else per_group


def _rows_contiguous(call: KernelCall) -> bool:
    return bool(call.params.get("dilation", (1, 1))[1] == 1 and call.params.get("groups", 1) == 1)


def _conv_reduction(call: KernelCall, pitch: int) -> tuple[tuple[Axis, ...], int]:
    """Outer loops and span; a loop that continues the span becomes part of it."""
    kh, kw = call.args[1].shape[1:3]
    dh, dw = call.params.get("dilation", (1, 1))
    rows, columns = Axis(kh, dh * pitch), Axis(kw, dw * call.args[0].shape[3])
    taps = [tap for tap in ((rows,) if _rows_contiguous(call) else (rows, columns)) if tap.extent > 1]
    span = _span(call)
    while taps and taps[-1].source == span:
        span *= taps.pop().extent
    return tuple(taps), span


def _conv_pixels(call: KernelCall, height: int, width: int) -> tuple[Axis, ...]:
    """Images, rows and columns of the output, over a source of the given size."""
    n, c = call.args[0].shape[0], call.args[0].shape[3]
    _, out_height, out_width, o = call.out.shape
    (sh, sw), (oh, ow) = call.params["strides"], _output_size(call)
    return (
        Axis(n, height * width * c, out_height * out_width * o),
        Axis(oh, sh * width * c, out_width * o),
        Axis(ow, sw * c, o),
    )
