"""Constants that are stored small in a float module: what they are, and how to compute with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import Call
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import DYNAMIC_LAYERS, SCHEME
from tvm_qplugin.core.grouped import Grouped
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.rebuild import Rebuilder, constant, rebuild_main
from tvm_qplugin.passes.select_kernels import kernel_of

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="ExpandWeights")
@dataclass(frozen=True)
class ExpandWeights:
    """Turn stored constants into float32 constants.

    In: any module. Out: one that says ``qplugin.scheme`` becomes an ordinary float module whose
    variables have the same names. Of every other one float16 constants and what ``wexpand`` gives become
    float32; dequantized ones belong to its integer layers, or are expanded where those are lowered.
    ``grouped``: False leaves the calls of ``wexpand``.
    """

    grouped: bool = True

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        labelled = bool(scheme_of(mod))
        wanted = partial(self._expands, labelled=labelled)
        constants = (stored_constant(mod, value) for _, value in ir.bindings(ir.main_function(mod)))
        if not labelled and not any(map(wanted, filter(None, constants))):
            return mod
        expanded = rebuild_main(mod, lambda func: _Expand(func, mod, wanted))
        return ir.with_main_attr(expanded, SCHEME, None) if labelled else expanded

    def _expands(self, stored: Stored, labelled: bool) -> bool:
        return self.grouped if stored.grouped is not None else labelled or stored.grid is None


class _Expand(Rebuilder):
    def __init__(self, func: relax.Function, mod: IRModule, wanted: Callable[[Stored], bool]) -> None:
        super().__init__(func)
        self.mod, self.wanted = mod, wanted

    def visit(self, var: relax.Var, value: Expr) -> None:
        """A stored constant becomes what it stands for."""
        found = stored_constant(self.mod, value)
        if found is None or not self.wanted(found):
            super().visit(var, value)
        else:
            self.known[var] = constant(found.real())


@dataclass(frozen=True)
class Stored:
    """A constant as it is stored: float16, integers with their parameters, or codes with scales of groups."""

    array: Array
    grid: QuantParams | None = None
    grouped: Grouped | None = None

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The elements, and the scales of groups."""
        return (self.array,) if self.grouped is None else self.grouped.arrays

    @property
    def scheme(self) -> str:
        """Which scheme stores constants so."""
        if self.grouped is not None:
            return f"weight_int{self.grouped.bits}"
        return "fp16" if self.grid is None else "dynamic"

    def real(self) -> Array:
        """The float32 values that it stands for."""
        if self.grouped is not None:
            return np.ascontiguousarray(self.grouped.real().T)
        values = self.array if self.grid is None else self.grid.dequantize(self.array)
        return values.astype("float32")


def scheme_of(mod: IRModule) -> str:
    """A scheme that computes in float, such as "fp16", or empty for every other module."""
    return str((ir.main_function(mod).attrs or {}).get(SCHEME, ""))


def stored_constant(mod: IRModule, value: Expr) -> Stored | None:
    """What ``R.astype``, ``R.dequantize`` or ``wexpand`` of constants stands for; None for all else."""
    name = ir.op_name(value)
    if name == "relax.call_tir":
        return _grouped(mod, value)
    array = ir.const_value(value.args[0]) if name in ("relax.astype", "relax.dequantize") else None
    if array is None:
        return None
    if name == "relax.astype":
        return Stored(array) if array.dtype == "float16" else None
    grid = ir.qparams_of(value)
    return None if grid is None else Stored(array, grid)


def _grouped(mod: IRModule, value: Call) -> Stored | None:
    kernel = kernel_of(mod, value)
    if kernel is None or kernel.name != "wexpand" or len(kernel.constants) != 2:
        return None
    codes, scale = kernel.constants.values()
    return Stored(codes, grouped=Grouped(codes, scale, kernel.params["depth"], kernel.params["group"]))


def stored_arguments(mod: IRModule) -> dict[tuple[str, int], Stored]:
    """The stored constants of ``main`` by the name of the variable that reads them and the argument."""
    func = ir.main_function(mod)
    found = {var: stored for var, value in ir.bindings(func) if (stored := stored_constant(mod, value))}
    return {
        (var.name, i): found[arg]
        for var, value in ir.bindings(func)
        if isinstance(value, Call)
        for i, arg in enumerate(value.args)
        if isinstance(arg, relax.Var) and arg in found
    }


def float_arguments(mod: IRModule) -> dict[tuple[str, int], Stored]:
    """``stored_arguments`` without what belongs to the integer layers of a QDQ module."""
    layers = set(json.loads(str((ir.main_function(mod).attrs or {}).get(DYNAMIC_LAYERS, "[]"))))
    in_float = bool(scheme_of(mod))
    return {
        key: found
        for key, found in stored_arguments(mod).items()
        if in_float or found.grid is None or key[0] in layers
    }
