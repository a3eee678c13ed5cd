"""Move the spread of channels from activations into weights (SmoothQuant, Xiao et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.rebuild import (
    Rebuilder,
    constant,
    op_name,
    outputs_of,
    rebuild_main,
    straight_bindings,
    value_of,
    variables_in,
    with_args,
)

Expr = Any
MOVES = ("reshape", "permute_dims")
NORMS = ("nn.layer_norm", "nn.rms_norm")
SMALLEST = 1e-5


@tvm.transform.module_pass(opt_level=0, name="SmoothQuant")
@dataclass(frozen=True)
class SmoothQuant:
    """Divide what dense layers read by a factor for each channel, and multiply their weights by it.

    In: a canonical float module; ``maxima`` has the largest magnitude of every channel (last axis) of the
    tensors that ``smoothable`` names. Out: the same function: channel j is divided by
    ``maxima[j]**strength / max|W[j]|**(1 - strength)``, inside the norm where only dense layers read
    it, else by a multiplication in float before them.
    """

    maxima: Mapping[str, Array]
    strength: float = 0.5

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        readers = {name: found for name, found in smoothable(mod["main"]).items() if name in self.maxima}
        factors = {name: self._factors(name, calls) for name, calls in readers.items()}
        return rebuild_main(mod, lambda func: _Smoothing(func, factors))

    def _factors(self, name: str, layers: list[Expr]) -> Array:
        weight = np.max([np.abs(layer.args[1].value.numpy()).max(1) for layer in layers], axis=0)
        found = np.maximum(self.maxima[name], SMALLEST) ** self.strength
        factors = found / np.maximum(weight, SMALLEST) ** (1 - self.strength)
        return np.asarray(factors / np.exp(np.log(factors).mean()), "float32")


def smoothable(func: relax.Function) -> dict[str, list[Expr]]:
    """Tensors that stay float until dense layers read them, by name, with these layers.

    They are the results of layer and RMS norms, also reshaped or transposed.
    """
    bound = dict(straight_bindings(func))
    found: dict[str, list[Expr]] = {}
    for value in bound.values():
        if _is_dense(value) and isinstance(value.args[0], relax.Var) and _is_float(value.args[0], bound):
            found.setdefault(value.args[0].name, []).append(value)
    return found


def _is_dense(value: Expr) -> bool:
    if op_name(value) != "matmul":
        return False
    weight = value_of(value.args[1])
    return weight is not None and weight.ndim == 2


def _is_float(var: Expr, bound: Mapping[Expr, Expr]) -> bool:
    value: Expr = bound.get(var)
    while op_name(value) in MOVES:
        value = bound.get(value.args[0])
    return op_name(value) in NORMS


class _Smoothing(Rebuilder):
    def __init__(self, func: relax.Function, factors: Mapping[str, Array]) -> None:
        super().__init__(func)
        self.factors = factors
        self.smoothed: dict[Expr, Expr] = {}
        self.inside = self._only_for_dense()

    def _only_for_dense(self) -> set[str]:
        """Norms with a vector of scales that nothing else reads."""
        kept = {out.name for out in outputs_of(self.func)}
        found = set()
        for var, value in straight_bindings(self.func):
            if not _is_dense(value):
                kept.update(used.name for used in variables_in(value))
            if op_name(value) in NORMS and value_of(value.args[1]) is not None:
                found.add(var.name)
        return (found & set(self.factors)) - kept

    def visit(self, var: Expr, value: Expr) -> None:
        """Scale norms and weights; everything else as it is."""
        call = self.mapped(value)
        if var.name in self.inside:
            scaled = [constant(a.value.numpy() / self.factors[var.name]) for a in call.args[1:]]
            call = with_args(call, [call.args[0], *scaled])
        elif _is_dense(value) and getattr(value.args[0], "name", "") in self.factors:
            factors = self.factors[value.args[0].name]
            weight = constant(np.ascontiguousarray(call.args[1].value.numpy() * factors[:, None]))
            call = with_args(call, [self._divided(value.args[0], factors), weight])
        self.known[var] = self.emit(call, var.name)

    def _divided(self, source: Expr, factors: Array) -> Expr:
        new = self.replacement(source)
        if source.name in self.inside:
            return new
        if source not in self.smoothed:
            made = relax.op.multiply(new, constant((1 / factors).astype("float32")))
            self.smoothed[source] = self.emit(made, self.fresh(f"{source.name}_smooth"))
        return self.smoothed[source]
