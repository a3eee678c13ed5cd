"""Pooling on x86: means are depthwise convolutions with ones, maxima walk the same loops.

Serves ``qavgpool2d`` where every window counts the same number of elements, ``qmean`` over height and width,
and ``qmaxpool2d``. Calls may carry ``in_halo`` and ``out_halo`` as convolutions do.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall, Params, TensorSpec
from tvm_qplugin.core.qparams import AVERAGE_TAPS, Array, average_factor, centre, mean_offset
from tvm_qplugin.schedules.x86_constants import Constants, fills, words
from tvm_qplugin.schedules.x86_depthwise import MAX_TAPS, borders, complete, cores_of, cut_modes, tile_sizes
from tvm_qplugin.schedules.x86_depthwise_emit import implement
from tvm_qplugin.schedules.x86_depthwise_plan import (
    Config,
    WeightPlan,
    Window,
    source,
    uniform_blocks,
    weight_plan,
    window_of,
)
from tvm_qplugin.schedules.x86_depthwise_tile import Kernel
from tvm_qplugin.schedules.x86_isa import AVX2, VNNI512, Isa, select_isa, supports
from tvm_qplugin.schedules.x86_pack import Requantization, fold_zero_point, requantization


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel with default knobs; None when the portable kernel must serve."""
    if call.name not in ("qavgpool2d", "qmean", "qmaxpool2d") or call.args[0].dtype not in ("int8", "uint8"):
        return None
    spatial = _as_pool(call)
    if spatial is None:
        return None
    w = window_of(spatial, (spatial.params["pool"][0], spatial.params["pool"][1]))
    maximum = call.name == "qmaxpool2d"
    isa = _bytes_isa(target) if maximum else select_isa(call.args[0].dtype, target)
    if isa is None or not cut_modes(w, isa) or np.prod(w.kernel) > MAX_TAPS:
        return None
    return (_maximum if maximum else _average)(call, target, isa, w)


def _as_pool(call: KernelCall) -> KernelCall | None:
    """The call with parameters of a pool; None if its windows differ in their number of elements."""
    p, shape = call.params, call.args[0].shape
    if call.name == "qmean":
        halo = p.get("in_halo") or (0, 0, 0, 0)
        if len(shape) != 4 or sorted(a % 4 for a in p["axes"]) != [1, 2] or any(p.get("out_halo") or ()):
            return None
        pool = (shape[1] - halo[0] - halo[2], shape[2] - halo[1] - halo[3])
        params = {**p, "pool": pool, "strides": (1, 1), "padding": (0, 0, 0, 0)}
        return replace(call, params=params, out=TensorSpec((shape[0], 1, 1, shape[3]), call.out.dtype))
    if not any(p["padding"]):
        return call
    if call.name == "qavgpool2d":
        return call if p["count_include_pad"] else None
    return None if any(p.get("in_halo") or ()) else call


def _bytes_isa(target: tvm.target.Target) -> Isa | None:
    return next((isa for isa in (VNNI512, AVX2) if supports(isa, target)), None)


def _average(call: KernelCall, target: tvm.target.Target, isa: Isa, w: Window) -> Implementation | None:
    """A depthwise convolution with weights 1; all channels share their constants."""
    p, zero = call.params, centre(call.args[0].dtype)
    ones, count = np.ones((1, *w.kernel), "int8"), int(np.prod(w.kernel))
    folded = fold_zero_point(ones, np.zeros(1, "int32"), zero)
    if folded is None or count > AVERAGE_TAPS:
        return None
    factor = np.float32(p["multiplier"] if call.name == "qmean" else average_factor(count))
    mode = cut_modes(w, isa)[0]
    config = complete(w, isa, cores_of(target), mode, *tile_sizes(w, isa)[0])
    plan, cut = weight_plan(w, isa, config.rows), uniform_blocks(w, mode, 4 * isa.lanes)
    finish = requantization({**p, "out_zp": zero}, call.out.dtype, ones, folded, np.asarray([factor]))
    kernel = Kernel(isa, w, config, cut, source(w, config), plan, call.args[0].dtype, cores_of(target))
    sections = {"bias": folded, "scale": np.asarray([factor])} | words(finish)
    if call.name == "qmean":
        sections |= _offset(p, count, call.args[0].dtype)
    sections |= borders(call, kernel, int(p["out_zp"]))
    return implement(call, kernel, Constants.join(**sections))


def _offset(p: Params, count: int, dtype: str) -> dict[str, Array]:
    """What is added before rounding; the limit keeps the compiler from contracting product and sum."""
    offset = np.full(1, mean_offset(p, count, dtype), "float32")
    return {"limit": np.full(1, 2.0**24, "float32"), "offset": offset}


def _maximum(call: KernelCall, target: tvm.target.Target, isa: Isa, w: Window) -> Implementation:
    p, dtype = call.params, call.args[0].dtype
    mode = cut_modes(w, isa)[0]
    rows = min(2, w.size[0]) if w.strides[0] == 1 else 1
    config: Config = complete(w, isa, cores_of(target), mode, rows, 2)
    finish = Requantization(dtype, int(p.get("out_zp", 0)), int(p["lo"]), int(p["hi"]), False)
    cut, unused = uniform_blocks(w, mode, isa.bytes), WeightPlan((), {})
    kernel = Kernel(isa, w, config, cut, source(w, config), unused, dtype, cores_of(target), maximum=True)
    halo = fills(fill_out=finish.zero_point if any(w.halo) else 0)
    return implement(call, kernel, Constants.join(**words(finish, shifts=False), **halo))
