"""Operators on int16 between R.dequantize and R.quantize: the fixed-point kernels of LiteRT."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from tvm import relax
from tvm.ir import Call

from tvm_qplugin.core import lite16, oracle16
from tvm_qplugin.core.fixed_point import reduced_factors
from tvm_qplugin.core.interpolated import UNIT, softmax_tables
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir, lut
from tvm_qplugin.passes.match_matmul import match_matmul
from tvm_qplugin.passes.match_prelu import match_prelu
from tvm_qplugin.passes.match_window import (
    match_extreme,
    match_pool,
    match_reduction,
    match_resize,
    reduced_axes,
)
from tvm_qplugin.passes.op_kinds import KINDS
from tvm_qplugin.passes.plan import Plan, Source
from tvm_qplugin.passes.site import Bounds, Layer, Site, geometry, weighted

Handler = Callable[[Site, Call, Bounds, Array | None], Plan | None]
UNIT_GRID = QuantParams.of(UNIT, 0, "int16")
"""Of the outputs of softmax, logistic and tanh."""


def _conv(site: Site, core: Call, bounds: Bounds, bias: Array | None) -> Plan | None:
    """None where a multiplier is so large that LiteRT's shift is undefined."""
    layer = weighted(site, core, bias, 0)
    if layer is None:
        return None
    try:
        rescaling = reduced_factors(_ratio(site, layer))
    except ValueError:
        return None
    params = {**site.finish(bounds), "in_zp": 0, **geometry(core), "wide": _wide(layer)}
    return layer.plan(
        site, "qconv2d16", params, (layer.weight.values, layer.bias.astype("int64"), *rescaling)
    )


def _dense(site: Site, core: Call, bounds: Bounds, bias: Array | None) -> Plan | None:
    layer = weighted(site, core, bias, 1)
    if layer is None:
        return None
    params = {**site.finish(bounds), "in_zp": 0, "wide": _wide(layer)}
    constants = layer.weight.values, layer.bias.astype("int64"), _ratio(site, layer)
    return layer.plan(site, "qdense16", params, constants)


def _ratio(site: Site, layer: Layer) -> Array:
    """Scale of input times weight by that of the output, in float64."""
    product = float(layer.source.want.scale) * layer.weight.scale.astype("float64")
    return np.asarray(product / float(site.grid.scale))


def _wide(layer: Layer) -> bool:
    """Whether a sum without bias may leave int32."""
    values = np.abs(layer.weight.values.astype("int64"))
    return bool(values.reshape(len(values), -1).sum(1).max(initial=0) * 2**15 >= 2**31)


def _pair(site: Site, core: Call) -> tuple[Source, Source] | None:
    a, b = (site.source(arg) for arg in core.args)
    return (a, b) if a is not None and b is not None else None


def _add(site: Site, core: Call, bounds: Bounds, bias: Array | None) -> Plan | None:
    pair = _pair(site, core)
    if bias is not None or pair is None:
        return None
    multipliers = oracle16.add_multipliers(pair[0].want.scale, pair[1].want.scale, site.grid.scale)
    if multipliers["out_multiplier"][1] > 0:  # LiteRT aborts
        return None
    subtract = ir.op_name(core) == "relax.subtract"
    a, b = (ir.spec_of(arg).shape for arg in core.args)
    front = oracle16.vectorized_elements(a, b, subtract)
    params = {**site.finish(bounds), **multipliers, "subtract": subtract, "vectorized": front}
    return Plan(KINDS[ir.op_name(core)], site.out, "qadd16", params, pair)


def _mul(site: Site, core: Call, bounds: Bounds, _bias: Array | None) -> Plan | None:
    pair = _pair(site, core)
    if pair is None:
        return None
    multiplier = oracle16.mul_multiplier(pair[0].want.scale, pair[1].want.scale, site.grid.scale)
    if multiplier[1] > 0:  # the product would leave int32
        return None
    params = {**site.finish(bounds), "multiplier": multiplier}
    return Plan("multiply", site.out, "qmul16", params, pair)


def _mean(site: Site, core: Call, bounds: Bounds, _bias: Array | None) -> Plan | None:
    source, shape = site.source(core.args[0]), ir.spec_of(core.args[0]).shape
    reduced = reduced_axes(core)
    count = int(np.prod([shape[axis] for axis in reduced]))
    if source is None or count > oracle16.MEAN_COUNT:
        return None
    params = {**site.finish(bounds), "axes": reduced, "keepdims": bool(core.attrs.keepdims)}
    if ir.op_name(core) == "relax.sum":
        ratio = float(np.float32(source.want.scale) / np.float32(site.grid.scale))
        return Plan("sum", site.out, "qsum16", {**params, "multiplier": ratio}, (source,))
    multiplier = oracle16.mean_of(source.want.scale, site.grid.scale, count)
    return Plan("mean", site.out, "qmean16", {**params, "multiplier": multiplier}, (source,))


def _softmax(site: Site, core: Call, bounds: Bounds, _bias: Array | None) -> Plan | None:
    source = site.source(core.args[0])
    if source is None or bounds != (None, None) or not site.grid.same(UNIT_GRID):
        return None
    params = {
        **site.finish((0.0, None)),
        "axis": int(core.attrs.axis) % len(site.out.shape),
        "multiplier": oracle16.softmax_multiplier(source.want.scale),
    }
    return Plan("softmax", site.out, "qsoftmax16", params, (source,), (), softmax_tables())


def _resize(site: Site, core: Call, bounds: Bounds, bias: Array | None) -> Plan | None:
    """Nearest as in 8 bits; bilinear by the coordinates that LiteRT knows."""
    plan = match_resize(site, core, bounds, bias)
    if plan is None or plan.params["method"] == "nearest":
        return plan
    coordinate, sizes = plan.params["coordinate"], plan.params["size"]
    if coordinate == "pytorch_half_pixel" and 1 not in sizes:
        coordinate = "half_pixel"
    if coordinate not in ("half_pixel", "asymmetric", "align_corners"):
        return None
    return Plan("resize2d", site.out, "qresize2d16", {"size": sizes, "coordinate": coordinate}, plan.sources)


def table(
    var: relax.Var,
    leaf: relax.Var,
    defined: Mapping[relax.Var, relax.Expr],
    grids: tuple[QuantParams, QuantParams],
) -> Array | None:
    """65536 results: as LiteRT computes them where it has the function in int16, else correctly rounded.

    None for more than one function, and for a fixed output on another grid than its own.
    """
    function, call = lut.describe(var, leaf, defined), defined[var]
    if len(function["operators"]) != 1:
        return None
    name = function["operators"][0]
    if name in ("sigmoid", "tanh"):
        make = lite16.logistic if name == "sigmoid" else lite16.tanh
        return make(*grids) if grids[1].same(UNIT_GRID) else None
    if name == "nn.leakyrelu":
        return lite16.leaky_relu(function["alpha"], *grids)
    if name == "nn.relu":
        return lite16.clipped(0.0, None, *grids)
    if name in ("maximum", "minimum"):
        return _bounded(call, name, grids)
    if name == "clip":
        low, high = (float(bound.value) for bound in call.args[1:3])
        return lite16.clipped(low, high, *grids)
    return lite16.smooth(lut.UNARY["exp"], *grids) if name == "exp" else lut.table(var, leaf, defined, grids)


def _bounded(call: Call, name: str, grids: tuple[QuantParams, QuantParams]) -> Array | None:
    """MAXIMUM or MINIMUM with a scalar."""
    bound = ir.const_value(call.args[1])
    if bound is None:
        return None
    value = float(bound)
    return lite16.clipped(value, None, *grids) if name == "maximum" else lite16.clipped(None, value, *grids)


HANDLERS: dict[str, Handler] = {
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
    "mean": _mean,
    "sum": _mean,
    "softmax": _softmax,
    "resize2d": _resize,
    "prelu": match_prelu,
}
