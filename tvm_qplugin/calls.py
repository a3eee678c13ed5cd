"""Which kernel calls a lowered module makes, and which operators of the model each of them computes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.ir import Call, IRModule

from tvm_qplugin.core.attrs import CALLS, KERNEL, MEMBERS, REPORT
from tvm_qplugin.core.manifest import CallInfo
from tvm_qplugin.passes import ir

DYNAMIC = ("dconv2d", "ddense")


def calls_of(lowered: IRModule) -> tuple[CallInfo, ...]:
    """The calls of kernels that the virtual machine will make, in this order.

    ``lowered``: what ``builder.compile_module`` returns; reshapes in it that become views are no calls.
    """
    mod = relax.transform.RewriteDataflowReshape()(lowered)
    func = ir.main_function(mod)
    operators = _operators(func)
    members: Mapping[str, list[str]] = _attribute(func, MEMBERS, {})
    found = []
    for value, names in _named(func):
        parts = [part for name in names for part in members.get(name, [name])]
        positions = sorted({operators[part] for part in parts if part in operators})
        found.append(_info(mod, value, names[-1], positions))
    return tuple(found)


def _named(func: relax.Function) -> Iterator[tuple[Call, list[str]]]:
    """Each ``call_tir`` of ``main`` with the old names; recorded calls that became views are passed over."""
    records = iter(_attribute(func, CALLS, []))
    for var, value in ir.bindings(func):
        if ir.op_name(value) == "relax.call_tir":
            function = value.args[0].name_hint
            yield value, next((names for name, names in records if name == function), [var.name])


def _operators(func: relax.Function) -> dict[str, int]:
    """Position in the report by the variable that an operator is bound to."""
    entries: Sequence[Mapping[str, Any]] = _attribute(func, REPORT, [])
    return {entry["variable"]: position for position, entry in enumerate(entries)}


def _attribute(func: relax.Function, key: str, default: Any) -> Any:
    text = (func.attrs or {}).get(key)
    return default if text is None else json.loads(str(text))


def _info(mod: IRModule, value: Call, tensor: str, operators: list[int]) -> CallInfo:
    func = mod[value.args[0]]
    tag = func.attrs.get(KERNEL) if isinstance(func, tirx.PrimFunc) and func.attrs else None
    operands = list(value.args[1].fields)
    results = value.ty.fields if isinstance(value.ty, relax.TupleType) else [value.ty]
    moved = sum(_bytes(ty) for ty in (*(operand.ty for operand in operands), *results))
    dtype = str((operands[0].ty if operands else results[0]).dtype)
    kernel = None if tag is None else str(tag)
    if kernel in DYNAMIC:  # what they multiply
        dtype = "int8"
    return CallInfo(value.args[0].name_hint, tensor, tuple(operators), kernel, dtype, moved)


def _bytes(ty: relax.TensorType) -> int:
    return math.prod(int(extent) for extent in ty.shape) * np.dtype(str(ty.dtype)).itemsize
