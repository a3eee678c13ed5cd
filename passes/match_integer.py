"""Recognize what lies between R.dequantize and R.quantize: one integer kernel, or nothing known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from tvm_qplugin.core.qparams import Array, add_params, clamp_bounds, multiplier
from tvm_qplugin.passes import ir, lut, match_int16
from tvm_qplugin.passes.match_matmul import match_matmul
from tvm_qplugin.passes.match_movement import match_movement
from tvm_qplugin.passes.match_prelu import match_prelu
from tvm_qplugin.passes.match_window import (
    match_extreme,
    match_mean,
    match_pool,
    match_reduction,
    match_resize,
    match_softmax,
)
from tvm_qplugin.passes.op_kinds import KINDS, WEIGHTED, kind_of, obstacle
from tvm_qplugin.passes.plan import Plan, Source, activation_params, requantize_plan, shift_array, stored
from tvm_qplugin.passes.site import Bounds, Definitions, Layer, Site, geometry, weighted


def match(call: Call, defined: Definitions, storage: str) -> Plan | None:
    """The plan for one ``R.quantize``, or None where its input has to be computed in float."""
    params = activation_params(call)
    if params is None or not isinstance(call.args[0], relax.Var):
        return None
    site = Site(call.args[0], stored(params, storage), defined, storage)
    return _requantize(site) or match_movement(site) or _operator(site) or _table(site)


def _requantize(site: Site) -> Plan | None:
    source = site.source(site.var, any_width=True)
    if source is None:
        return None
    if source.want.same(site.grid):
        return Plan("identity", site.out, sources=(source,), rebuild=lambda operands: operands[0])
    plan = requantize_plan(Source(source.expr, source.want, site.grid), site.out.shape)
    return replace(plan, sources=(source,))


def _operator(site: Site) -> Plan | None:
    """A known operator, through the activations behind it."""
    var, bounds = _peel(site)
    value: Any = site.defined.get(var)
    if value is None:
        return None
    if bounds != (None, None) and (source := site.source(var)) is not None:
        return _clamp(site, source, bounds)
    biased = _bias(site, value)
    core, bias = biased if biased else (value, None)
    kind = kind_of(core, site.defined)
    handler = (match_int16.HANDLERS if site.wide else _HANDLERS).get(kind)
    if handler is None or obstacle(kind, _unquantized(core, site)):
        return None
    plan = handler(site, core, bounds, bias)
    if plan is None and site.wide and kind in WEIGHTED:
        return _HANDLERS[kind](site, core, bounds, bias)
    return plan


def _unquantized(core: Call, site: Site) -> Call:
    """The operator with constant weights in sight, as ``obstacle`` wants to see it."""
    args = []
    for arg in core.args:
        value: Any = site.defined.get(arg) if isinstance(arg, relax.Var) else None
        constant = (
            value is not None and ir.op_name(value) == "relax.dequantize" and _is_constant(value.args[0])
        )
        args.append(value.args[0] if constant else arg)
    return Call(core.op, args, core.attrs, core.ty_args, ret_ty=core.ty)


def _is_constant(expr: relax.Expr) -> bool:
    return ir.const_value(expr) is not None


def _peel(site: Site) -> tuple[relax.Var, Bounds]:
    """Walk back through relu and clip; the bounds that remain in force."""
    var = site.var
    low, high = -np.inf, np.inf
    while True:
        value: Any = site.defined.get(var)
        name = ir.op_name(value) if value is not None else ""
        if name == "relax.nn.relu":
            inner = (0.0, np.inf)
        elif name == "relax.clip":
            inner = (float(value.args[1].value), float(value.args[2].value))
        else:
            break
        low, high = (float(np.clip(edge, low, high)) for edge in inner)
        var = value.args[0]
    return var, (low if np.isfinite(low) else None, high if np.isfinite(high) else None)


def _bias(site: Site, value: Call) -> tuple[Call, Array] | None:
    """conv or matmul and the float bias added behind it."""
    if ir.op_name(value) != "relax.add":
        return None
    for product, added in (value.args, reversed(value.args)):
        inner: Any = site.defined.get(product) if isinstance(product, relax.Var) else None
        array = _constant(added, site)
        if inner is None or array is None or KINDS.get(ir.op_name(inner)) not in ("conv2d", "dense"):
            continue
        channels = ir.spec_of(product).shape[-1]
        if ir.spec_of(site.var).shape == ir.spec_of(product).shape and _per_channel(array, channels):
            return inner, np.broadcast_to(array.reshape(-1), (channels,))
    return None


def _per_channel(array: Array, channels: int) -> bool:
    return array.size == 1 or (array.size == channels and array.shape[-1] == channels)


def _constant(expr: relax.Expr, site: Site) -> Array | None:
    """A constant as real numbers in float64, dequantized if need be."""
    array = ir.const_value(expr)
    if array is not None:
        return array.astype("float64")
    value: Any = site.defined.get(expr)
    if value is None or ir.op_name(value) != "relax.dequantize":
        return None
    q, params = ir.const_value(value.args[0]), ir.qparams_of(value)
    if q is None or params is None:
        return None
    scale, zero_point = params._along(q.ndim)
    return (q.astype("float64") - zero_point) * scale.astype("float64")


def _constants(site: Site, layer: Layer) -> tuple[Array, ...] | None:
    """Weight, bias and multiplier; None where the bias does not fit int32."""
    if np.abs(layer.bias).max(initial=0) > 2**31 - 1:
        return None
    factor = multiplier(layer.source.want.scale, layer.weight.scale, site.grid.scale)
    return layer.weight.values, layer.bias.astype("int32"), factor


def _conv(site: Site, core: Call, bounds: Bounds, bias: Array | None) -> Plan | None:
    """Also of int8 with a result in int16, which is none of LiteRT's; so may be dense layers."""
    layer = weighted(site, core, bias, 0, any_width=True)
    constants = _constants(site, layer) if layer else None
    if layer is None or constants is None or layer.source.want.dtype == "int16":
        return None
    params = {**site.finish(bounds), "in_zp": int(layer.source.want.zero_point), **geometry(core)}
    return layer.plan(site, "qconv2d", params, constants)


def _dense(site: Site, core: Call, bounds: Bounds, bias: Array | None) -> Plan | None:
    layer = weighted(site, core, bias, 1, any_width=True)
    constants = _constants(site, layer) if layer else None
    if layer is None or constants is None or layer.source.want.dtype == "int16":
        return None
    params = {**site.finish(bounds), "in_zp": int(layer.source.want.zero_point)}
    return layer.plan(site, "qdense", params, constants)


def _add(site: Site, core: Call, bounds: Bounds, bias: Array | None) -> Plan | None:
    operands = [site.source(arg) for arg in core.args]
    if bias is not None or None in operands:
        return None
    a, b = (operand for operand in operands if operand is not None)
    if any(not 2.0**-10 <= x.want.scale / site.grid.scale < 2.0**8 for x in (a, b)):
        return None
    a_mul, b_mul, shift = add_params(float(a.want.scale), float(b.want.scale), float(site.grid.scale))
    sign = -1 if ir.op_name(core) == "relax.subtract" else 1
    params = {
        **site.finish(bounds),
        **_zero_points(a, b),
        "a_mul": a_mul,
        "b_mul": sign * b_mul,
        "shift": shift,
    }
    return Plan(KINDS[ir.op_name(core)], site.out, "qadd", params, (a, b))


def _mul(site: Site, core: Call, bounds: Bounds, _bias: Array | None) -> Plan | None:
    operands = [site.source(arg) for arg in core.args]
    if None in operands:
        return None
    a, b = (operand for operand in operands if operand is not None)
    factor = multiplier(a.want.scale, b.want.scale, site.grid.scale)
    if not 2.0**-16 <= factor < 2.0**8:
        return None
    params = {**site.finish(bounds), **_zero_points(a, b), "multiplier": float(factor)}
    return Plan("multiply", site.out, "qmul", params, (a, b))


def _zero_points(a: Source, b: Source) -> dict[str, int]:
    return {"a_zp": int(a.want.zero_point), "b_zp": int(b.want.zero_point)}


def _clamp(site: Site, source: Source, bounds: Bounds) -> Plan | None:
    if not source.want.same(site.grid):
        return None
    lo, hi = clamp_bounds(site.grid, *bounds, builtin=True)
    return Plan("clamp", site.out, "qclamp", {"lo": lo, "hi": hi}, (source,))


def _table(site: Site) -> Plan | None:
    leaf = lut.unary_slice(site.var, site.defined)
    source = site.source(leaf) if leaf is not None else None
    if leaf is None or source is None:
        return None
    make = match_int16.table if site.wide else lut.table
    values = make(site.var, leaf, site.defined, (source.want, site.grid))
    if values is None:
        return None
    function = lut.describe(site.var, leaf, site.defined)
    kind = ir.op_name(site.defined[site.var]).removeprefix("relax.")
    constants = (shift_array(values, site.grid.dtype),)
    return Plan(kind, site.out, "qlut", {}, (source,), (), constants, function=function)


_HANDLERS: dict[str, Callable[[Site, Call, Bounds, Array | None], Plan | None]] = {
    "conv2d": _conv,
    "dense": _dense,
    "matmul": match_matmul,
    "add": _add,
    "subtract": _add,
    "multiply": _mul,
    "maximum": match_extreme,
    "minimum": match_extreme,
    "avg_pool2d": match_pool,
    "max_pool2d": match_pool,
    "min": match_reduction,
    "mean": match_mean,
    "sum": match_mean,
    "softmax": match_softmax,
    "resize2d": match_resize,
    "prelu": match_prelu,
}
