"""Dense layers of float inputs and stored weights of 8 or 4 bits (``wdense``): unpacked in registers.

The generator of ``x86_emit`` walks the tiles; on CPUs without AVX2 nothing is an intrinsic, so it serves any.
Steps are of eight weights: with 4 bits a vector of int32, one word for each output, the first weight in the
lowest bits; with 8 bits eight vectors of int8. A group begins with a step of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.target.codegen import target_has_features

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.core.grouped import Grouped
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.cpu_blocks import vector_bytes
from tvm_qplugin.schedules.weight_only_emit import LATE_PIXELS, STEP, WeightOnly
from tvm_qplugin.schedules.x86_constants import Constants
from tvm_qplugin.schedules.x86_dense import dense_geometry
from tvm_qplugin.schedules.x86_emit import channel_blocks, implement
from tvm_qplugin.schedules.x86_geometry import Geometry
from tvm_qplugin.schedules.x86_isa import Isa, select_isa
from tvm_qplugin.schedules.x86_pack import pack_channels
from tvm_qplugin.schedules.x86_tiles import Tile

SINGLE_VECTORS = {8: 4, 4: 6}  # of one row, by bits: sums side by side to hide the latency of FMA
HELD = 6  # registers for weights, scales and temporaries of two vectors
NIBBLES = np.array([*range(8), *range(-8, 0)], "float32")


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel; None for anything but ``wdense`` of constants."""
    if call.name != "wdense" or set(call.constants) != {1, 2, 3} or target.kind.name != "llvm":
        return None
    isa = select_isa("float32", target) or _portable(target)
    geometry = dense_geometry(call, isa)
    epilogue = WeightOnly(
        call.params.get("lo"),
        call.params.get("hi"),
        call.params["bits"],
        min(call.params["group"], call.params["depth"]),
        "float16" if _halves(call, target) else "float32",
    )
    tile = _tile(isa, geometry, epilogue.bits)
    return implement(call, isa, geometry, tile, epilogue, _constants(call, geometry, tile, epilogue))


def _portable(target: tvm.target.Target) -> Isa:
    lanes = vector_bytes(target) // 4
    return Isa("portable", (), lanes, 1, 16, 1, "float32", weights="float32")


def _halves(call: KernelCall, target: tvm.target.Target) -> bool:
    """Whether scales stay float16: where converting them is an instruction."""
    return call.args[2].dtype == "float16" and bool(target_has_features(["f16c"], target))


def _tile(isa: Isa, g: Geometry, bits: int) -> Tile:
    """Of few rows many vectors, of many rows two, so that a weight is unpacked for as many rows as can be."""
    rows, wide = g.shape.columns, isa.registers > 16
    if rows == 1:
        return Tile(1, min(SINGLE_VECTORS[bits if wide else 8], g.blocks))
    if rows <= LATE_PIXELS:
        return Tile(rows, min(4 if wide else 2, g.blocks))
    return Tile((isa.registers - HELD) // 2, min(2, g.blocks))


def _constants(call: KernelCall, g: Geometry, tile: Tile, epilogue: WeightOnly) -> Constants:
    codes, scale = (np.asarray(call.constants[i]) for i in (1, 2))
    stored = Grouped(codes, scale, call.params["depth"], epilogue.group)
    sizes = [part.size for part in channel_blocks(g, tile.nt) for _ in range(part.count)]
    return Constants.join(
        weights=pack(stored, g.lanes, sizes).view("int8"),
        scale=_by_tile(scale.astype(epilogue.scale_dtype), g.lanes, sizes),
        bias=pack_channels(np.asarray(call.constants[3], "float32"), g),
        table=NIBBLES,
    )


def pack(stored: Grouped, lanes: int, sizes: Sequence[int]) -> Array:
    """Codes as the kernel reads them, one behind the other: of each tile [steps, vectors, lanes].

    ``sizes``: vectors of each tile. Of 8 bits there are eight such for every step.
    """
    codes, group = stored.values(), stored.group
    parts = [codes[:, start : start + group] for start in range(0, stored.depth, group)]
    whole = np.concatenate([np.pad(p, ((0, 0), (0, -p.shape[1] % STEP))) for p in parts], axis=1)
    if stored.bits == 8:
        return _by_tile(whole, lanes, sizes)
    nibbles = (whole.view("uint8") & 15).astype("uint32").reshape(len(whole), -1, STEP)
    return _by_tile(
        np.bitwise_or.reduce(nibbles << (4 * np.arange(STEP, dtype="uint32")), axis=2), lanes, sizes
    )


def _by_tile(values: Array, lanes: int, sizes: Sequence[int]) -> Array:
    """[N, C] as [C, vectors of a tile, lanes] for one tile after the other, zeros behind the last channel."""
    padded = np.pad(values, ((0, -len(values) % lanes), (0, 0)))
    vectors = padded.reshape(-1, lanes, values.shape[1]).transpose(0, 2, 1)
    tiles = np.split(vectors, np.cumsum(sizes)[:-1])
    return np.concatenate([tile.swapaxes(0, 1).reshape(-1) for tile in tiles])
