"""Addition on x86: ``qadd`` of two tensors of one shape, 64 or 32 elements at a time.

Multipliers, shift, zero points and clamp are read at run time: layers of one shape share a function. A call
may carry ``a_halo``, ``b_halo`` and ``out_halo`` (t, l, b, r) as convolutions do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tvm

from tvm_qplugin.core.attrs import (
    Implementation,
    KernelCall,
    Params,
    TensorSpec,
)
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.primfunc import arguments, function
from tvm_qplugin.schedules.x86_border import each_piece, fill_halo
from tvm_qplugin.schedules.x86_constants import Constants, Reader
from tvm_qplugin.schedules.x86_geometry import Halo
from tvm_qplugin.schedules.x86_isa import (
    AVX2,
    VNNI512,
    Buffer,
    Expr,
    Index,
    Isa,
    T,
    add_saturating_int16,
    load,
    pack_bytes,
    pack_int16,
    packed_lane,
    select_lanes,
    splat,
    store,
    supports,
)

PARALLEL_ELEMENTS = 64 * 1024  # what a parallel launch is worth
BYTES = ("int8", "uint8")


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel; None when operands are broadcast or sums may leave int32: the portable kernel serves."""
    isa = next((isa for isa in (VNNI512, AVX2) if supports(isa, target)), None)
    if isa is None or call.name != "qadd" or any(t.dtype not in BYTES for t in (*call.args, call.out)):
        return None
    halos = [tuple(call.params.get(f"{name}_halo") or (0,) * 4) for name in ("a", "b", "out")]
    shapes = [_logical(t, halo) for t, halo in zip((*call.args, call.out), halos, strict=True)]
    if len(set(shapes)) != 1 or not fits_int32(call.params):
        return None
    return _implement(call, isa, shapes[0], halos)


def _logical(spec: TensorSpec, halo: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without its halo."""
    if not any(halo):
        return spec.shape
    n, height, width, channels = spec.shape
    return n, height - halo[0] - halo[2], width - halo[1] - halo[3], channels


def fits_int32(p: Params) -> bool:
    """Whether no sum of an addition's products can leave int32."""
    largest = 255 * (abs(p["a_mul"]) + abs(p["b_mul"])) + (1 << (p["shift"] - 1))
    return bool(1 <= p["shift"] <= 30 and largest < 2**31)


def _constants(call: KernelCall) -> Constants:
    """``base`` holds the rounding term and both zero points; it wraps around, as do the products."""
    p, sections = call.params, dict[str, Array]()
    base = (1 << (p["shift"] - 1)) - p["a_zp"] * p["a_mul"] - p["b_zp"] * p["b_mul"]
    lo, hi = p["lo"] - p["out_zp"], p["hi"] - p["out_zp"]
    for name, value in {"a": p["a_mul"], "b": p["b_mul"], "base": base, "shift": p["shift"]}.items():
        sections[name] = np.asarray([value], "int64").astype("int32")
    for name, value in {"lo": lo, "hi": hi, "zero": p["out_zp"]}.items():
        sections[name] = np.asarray([value], "int32")
    sections["zero_words"] = np.full(2, p["out_zp"], "int16").view("int32")
    for name in ("lo", "hi"):
        sections[f"{name}_bytes"] = np.full(4, p[name], call.out.dtype).view("int32")
    return Constants.join(**sections)


def _implement(
    call: KernelCall, isa: Isa, shape: tuple[int, ...], halos: list[tuple[int, ...]]
) -> Implementation:
    constants = _constants(call)
    specs = [*call.args, TensorSpec(constants.data.shape, "int32"), call.out]
    with function(call) as builder:
        flat = arguments(specs)
        reader = constants.reader(flat[2])
        if any(halos[2]):
            fill_halo(Halo(call.out.shape, halos[2]), flat[3], reader.scalar("zero", call.out.dtype))
        _rows(call, isa, shape, halos, flat, reader)
    return Implementation(builder.get(), (0, 1, constants.data))


def _rows(
    call: KernelCall,
    isa: Isa,
    shape: tuple[int, ...],
    halos: list[tuple[int, ...]],
    flat: list[Buffer],
    reader: Reader,
) -> None:
    """One run over everything, or over every row where halos lie between rows or threads share the work."""
    size = math.prod(shape)
    parallel = size >= PARALLEL_ELEMENTS and len(shape) == 4
    if not parallel and not any(map(any, halos)):
        _add(isa, reader, flat, (0, 0, 0), size, str(call.out.dtype))
        return
    images, height, width, channels = shape
    with (T.parallel if parallel else T.serial)(0, images * height) as r:
        image, y = T.floordiv(r, height), T.floormod(r, height)
        starts = []
        for spec, (top, left, *_) in zip((*call.args, call.out), halos, strict=True):
            row = (image * spec.shape[1] + (y + top)) * spec.shape[2] + left
            starts.append(row * channels)
        _add(isa, reader, flat, tuple(starts), width * channels, str(call.out.dtype))


def _add(
    isa: Isa, reader: Reader, flat: list[Buffer], starts: tuple[Index, ...], count: int, dtype: str
) -> None:
    """Add ``count`` elements of ``flat`` (a, b, constants, output) from ``starts`` (a, b, output) on."""
    out = flat[3]

    def write(at: Index, lanes: int) -> None:
        places = [start + at for start in starts[:2]]
        if lanes < isa.bytes:
            value = _narrowed(reader, _sum(reader, flat, places, lanes), dtype, lanes)
        else:
            four = [_sum(reader, flat, [p + v * isa.lanes for p in places], isa.lanes) for v in range(4)]
            value = _packed(isa, reader, four, dtype)
        store(out, starts[2] + at, value, lanes)

    each_piece(count, isa.bytes, write)


def _sum(reader: Reader, flat: list[Buffer], places: Sequence[Index], lanes: int) -> Expr:
    """``lanes`` shifted sums of a and b from ``places`` on as int32, zero point not added."""
    wide = "int32" if lanes == 1 else f"int32x{lanes}"
    a, b = (
        T.Cast(wide, load(x, place, lanes)) * _word(reader, name, lanes)
        for x, place, name in zip(flat, places, ("a", "b"), strict=False)
    )
    return T.shift_right(a + b + _word(reader, "base", lanes), _word(reader, "shift", lanes))


def _word(reader: Reader, name: str, lanes: int) -> Expr:
    return reader.word(name) if lanes == 1 else splat(reader.word(name), lanes)


def _narrowed(reader: Reader, total: Expr, dtype: str, lanes: int) -> Expr:
    """Sums as bytes, any number of lanes."""
    lo, hi, zero = (_word(reader, name, lanes) for name in ("lo", "hi", "zero"))
    return T.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", T.max(T.min(total, hi), lo) + zero)


def _packed(isa: Isa, reader: Reader, four: Sequence[Expr], dtype: str) -> Expr:
    """Four vectors of sums as one of bytes: packed with saturation, lanes back in order."""
    zero = reader.repeated("zero_words", "int16", isa.bytes // 2)
    halves = [add_saturating_int16(pack_int16(a, b, isa), zero, isa) for a, b in (four[:2], four[2:])]
    packed = pack_bytes(halves[0], halves[1], dtype, isa)
    packed = T.min(packed, reader.repeated("hi_bytes", dtype, isa.bytes))
    packed = T.max(packed, reader.repeated("lo_bytes", dtype, isa.bytes))
    return select_lanes(packed, [packed_lane(v, e) for v in range(4) for e in range(isa.lanes)])
