"""The scheme ``fp16``: constants in half the bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir import Call
from tvm.ir.transform import PassContext

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import check_rules, group
from tvm_qplugin.passes.rebuild import Rebuilder, constant
from tvm_qplugin.passes.stored import labelled

Expr = Any
_GRIDS = ("relax.quantize", "relax.dequantize")
"""Scales are no constants of a layer."""


@tvm.transform.module_pass(opt_level=0, name="QuantizeFloat16")
@dataclass(frozen=True)
class QuantizeFloat16:
    """Store constants as float16 behind ``R.astype(float32)``.

    In: a canonical float module. Out: the same with every float32 constant of ``smallest`` or more
    elements rounded to float16, attribute ``qplugin.scheme`` = "fp16". Layers for which ``recipe`` says
    another keep float32, and so do constants with a value that float16 cannot hold (65,520 and more);
    for these the reason stands in ``qplugin.reasons``. Of a QDQ module, which gets no ``qplugin.scheme``,
    only layers in float are looked at.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe("fp16", "fp16"))
    smallest: int = 32

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        check_rules(self.recipe)
        func = ir.main_function(mod)
        kinds = {member: (op.kind, op.output) for op in group(func) for member in op.members}

        def chosen(name: str) -> bool:
            if name not in kinds:
                return self.recipe.storage == "fp16"
            return kinds[name][0] not in _GRIDS and self.recipe.choose(*kinds[name]).scheme == "fp16"

        work = _Halve(func, self.smallest, chosen)
        result = mod.clone()
        result["main"] = work.run()
        return labelled(result, self.recipe, work.reasons)


class _Halve(Rebuilder):
    def __init__(self, func: relax.Function, smallest: int, chosen: Callable[[str], bool]) -> None:
        super().__init__(func)
        self.smallest, self.chosen, self.reasons = smallest, chosen, dict[str, str]()

    def rewrite(self, call: Expr, name: str) -> Expr:
        """A call whose large constants are float16."""
        if not isinstance(call, Call) or not ir.op_name(call) or not self.chosen(name):
            return call
        args = [self._stored(arg, name, i) for i, arg in enumerate(call.args)]
        return Call(call.op, args, call.attrs, call.ty_args)

    def _stored(self, arg: Expr, name: str, index: int) -> Expr:
        array = ir.const_value(arg)
        if array is None or array.dtype != "float32" or array.size < self.smallest:
            return arg
        half = _half(array)
        if half is None:
            self.reasons[name] = (
                f"its constant reaches {np.abs(array).max():.6g}, and the largest float16 is 65504: "
                "kept as float32"
            )
            return arg
        return self.emit(relax.op.astype(constant(half), "float32"), self.fresh(f"{name}_half{index}"))


def _half(array: Array) -> Array | None:
    """Rounded to float16, None where a finite value would become infinite."""
    with np.errstate(over="ignore"):
        half = array.astype("float16")
    return None if (np.isinf(half) & np.isfinite(array)).any() else half
