"""PReLU between R.dequantize and R.quantize: two fixed-point multipliers, one for each sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import relax
from tvm.ir import Call

from tvm_qplugin.core import lite
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.plan import Plan

if TYPE_CHECKING:
    from tvm_qplugin.passes.site import Bounds, Site


def match_prelu(site: Site, core: Call, bounds: Bounds, _bias: Array | None) -> Plan | None:
    """``qprelu`` where the slopes are an int8 constant of one scale."""
    source, slope = site.source(core.args[0]), _slope(site, core.args[1])
    if source is None or slope is None:
        return None
    values, grid = slope
    multipliers = lite.prelu_multipliers(source.want, grid, site.grid)
    if multipliers is None:
        return None
    params = {
        **site.finish(bounds, builtin=True),
        "in_zp": int(source.want.zero_point),
        "alpha_zp": int(grid.zero_point),
        "positive": list(multipliers[0]),
        "negative": list(multipliers[1]),
    }
    return Plan("prelu", site.out, "qprelu", params, (source,), (), (values,), weight=grid)


def _slope(site: Site, expr: relax.Expr) -> tuple[Array, QuantParams] | None:
    """The slopes as int8 [C], and their grid."""
    value = site.defined.get(expr) if isinstance(expr, relax.Var) else None
    if value is None or ir.op_name(value) != "relax.dequantize":
        return None
    array, grid = ir.const_value(value.args[0]), ir.qparams_of(value)
    if array is None or grid is None or grid.axis is not None or grid.dtype != "int8":
        return None
    return array, grid
