"""Products of two activations: int8 operands to int8 or int16, int16 operands to int16."""

from __future__ import annotations

import numpy as np
from tvm.ir import Call

from tvm_qplugin.core.fixed_point import quantize_multiplier, reduced_factors
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.plan import Plan, Source
from tvm_qplugin.passes.site import Bounds, Site


def match_matmul(site: Site, core: Call, bounds: Bounds, bias: Array | None) -> Plan | None:
    """A plan without fusion; None where the operands differ in width or are wider than the result."""
    sources = tuple(s for arg in core.args if (s := site.source(arg, any_width=True)) is not None)
    if len(sources) != 2 or bias is not None or bounds != (None, None):
        return None
    wide = {source.want.dtype == "int16" for source in sources}
    macs = site.out.size * int(core.args[0].ty.shape[-1])
    if wide == {False}:
        params = {
            **site.finish(bounds),
            "a_zp": int(sources[0].want.zero_point),
            "b_zp": int(sources[1].want.zero_point),
            "multiplier": quantize_multiplier(_ratio(site, sources)),
        }
        return Plan("matmul", site.out, "qmatmul", params, sources, macs=macs)
    rescaling = _rescaling(_ratio(site, sources)) if wide == {True} and site.wide else None
    if rescaling is None:
        return None
    return Plan("matmul", site.out, "qmatmul16", {**site.finish(bounds), **rescaling}, sources, macs=macs)


def _ratio(site: Site, sources: tuple[Source, ...]) -> float:
    """Scales of the operands, multiplied in float32 as LiteRT does it, by that of the output."""
    product = np.float32(sources[0].want.scale) * np.float32(sources[1].want.scale)
    return float(product) / float(site.grid.scale)


def _rescaling(ratio: float) -> dict[str, int] | None:
    """None where the ratio is so large that LiteRT's shift is undefined."""
    try:
        factor, shift = reduced_factors(ratio)
    except ValueError:
        return None
    return {"factor": int(factor), "shift": int(shift)}
