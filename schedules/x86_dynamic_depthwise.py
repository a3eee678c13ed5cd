"""Depthwise layers of int8 weights and float inputs on x86, as LiteRT's built-in kernel computes them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall, TensorSpec
from tvm_qplugin.schedules.primfunc import arguments, function
from tvm_qplugin.schedules.x86_constants import Constants
from tvm_qplugin.schedules.x86_depthwise import MAX_TAPS, complete, cores_of, cut_modes, tile_sizes
from tvm_qplugin.schedules.x86_depthwise_emit import chunks
from tvm_qplugin.schedules.x86_depthwise_plan import (
    Window,
    blocks,
    pack_channels,
    pack_weights,
    source,
    weight_plan,
    window,
)
from tvm_qplugin.schedules.x86_depthwise_tile import Buffers, Kernel
from tvm_qplugin.schedules.x86_dynamic_emit import Grid, quantized_image
from tvm_qplugin.schedules.x86_epilogue16 import Section
from tvm_qplugin.schedules.x86_geometry import Scratch
from tvm_qplugin.schedules.x86_isa import AVXVNNI256, Buffer, Expr, Isa, T, load, splat, store, supports

LARGEST = float(np.finfo("float32").max)
"""A minimum with it keeps a product from being contracted with a sum."""


def depthwise(call: KernelCall, target: tvm.target.Target, isa: Isa) -> Implementation | None:
    """The kernel; None for several images or channels that are no multiple of four."""
    n, *_, channels = call.args[0].shape
    scratch, w = _padded(call)
    if not cut_modes(w, isa) and supports(AVXVNNI256, target):
        isa = AVXVNNI256
    if n > 1 or channels % 4 or not cut_modes(w, isa) or int(np.prod(w.kernel)) > MAX_TAPS:
        return None
    if call.args[1].shape[0] != channels:
        return None
    cores = cores_of(target)
    config = complete(w, isa, cores, cut_modes(w, isa)[0], *tile_sizes(w, isa)[0])
    plan, cut = weight_plan(w, isa, config.rows), blocks(w, config.mode, isa)
    kernel = Kernel(isa, w, config, cut, source(w, config), plan, "uint8", cores)
    weight = np.asarray(call.constants[1])
    values = {
        "sums": weight.astype("int32").reshape(channels, -1).sum(1, dtype="int32"),
        "scale": np.broadcast_to(np.asarray(call.constants[2], "float32"), (channels,)),
        "bias": np.asarray(call.constants[3], "float32"),
    }
    sections = {name: pack_channels(array, cut, isa) for name, array in values.items()}
    if kernel.pinned:
        sections["nothing"] = np.zeros(1, "int32")
    constants = Constants.join(weights=pack_weights(weight[..., 0], w, cut, isa, plan), **sections)
    return _implement(call, kernel, scratch, constants)


def _padded(call: KernelCall) -> tuple[Scratch, Window]:
    """The codes with their border in memory, and the window over them."""
    n, height, width, channels = call.args[0].shape
    top, left, bottom, right = call.params["padding"]
    box = (n, height + top + bottom, width + left + right, channels)
    codes = replace(
        call,
        params={**call.params, "padding": [0, 0, 0, 0]},
        args=(TensorSpec(box, "uint8"), *call.args[1:]),
    )
    return Scratch(box, (height, width), -top, -left, "uint8"), window(codes)


def _implement(call: KernelCall, k: Kernel, scratch: Scratch, constants: Constants) -> Implementation:
    packed = TensorSpec(constants.data.shape, str(constants.data.dtype))
    with function(call) as builder:
        x, data, y = arguments([call.args[0], packed, call.out])
        codes, grid = quantized_image(k.isa, scratch, x, call.args[0], builtin=True)
        ends = _Ends(k.isa, grid, call.params.get("lo"), call.params.get("hi"))
        chunks(replace(k, ends=ends), Buffers(codes, constants.reader(data), y))
    return Implementation(builder.get(), (0, constants.data))


@dataclass(frozen=True)
class _Ends:
    """``float32(acc) * scale * step + bias``, each rounded; clamped."""

    isa: Isa
    grid: Grid
    lo: float | None
    hi: float | None

    def start(self, section: Section) -> Expr:
        """What the zero point adds too much."""
        return section("sums", "int32") * splat(T.int32(0) - self.grid.zero[0], self.isa.lanes)

    def finish(self, sections: list[Section], acc: list[Buffer], out: Buffer, at: Expr) -> None:
        """Store four vectors, whose quarters are four channels each, in the order of channels."""
        lanes = self.isa.lanes
        for section, cell in zip(sections, acc, strict=True):
            store(cell, 0, T.reinterpret(f"int32x{lanes}", self._real(section, load(cell, 0, lanes))), lanes)
        vectors = [T.reinterpret(f"float32x{lanes}", load(cell, 0, lanes)) for cell in acc]
        for quarter in range(lanes // 4):
            order = [v * lanes + quarter * 4 + e for v in range(4) for e in range(4)]
            store(out, at + quarter * 16, T.Shuffle(vectors, [T.int32(i) for i in order]), 16)

    def _real(self, section: Section, acc: Expr) -> Expr:
        lanes = self.isa.lanes
        scaled = T.Cast(f"float32x{lanes}", acc) * section("scale", "float32")
        product = T.min(scaled * splat(self.grid.step[0], lanes), splat(T.float32(LARGEST), lanes))
        value = product + section("bias", "float32")
        if self.lo is not None:
            value = T.max(value, splat(T.float32(self.lo), lanes))
        return value if self.hi is None else T.min(value, splat(T.float32(self.hi), lanes))
