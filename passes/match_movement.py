"""Data movement between R.dequantize and R.quantize: the same operator on the integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import KINDS, MOVEMENT, obstacle
from tvm_qplugin.passes.plan import Plan, Source
from tvm_qplugin.passes.site import Site

Rebuild = Callable[[list[relax.Expr]], relax.Expr]


def match_movement(site: Site) -> Plan | None:
    """A plan that moves integers; operands on another grid than the output's are requantized first."""
    value: Any = site.defined.get(site.var)
    if isinstance(value, relax.TupleGetItem):
        return _split_item(site, value)
    kind = KINDS.get(ir.op_name(value), "") if value is not None else ""
    if kind not in MOVEMENT or kind == "split" or obstacle(kind, value):
        return None
    fields = value.args[0].fields if isinstance(value.args[0], relax.Tuple) else [value.args[0]]
    sources = [site.source(field) for field in fields]
    if None in sources:
        return None
    wanted = tuple(Source(s.expr, s.have, site.grid) for s in sources if s is not None)
    if kind == "pad":
        params: dict[str, Any] = {
            "pad_width": [int(width) for width in value.attrs.pad_width],
            "value": int(site.grid.quantize(np.array(value.attrs.pad_value, "float32"))),
        }
        return Plan(kind, site.out, "qpad", params, wanted)
    return Plan(kind, site.out, sources=wanted, rebuild=_rebuilder(value, kind, site.out.shape))


def _rebuilder(value: Call, kind: str, shape: tuple[int, ...]) -> Rebuild:
    if kind == "reshape":
        return lambda operands: relax.op.reshape(operands[0], shape)
    if kind == "concat":
        return lambda operands: relax.op.concat(operands, axis=value.attrs.axis)
    return lambda operands: Call(value.op, [operands[0], *value.args[1:]], value.attrs, value.ty_args)


def _split_item(site: Site, item: relax.TupleGetItem) -> Plan | None:
    """One part of a split, as a slice."""
    split = site.defined.get(item.tuple_value)
    if split is None or ir.op_name(split) != "relax.split":
        return None
    source = site.source(split.args[0])
    if source is None:
        return None
    axis = int(split.attrs.axis) % len(site.out.shape)
    parts = [int(field.shape[axis]) for field in item.tuple_value.ty.fields]
    begin = sum(parts[: item.index])
    end = begin + parts[item.index]

    def rebuild(operands: list[relax.Expr]) -> relax.Expr:
        return relax.op.strided_slice(operands[0], axes=[axis], begin=[begin], end=[end])

    wanted = Source(source.expr, source.have, site.grid)
    return Plan("split", site.out, sources=(wanted,), rebuild=rebuild)
