"""Constants that are stored small in a float module: what they are, and how to compute with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir import Call
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import SCHEME
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.rebuild import Rebuilder, constant, rebuild_main

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="ExpandWeights")
@dataclass(frozen=True)
class ExpandWeights:
    """Turn the stored constants of the schemes ``fp16`` and ``dynamic`` into float32 constants.

    In: any module. Out: one that says ``qplugin.scheme`` becomes an ordinary float module whose
    variables have the same names. Of every other one float16 constants become float32;
    dequantized ones belong to its integer layers, or are expanded where those are lowered.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        if not scheme_of(mod):
            halves = any(_is_half(value) for _, value in ir.bindings(ir.main_function(mod)))
            return rebuild_main(mod, _Widen) if halves else mod
        return ir.with_main_attr(rebuild_main(mod, _Expand), SCHEME, None)


class _Expand(Rebuilder):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """A stored constant as what it stands for."""
        found = stored_constant(call)
        return call if found is None else constant(found.real())


class _Widen(_Expand):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """A float16 constant as float32."""
        return super().rewrite(call, name) if _is_half(call) else call


def _is_half(value: Expr) -> bool:
    found = stored_constant(value) if ir.op_name(value) == "relax.astype" else None
    return found is not None and found.grid is None


@dataclass(frozen=True)
class Stored:
    """A constant as it is stored: float16, or integers with their parameters."""

    array: Array
    grid: QuantParams | None = None

    def real(self) -> Array:
        """The float32 values that it stands for."""
        values = self.array if self.grid is None else self.grid.dequantize(self.array)
        return values.astype("float32")


def scheme_of(mod: IRModule) -> str:
    """ "fp16", "dynamic", or empty for every other module."""
    return str((ir.main_function(mod).attrs or {}).get(SCHEME, ""))


def stored_constant(value: Expr) -> Stored | None:
    """What ``R.astype`` or ``R.dequantize`` of a constant stands for; None for any other expression."""
    name = ir.op_name(value)
    array = ir.const_value(value.args[0]) if name in ("relax.astype", "relax.dequantize") else None
    if array is None:
        return None
    if name == "relax.astype":
        return Stored(array) if array.dtype == "float16" else None
    grid = ir.qparams_of(value)
    return None if grid is None else Stored(array, grid)


def stored_arguments(func: relax.Function) -> dict[tuple[str, int], Stored]:
    """The stored constants of a function by the name of the variable that reads them and the argument."""
    found = {var: stored for var, value in ir.bindings(func) if (stored := stored_constant(value))}
    return {
        (var.name, i): found[arg]
        for var, value in ir.bindings(func)
        if isinstance(value, Call)
        for i, arg in enumerate(value.args)
        if isinstance(arg, relax.Var) and arg in found
    }
