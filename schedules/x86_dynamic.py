"""Layers of int8 weights and float inputs on x86: ``dconv2d`` and ``ddense``, inputs quantized at run time.

The arithmetic is that of ``core/dynamic.py``. Arguments: x float32, weight int8 (OHWI or [N, K]), scale
float32 (per output channel or one), bias float32; parameters as ``fconv2d`` and ``fdense``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm

from tvm_qplugin.core.attrs import INSTRUCTION, Implementation, KernelCall, TensorSpec
from tvm_qplugin.core.dynamic import is_depthwise
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.primfunc import arguments, function
from tvm_qplugin.schedules.x86_constants import Constants
from tvm_qplugin.schedules.x86_conv import conv_geometry
from tvm_qplugin.schedules.x86_dense import dense_geometry
from tvm_qplugin.schedules.x86_dynamic_depthwise import depthwise
from tvm_qplugin.schedules.x86_dynamic_emit import DynamicEpilogue, quantized_image, quantized_rows
from tvm_qplugin.schedules.x86_emit import walk
from tvm_qplugin.schedules.x86_geometry import Geometry
from tvm_qplugin.schedules.x86_isa import INSTRUCTIONS, Isa, select_isa
from tvm_qplugin.schedules.x86_pack import INT32_MAX, pack_channels, pack_weights
from tvm_qplugin.schedules.x86_reduce import Kernel
from tvm_qplugin.schedules.x86_tiles import default_tile


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel; None where the layer is to be computed in float.

    Those are several images with a range each, pixels of padding with a range of their own, and depthwise
    layers of channels that are no multiple of four.
    """
    isa = select_isa("uint8", target)
    if call.name not in ("dconv2d", "ddense") or isa is None or isa.depth != 4:
        return None
    if len(call.constants) != 3 or 0 in call.constants:
        return None
    if call.name == "dconv2d" and is_depthwise(call.params, call.args[0].shape, call.args[1].shape):
        return depthwise(call, target, isa)
    if not _served(call):
        return None
    weight = np.asarray(call.constants[1])
    sums = np.abs(weight.astype("int64")).reshape(len(weight), -1).sum(1)
    if sums.max(initial=0) * 255 > INT32_MAX:
        return None
    geometry = _geometry(call, replace(isa, source="uint8"))
    return _implement(call, isa, geometry, _constants(call, weight, geometry))


def _served(call: KernelCall) -> bool:
    if call.name == "ddense":
        return True
    return not any(call.params["padding"]) if _by_row(call) else call.args[0].shape[0] == 1


def _by_row(call: KernelCall) -> bool:
    """Whether every pixel (or row) has a range of its own: where one is all that a sum covers."""
    if call.name == "ddense":
        return True
    p = call.params
    unit = tuple(call.args[1].shape[1:3]) == (1, 1) and list(p["strides"]) == [1, 1]
    return bool(unit and p["groups"] == 1)


def _geometry(call: KernelCall, isa: Isa) -> Geometry:
    codes = replace(call, args=(TensorSpec(call.args[0].shape, "uint8"), *call.args[1:]))
    return dense_geometry(codes, isa) if call.name == "ddense" else conv_geometry(codes, isa)


def _constants(call: KernelCall, weight: Array, g: Geometry) -> Constants:
    outputs = len(weight)
    scale = np.broadcast_to(np.asarray(call.constants[2], "float32"), (outputs,))
    sums = weight.astype("int64").reshape(outputs, -1).sum(1).astype("int32")
    return Constants.join(
        weights=pack_weights(weight, g),
        sums=pack_channels(sums, g),
        scale=pack_channels(scale, g),
        bias=pack_channels(np.asarray(call.constants[3], "float32"), g),
    )


def _implement(call: KernelCall, isa: Isa, g: Geometry, constants: Constants) -> Implementation:
    tile = default_tile(isa, g.shape, g.weight_bytes)
    packed = TensorSpec(constants.data.shape, str(constants.data.dtype))
    with function(call) as builder:
        source, data, out = arguments([call.args[0], packed, call.out])
        by_row = _by_row(call)
        if by_row or g.scratch is None:
            codes, grid = quantized_rows(isa, source, call.args[0])
        else:
            codes, grid = quantized_image(isa, g.scratch, source, call.args[0])
        epilogue = DynamicEpilogue(call.params.get("lo"), call.params.get("hi"), grid, call.out, by_row)
        walk(Kernel(isa, tile, g, codes, "uint8", constants.reader(data), out), epilogue)
    func = builder.get().with_attr(INSTRUCTION, INSTRUCTIONS[isa.name])
    return Implementation(func, (0, constants.data))
