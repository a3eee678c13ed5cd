"""What a recipe would make of every operator of a float model, before anything is calibrated or compiled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.core.attrs import DYNAMIC_LAYERS, REPORT
from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.core.manifest import OperatorInfo
from tvm_qplugin.core.once import Once
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.core.spec import OpAnnotation
from tvm_qplugin.inspection import annotation_of, check_scopes
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import ExpandWeights, float_arguments, scheme_of, stored_arguments
from tvm_qplugin.passes.op_kinds import macs_of
from tvm_qplugin.passes.plan import REASONS
from tvm_qplugin.pipeline import kernel_passes, stored_layers
from tvm_qplugin.quantizer import check_device
from tvm_qplugin.targets import tvm_target

Bindings = Sequence[tuple[relax.Var, relax.Expr]]


@dataclass(frozen=True)
class Plan:
    """Every operator, and the scheme that it would get by its name."""

    operators: tuple[OperatorInfo, ...]
    schemes: Mapping[str, str]


def planned(module: IRModule, recipe: Recipe, profile: TargetProfile) -> Plan:
    """Every operator of a float module with the recipe's decision; bytes are those of float weights.

    Schemes are those of recipes. Of an operator that is not
    computed in integers the reason tells why, and how its weights are stored.
    """
    values = {var.name: (var, value) for var, value in ir.bindings(ir.main_function(module))}
    stored = _Stored.of(module, recipe, profile)
    found, schemes, once = [], dict[str, str](), Once()
    annotation = annotation_of(module, recipe, profile)
    check_scopes(recipe, annotation)
    for op in annotation.operators.values():
        parts = [values[name] for name in op.members]
        scheme, integer, reason = stored.decision(op)
        schemes[op.output] = scheme
        size, macs = sum(_constant_bytes(v, once) for _, v in parts), sum(macs_of(*part) for part in parts)
        shape = _shape(op, parts)
        found.append(OperatorInfo(op.output, op.kind, None, integer, reason or None, shape, size, macs))
    return Plan(tuple(found), schemes)


def stored_schemes(module: IRModule) -> dict[str, str]:
    """The schemes of layers that store their weights small, by the names of their variables."""
    return {name: constant.scheme for (name, _), constant in float_arguments(module).items()}


@dataclass(frozen=True)
class _Stored:
    """What the recipe does to layers that it computes in float.

    ``schemes``, ``reasons``: by the names of their variables; ``integer``: layers for which the device has
    kernels that quantize inputs at run time; ``refusal``: why the device takes nothing of it.
    """

    schemes: Mapping[str, str]
    reasons: Mapping[str, str]
    integer: frozenset[str]
    refusal: str

    @classmethod
    def of(cls, module: IRModule, recipe: Recipe, profile: TargetProfile) -> _Stored:
        """Store the weights of a float module, and look for kernels."""
        try:
            check_device(recipe, profile)
        except RecipeError as error:
            return cls({}, {}, frozenset(), str(error))
        made = tvm.transform.Sequential([ExpandWeights(), *stored_layers(recipe)])(module)
        func = ir.main_function(made)
        constants = stored_arguments(made)
        schemes = {name: constant.scheme for (name, _), constant in constants.items()}
        reasons = json.loads(str((func.attrs or {}).get(REASONS, "{}")))
        run_time = scheme_of(made) or DYNAMIC_LAYERS in (func.attrs or {})
        integer = _run_time(made, profile) if run_time and profile.tvm else frozenset()
        return cls(schemes, reasons, integer, "")

    def decision(self, op: OpAnnotation) -> tuple[str, bool, str]:
        """The scheme of an operator, whether it is computed in integers, and why not."""
        if op.integer and not self.refusal:
            return op.scheme, True, ""
        if self.refusal:
            return "float", False, self.refusal
        found = {self.schemes[name] for name in op.members if name in self.schemes}
        if "dynamic" in found:
            inside = not self.integer.isdisjoint(op.members)
            return "dynamic", inside, "" if inside else "int8 weights, computed in float32: no kernel here"
        if found:
            scheme = min(found)
            kind = "float16" if scheme == "fp16" else scheme.removeprefix("weight_")
            return scheme, False, f"{kind} weights, computed in float32"
        reasons = [self.reasons[name] for name in op.members if name in self.reasons]
        return "float", False, reasons[0] if reasons else op.reason


def _run_time(stored: IRModule, profile: TargetProfile) -> frozenset[str]:
    """The variables that kernels compute which quantize their inputs at run time."""
    target = tvm_target(profile)
    with target:
        lowered = tvm.transform.Sequential(kernel_passes(stored, profile, target))(stored)
    entries = json.loads(str(ir.main_function(lowered).attrs[REPORT]))
    return frozenset(entry["variable"] for entry in entries if entry["integer"])


def _shape(op: OpAnnotation, parts: Bindings) -> tuple[int, ...]:
    types = [var.ty for var, _ in parts if var.name == op.output]
    return ir.spec_of(parts[-1][0]).shape if types and hasattr(types[0], "shape") else ()


def _constant_bytes(value: Any, once: Once) -> int:
    arrays = [ir.const_value(arg) for arg in getattr(value, "args", ())]
    return sum(once.bytes(array) for array in arrays if array is not None and array.ndim)
