"""Depthwise convolutions on x86: ``qconv2d``, ``qconv2d16`` and ``fconv2d`` with one input channel a group.

Several output channels of a group read copies of their channel, which are made with the border. Beside the
parameters of ``core/oracle.py`` a call may carry ``in_halo`` and ``out_halo`` (t, l, b, r): the physical
tensors have that many rows and columns of zero points around the logical ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.x86_constants import Constants, fills, words
from tvm_qplugin.schedules.x86_depthwise_emit import implement
from tvm_qplugin.schedules.x86_depthwise_plan import (
    Config,
    Window,
    blocks,
    group_depth,
    pack_channels,
    pack_weights,
    row_groups,
    source,
    weight_plan,
    window,
)
from tvm_qplugin.schedules.x86_depthwise_tile import FloatClamp, Kernel
from tvm_qplugin.schedules.x86_isa import AVXVNNI256, F32_256, I16_256, Isa, select_isa, supports
from tvm_qplugin.schedules.x86_pack import Requantization, fold_zero_point, requantization
from tvm_qplugin.schedules.x86_rescale16 import Rescaling, rescaling

MAX_TAPS = 225
STAGED_BYTES = 192 * 1024
MAX_PHASES = 36
NARROWER = {"vnni512": AVXVNNI256, "f32_512": F32_256, "i16_512": I16_256}
KERNELS = ("qconv2d", "qconv2d16", "fconv2d")
Finish = Requantization | FloatClamp | Rescaling
ITEM = {"float32": 4, "int16": 2}


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel with default knobs; None when another rule or the portable kernel must serve."""
    found = candidates(call, target)
    return with_config(call, target, found[0]) if found else None


def candidates(call: KernelCall, target: tvm.target.Target) -> list[Config]:
    """Configurations worth measuring, the default first; empty when the rule does not apply."""
    isa = plan(call, target)
    if isa is None:
        return []
    w, cores = window(call), cores_of(target)
    found: dict[Config, None] = {}
    for mode in cut_modes(w, isa):
        for rows, columns in tile_sizes(w, isa):
            found[complete(w, isa, cores, mode, rows, columns)] = None
    return list(found)


def plan(call: KernelCall, target: tvm.target.Target) -> Isa | None:
    """The instruction set, if this file serves the call."""
    if call.name not in KERNELS or any(i not in call.constants for i in range(1, len(call.args))):
        return None
    weight, channels = call.args[1].shape, call.args[0].shape[3]
    if weight[3] != 1 or call.params.get("groups", 1) != channels or weight[0] > channels == 1:
        return None
    if weight[1] * weight[2] > MAX_TAPS:
        return None
    isa = select_isa(call.args[0].dtype, target)
    while isa is not None and not cut_modes(window(call), isa):
        isa = NARROWER.get(isa.name)
        isa = isa if isa and supports(isa, target) else None
    return isa


def with_config(call: KernelCall, target: tvm.target.Target, config: Config) -> Implementation | None:
    """The kernel with given knobs; None when its numbers cannot be represented."""
    isa = plan(call, target)
    if isa is None:
        return None
    numbers = _numbers(call)
    if numbers is None:
        return None
    finish, per_channel = numbers
    w = window(call)
    rows = min(config.rows, w.size[0])
    config = replace(config, rows=rows, chunk=min(max(config.chunk, rows), w.size[0]))
    cut, weights = blocks(w, config.mode, isa), weight_plan(w, isa, rows)
    clamp = finish if isinstance(finish, FloatClamp) else None
    lies, dtype = source(w, config), call.args[0].dtype
    kernel = Kernel(isa, w, config, cut, lies, weights, dtype, cores_of(target), clamp)
    sections = {name: pack_channels(values, cut, isa) for name, values in per_channel.items()}
    if isinstance(finish, Requantization):
        sections |= words(finish) | borders(call, kernel, finish.zero_point)
    if isinstance(finish, Rescaling):
        sections |= finish.bounds
    if kernel.pinned:
        sections["nothing"] = np.zeros(1, "int32")
    taps = finish.weights if isinstance(finish, Rescaling) else np.asarray(call.constants[1])
    packed = pack_weights(taps[..., 0], w, cut, isa, weights)
    return implement(call, kernel, Constants.join(weights=packed, **sections))


def borders(call: KernelCall, k: Kernel, zero_out: int) -> dict[str, Array]:
    """The sections for what is written around a scratch and the output."""
    zero_in = int(call.params["in_zp"]) if k.config.stage else 0
    return fills(fill_in=zero_in, fill_out=zero_out if any(k.window.halo) else 0)


def _numbers(call: KernelCall) -> tuple[Finish, Mapping[str, Array]] | None:
    """The epilogue and the values a channel (``bias``, ``scale``); None if the folded bias exceeds int32."""
    if call.name == "qconv2d16":
        found = rescaling(call)
        return found, found.channels
    weights, shape = np.asarray(call.constants[1]), call.args[1].shape[:1]
    bias = np.broadcast_to(np.asarray(call.constants[2]), shape)
    if call.name == "fconv2d":
        return FloatClamp(call.params.get("lo"), call.params.get("hi")), {"bias": bias}
    factor = np.broadcast_to(np.asarray(call.constants[3], "float32"), shape)
    folded = fold_zero_point(weights, bias, int(call.params["in_zp"]))
    if folded is None:
        return None
    finish = requantization(call.params, call.out.dtype, weights, folded, factor)
    return finish, {"bias": folded, "scale": factor}


def cores_of(target: tvm.target.Target) -> int:
    """Threads to expect on the target."""
    return int(target.attrs.get("num-cores", 1))


def cut_modes(w: Window, isa: Isa) -> list[str]:
    """Ways to cut a row in vectors, the best first: by pixel if the channels fill vectors well."""
    vector, channels = isa.fanout * isa.lanes, w.channels
    if channels % vector == 0:
        return ["block"]
    flat = math.lcm(channels, vector) // vector <= MAX_PHASES and w.size[1] * channels >= vector
    modes = ["flat"] if flat else []
    if channels >= vector:
        overlap = -(-channels // vector) * vector / channels
        first = overlap <= 1.15 or (w.bordered and (overlap <= 1.4 or w.strides[1] > 1))
        modes.insert(0 if first else len(modes), "block")
    return modes


def _shared_rows(w: Window, isa: Isa) -> int:
    """Output rows that the interleaved input rows can serve without more groups than one row needs."""
    if w.dilation[0] > 1:
        return 1
    depth = group_depth(isa)
    if depth == 1:
        return min(2, w.size[0])
    groups = len(row_groups(w, 1, depth))
    spare = groups * depth - w.kernel[0]
    return max(1, min(1 + spare // w.strides[0], w.size[0], 4 if groups == 1 else 2))


def tile_sizes(w: Window, isa: Isa) -> list[tuple[int, int]]:
    """Tiles (rows, columns), the best first: wide kernels need their registers for weights."""
    most, roomy = _shared_rows(w, isa), isa.registers == 32
    columns = 2 if roomy else 1
    first = (most, columns)
    if w.kernel[1] > 3 and isa.accumulator != "float32":
        first = (1, columns if w.strides[1] == 1 else 1)
    others = [(rows, n) for rows in (most, 1) for n in ((2, 1, 4) if roomy else (1, 2))]
    return list(dict.fromkeys([first, *others]))


def complete(
    w: Window, isa: Isa, cores: int, mode: str, rows: int, columns: int, staged: int = STAGED_BYTES
) -> Config:
    """Complete the knobs: whether to stage, and how many rows at a time (of ``staged`` bytes in all)."""
    stage = not w.bordered or (mode == "flat" and w.strides[1] > 1)
    height = w.size[0]
    if not stage:
        return Config(mode, rows, columns, rows, False)
    row = source(w, Config(mode, rows, columns, rows, True)).pitch * ITEM.get(isa.weights, 1)
    fit = max(rows, (staged // row - w.span(0, 1)) // w.strides[0] + 1)
    parts = max(-(-height // fit), min(cores, height // rows))
    chunk = -(-height // parts)
    return Config(mode, rows, columns, min(height, -(-chunk // rows) * rows), True)
