"""Portable convolution and dense layers: packed constant weights, accumulators in registers, any CPU.

Uses no intrinsic: products of widened 8-bit integers (or floats) with vectors of output channels,
which LLVM maps to what the target has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import s_tir, te, tirx
from tvm.target import Target

from tvm_qplugin.core.attrs import KERNEL, PARAMS, Implementation, KernelCall, encode_params
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels.arith import Expr, finish, single, wide
from tvm_qplugin.kernels.conv import bounded
from tvm_qplugin.kernels.movement import pad
from tvm_qplugin.schedules.cpu_blocks import architecture, blocks, cores, vector_bytes, widens_halves
from tvm_qplugin.schedules.cpu_loops import PARALLEL_WORK, schedule_spatial
from tvm_qplugin.schedules.cpu_pack import Plan, packed, plan

NAMES = ("qconv2d", "fconv2d", "qdense", "fdense")
_LOG = logging.getLogger(__name__)
DENSE = ("qdense", "fdense")
Wider = Callable[[Expr], Expr]


def rule(call: KernelCall, target: Target) -> Implementation | None:
    """A scheduled kernel and its packed constants.

    None if an array beside the input is not constant, for grouped convolutions that are not depthwise and
    for tensors with halos: those go to ``schedule_cpu``.
    """
    needed = (1, 2, 3) if call.name in ("qconv2d", "qdense") else (1, 2)
    halo = call.params.get("in_halo") or call.params.get("out_halo")
    if call.name not in NAMES or halo or any(i not in call.constants for i in needed):
        return None
    width = vector_bytes(target)
    tile = plan(
        call,
        width // (2 if call.out.dtype == "float16" else 4),
        32 if width == 64 or "x86" not in architecture(target) else 16,
    )
    if tile is None:
        return None
    constants = packed(call, tile)
    if constants is None:
        return None
    try:
        func = _schedule(_define(call, tile, constants, widens_halves(target)), call, tile, target)
    except s_tir.ScheduleError as error:
        _LOG.warning("%s %s: generic schedule instead, %s", call.name, call.args[0].shape, error)
        return None
    tags = {KERNEL: call.name, PARAMS: encode_params(call.params), "tirx.noalias": True}
    return Implementation(func.with_attrs({**tags, "tirx.is_scheduled": True}), (0, *constants))


def _define(call: KernelCall, tile: Plan, constants: Sequence[Array], native: bool) -> tirx.PrimFunc:
    x = te.placeholder(call.args[0].shape, call.args[0].dtype, name="x")
    packs = [te.placeholder(c.shape, str(c.dtype), name=n) for c, n in zip(constants, "wbm", strict=False)]
    make = _dense if call.name in DENSE else _conv
    widened = _float(call, native) or wide
    acc = make(call, tile, x, packs[0], widened)
    bias, factor = packs[1], packs[2] if len(packs) > 2 else None

    def element(*i: Expr) -> Expr:
        total = acc(*i[:-1], i[-1] // tile.lanes, i[-1] % tile.lanes)
        if factor is None:
            return bounded(call.params, total + widened(bias[i[-1]]))
        return finish(total + bias[i[-1]], factor[i[-1]], call.params, call.out.dtype)

    return te.create_prim_func([x, *packs, te.compute(call.out.shape, element, name="out")])


def _float(call: KernelCall, native: bool) -> Wider | None:
    """How operands become what is computed in, float32 or float16; None for integers."""
    if call.out.dtype == "float16":
        return lambda value: value.astype("float16")
    return (lambda value: single(value, native)) if call.out.dtype == "float32" else None


def _dense(call: KernelCall, tile: Plan, x: te.Tensor, w: te.Tensor, wider: Wider) -> te.Tensor:
    shape = [*call.out.shape[:-2], tile.width] if len(call.out.shape) > 1 else []
    if shape and tile.width != call.out.shape[-2]:
        x = pad(x, [0] * (2 * len(shape) - 1) + [tile.width - call.out.shape[-2], 0, 0], 0)
    k = te.reduce_axis((0, int(w.shape[1])), "k")

    def product(*i: Expr) -> Expr:
        return te.sum(wider(x(*i[:-2], k)) * wider(w[i[-2], k, i[-1]]), axis=k)

    return te.compute([*shape, w.shape[0], tile.lanes], product, name="acc")


def _conv(call: KernelCall, tile: Plan, x: te.Tensor, w: te.Tensor, wider: Wider) -> te.Tensor:
    p = call.params
    (sh, sw), (dh, dw) = p["strides"], p["dilation"]
    n, oh, _, _ = call.out.shape
    x = _padded(call, tile, x, int(w.shape[0]))
    axes = [
        te.reduce_axis((0, int(e)), name) for e, name in zip(w.shape[1:-1], ("kh", "kw", "c"), strict=False)
    ]

    def product(n: Expr, h: Expr, v: Expr, b: Expr, lane: Expr) -> Expr:
        c = b * tile.lanes + lane if tile.depthwise else axes[2]
        value = x[n, h * sh + axes[0] * dh, v * sw + axes[1] * dw, c]
        return te.sum(wider(value) * wider(w(b, *axes, lane)), axis=axes)

    return te.compute((n, oh, tile.width, w.shape[0], tile.lanes), product, name="acc")


def _padded(call: KernelCall, tile: Plan, x: te.Tensor, blocks_out: int) -> te.Tensor:
    """The input with its padding, and what whole tiles read beyond it."""
    p = call.params
    top, left, bottom, right = p["padding"]
    _, _, w, c = call.args[0].shape
    needed = (tile.width - 1) * p["strides"][1] + (call.args[1].shape[2] - 1) * p["dilation"][1] + 1
    right = max(right, needed - w - left)
    channels = blocks_out * tile.lanes - c if tile.depthwise else 0
    if not (top or left or bottom or right or channels):
        return x
    value = 0 if call.out.dtype.startswith("float") else p["in_zp"]
    return pad(x, (0, 0, top, bottom, left, right, 0, channels), value)


def _schedule(func: tirx.PrimFunc, call: KernelCall, tile: Plan, target: Target) -> tirx.PrimFunc:
    sch = s_tir.Schedule(tvm.IRModule({"main": func}), error_render_level="none")
    known = {block.name: block for block in blocks(sch)}
    if "pad" in known:
        schedule_spatial(sch, known["pad"], cores(target))
    acc = known["acc"]
    loops = sch.get_loops(acc.rv)
    *outer, group, lane = [loops[i] for i in acc.spatial]
    reduction = [loops[i] for i in acc.reduction]
    tiles, inner = [], []
    if outer:
        wo, wi = sch.split(outer.pop(), [None, tile.pixels])
        tiles, inner = [wo], [wi]
    sch.reorder(*outer[:1], group, *outer[1:], *tiles, *reduction, *inner, lane)
    _finish(sch, known["out"].rv, (tiles or [group])[0], call, tile)
    if acc.work >= PARALLEL_WORK and cores(target) > 1:
        sch.parallel(sch.fuse(*outer[:1], group, *outer[1:]))
    _accumulate(sch, acc.rv, reduction[0], inner, lane)
    return sch.mod["main"]


def _finish(sch: s_tir.Schedule, out: Any, at: Any, call: KernelCall, tile: Plan) -> None:
    """Requantize each tile where it was accumulated."""
    sch.reverse_compute_at(out, at, preserve_unit_loops=True)
    if call.out.shape[-1] % tile.lanes == 0:
        loops = sch.get_loops(out)
        sch.vectorize(loops[-1])
        if tile.pixels > 1 and tile.width == call.out.shape[-2]:
            sch.unroll(loops[-2])


def _accumulate(sch: s_tir.Schedule, acc: Any, first: Any, inner: list[Any], lane: Any) -> None:
    """Keep the tile in registers: constant indices, vectors of lanes, initialised outside the reduction."""
    sch.vectorize(lane)
    for loop in inner:
        sch.unroll(loop)
    start = sch.get_loops(sch.decompose_reduction(acc, first))
    sch.vectorize(start[-1])
    if inner:
        sch.unroll(start[-2])
