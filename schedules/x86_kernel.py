"""From a planned call to its implementation: pack the constants, choose the epilogue, generate."""

from __future__ import annotations

import numpy as np

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.schedules.x86_emit import implement
from tvm_qplugin.schedules.x86_epilogue import FloatEpilogue, IntegerEpilogue
from tvm_qplugin.schedules.x86_geometry import Geometry
from tvm_qplugin.schedules.x86_isa import Isa
from tvm_qplugin.schedules.x86_pack import fold_zero_point, join, pack_channels, pack_weights, requantization
from tvm_qplugin.schedules.x86_tiles import Tile


def implement_integer(call: KernelCall, isa: Isa, geometry: Geometry, tile: Tile) -> Implementation | None:
    """Integer kernel; None when the folded bias does not fit int32."""
    weights = np.asarray(call.constants[1])
    factor = np.broadcast_to(np.asarray(call.constants[3], "float32"), (weights.shape[0],))
    bias = fold_zero_point(weights, np.asarray(call.constants[2]), int(call.params["in_zp"]))
    if bias is None:
        return None
    epilogue = IntegerEpilogue(
        requantization(call.params, call.out.dtype, weights, bias, factor), int(call.params["in_zp"])
    )
    packed = [pack_channels(values, geometry) for values in (bias, factor)]
    return implement(call, isa, geometry, tile, epilogue, join(pack_weights(weights, geometry), *packed))


def implement_float(call: KernelCall, isa: Isa, geometry: Geometry, tile: Tile) -> Implementation:
    """Float kernel with an optional clip."""
    weights = np.asarray(call.constants[1], "float32")
    bias = np.broadcast_to(np.asarray(call.constants[2], "float32"), (weights.shape[0],))
    epilogue = FloatEpilogue(call.params.get("lo"), call.params.get("hi"))
    constant = join(pack_weights(weights, geometry), pack_channels(bias, geometry))
    return implement(call, isa, geometry, tile, epilogue, constant)
