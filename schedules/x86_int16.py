"""int16x8 layers on x86: packs constants and generates, for geometries of convolutions and dense layers."""

from __future__ import annotations

import numpy as np

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.schedules.x86_constants import Constants
from tvm_qplugin.schedules.x86_emit import implement
from tvm_qplugin.schedules.x86_epilogue16 import Int16Epilogue
from tvm_qplugin.schedules.x86_geometry import Geometry
from tvm_qplugin.schedules.x86_isa import Isa
from tvm_qplugin.schedules.x86_pack import pack_channels, pack_weights
from tvm_qplugin.schedules.x86_rescale16 import cut_of, rescaling
from tvm_qplugin.schedules.x86_tiles import Tile


def implement16(call: KernelCall, isa: Isa, geometry: Geometry, tile: Tile) -> Implementation:
    """The kernel of a ``qconv2d16`` or ``qdense16``; exact for every input, whatever the constants."""
    numbers, g, cut = rescaling(call), geometry, None
    if numbers.offset:
        rows = g.taps[0].extent if g.taps else 1
        cut = cut_of(np.asarray(call.constants[1]), rows, g.outer, g.span, g.depth)
    sections = {name: pack_channels(values, g) for name, values in numbers.channels.items()}
    constants = Constants.join(weights=pack_weights(numbers.weights, g), **sections, **numbers.bounds)
    return implement(call, isa, g, tile, Int16Epilogue(cut), constants)
