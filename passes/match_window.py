"""Pools, means, extremes, softmax and resizing between R.dequantize and R.quantize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tvm.ir import Call

from tvm_qplugin.core.qparams import Array, mean_factor
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.plan import Plan, Source, full_range
from tvm_qplugin.passes.site import Bounds, Site, ints, padding4


def match_pool(site: Site, core: Call, bounds: Bounds, _bias: Array | None) -> Plan | None:
    """Max and average pools, ceil_mode as explicit padding."""
    source = site.source(core.args[0])
    if source is None:
        return None
    if ir.op_name(core) == "relax.max":
        shape, axes = ir.spec_of(core.args[0]).shape, reduced_axes(core)
        whole = len(shape) == 4 and axes == [1, 2] and bool(core.attrs.keepdims)
        return (
            _global_max(site, source, bounds, shape) if whole else match_reduction(site, core, bounds, None)
        )
    params = pool_geometry(core)
    maximum = ir.op_name(core) == "relax.nn.max_pool2d"
    params |= site.finish(bounds, builtin=not maximum)
    wanted = Source(source.expr, source.have, site.grid)
    if maximum:
        return Plan("max_pool2d", site.out, "qmaxpool2d", params, (wanted,))
    params |= {"in_zp": params["out_zp"], "count_include_pad": bool(core.attrs.count_include_pad)}
    return Plan("avg_pool2d", site.out, "qavgpool2d", params, (wanted,))


def pool_geometry(core: Call) -> dict[str, Any]:
    """Window, strides, dilation and explicit padding of a pool."""
    attrs = core.attrs
    params: dict[str, Any] = {
        "pool": ints(attrs.pool_size),
        "strides": ints(attrs.strides),
        "dilation": ints(attrs.dilation),
    }
    shapes = ir.spec_of(core.args[0]).shape, ir.spec_of(core).shape
    params["padding"] = _ceil_padding(params, padding4(ints(attrs.padding)), *shapes)
    return params


def _global_max(site: Site, source: Source, bounds: Bounds, shape: tuple[int, ...]) -> Plan:
    """The maximum over height and width: one window as large as the image."""
    window = {"pool": list(shape[1:3]), "strides": [1, 1], "dilation": [1, 1], "padding": [0] * 4}
    wanted = Source(source.expr, source.have, site.grid)
    return Plan("max_pool2d", site.out, "qmaxpool2d", {**window, **site.finish(bounds)}, (wanted,))


def _ceil_padding(
    params: Mapping[str, list[int]], padding: list[int], shape: tuple[int, ...], out: tuple[int, ...]
) -> list[int]:
    """Explicit bottom and right padding such that the output has exactly the inferred size."""
    for axis in (0, 1):
        span = (params["pool"][axis] - 1) * params["dilation"][axis] + 1
        needed = (out[axis + 1] - 1) * params["strides"][axis] + span
        padding[axis + 2] = max(padding[axis + 2], needed - shape[axis + 1] - padding[axis])
    return padding


def match_reduction(site: Site, core: Call, bounds: Bounds, _bias: Array | None) -> Plan | None:
    """The largest or smallest element along any axes, on the output's grid."""
    source = site.source(core.args[0])
    if source is None:
        return None
    params = {
        **site.finish(bounds),
        "axes": reduced_axes(core),
        "keepdims": bool(core.attrs.keepdims),
        "largest": ir.op_name(core) == "relax.max",
    }
    kind = "max_pool2d" if params["largest"] else "min"
    return Plan(kind, site.out, "qreduce", params, (Source(source.expr, source.have, site.grid),))


def match_extreme(site: Site, core: Call, bounds: Bounds, _bias: Array | None) -> Plan | None:
    """The larger or smaller of two elements, on the output's grid."""
    sources = [site.source(arg) for arg in core.args]
    if None in sources:
        return None
    wanted = tuple(Source(s.expr, s.have, site.grid) for s in sources if s is not None)
    kind = ir.op_name(core).removeprefix("relax.")
    return Plan(kind, site.out, "qextreme", {**site.finish(bounds), "largest": kind == "maximum"}, wanted)


def reduced_axes(core: Call) -> list[int]:
    """The axes of a reduction, in order."""
    rank = len(ir.spec_of(core.args[0]).shape)
    axes = range(rank) if core.attrs.axis is None else ints(core.attrs.axis)
    return sorted(axis % rank for axis in axes)


def match_mean(site: Site, core: Call, bounds: Bounds, _bias: Array | None) -> Plan | None:
    """A mean or sum over any axes; 1/n goes into the multiplier of a mean."""
    source = site.source(core.args[0])
    if source is None:
        return None
    shape = ir.spec_of(core.args[0]).shape
    reduced = reduced_axes(core)
    kind = ir.op_name(core).removeprefix("relax.")
    count = int(np.prod([shape[axis] for axis in reduced])) if kind == "mean" else 1
    params = {
        **site.finish(bounds, builtin=True),
        "in_zp": int(source.want.zero_point),
        "axes": reduced,
        "keepdims": bool(core.attrs.keepdims),
        "multiplier": mean_factor(source.want.scale, site.grid.scale, count),
    }
    return Plan(kind, site.out, f"q{kind}", params, (source,))


def match_softmax(site: Site, core: Call, bounds: Bounds, _bias: Array | None) -> Plan | None:
    """Softmax by a table of exponentials; nothing can be fused behind it."""
    source = site.source(core.args[0])
    if source is None or bounds != (None, None):
        return None
    exponent = (np.arange(255, -1, -1, dtype="float32") * -source.want.scale).astype("float64")
    params = {
        **full_range(site.grid),
        "axis": int(core.attrs.axis) % len(site.out.shape),
        "out_scale": float(site.grid.scale),
    }
    return Plan("softmax", site.out, "qsoftmax", params, (source,), (), (np.exp(exponent).astype("float32"),))


def match_resize(site: Site, core: Call, bounds: Bounds, _bias: Array | None) -> Plan | None:
    """Nearest and bilinear resizing on the output's grid; nothing can be fused behind it."""
    source = site.source(core.args[0])
    if source is None or bounds != (None, None):
        return None
    wanted = Source(source.expr, source.have, site.grid)
    return Plan("resize2d", site.out, "qresize2d", resize_geometry(core), (wanted,))


def resize_geometry(core: Call) -> dict[str, Any]:
    """Size, method, coordinates and rounding of a resize2d, as ``core/oracle.py`` names them."""
    attrs = core.attrs
    rounding = {"round": "round_prefer_ceil", "": "round_prefer_floor"}
    return {
        "size": list(ir.spec_of(core).shape[1:3]),
        "method": "nearest" if attrs.method == "nearest_neighbor" else "linear",
        "coordinate": str(attrs.coordinate_transformation_mode),
        "rounding": rounding.get(attrs.rounding_method, str(attrs.rounding_method)),
    }
