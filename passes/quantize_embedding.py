"""Embedding tables as int8 with a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.core.spec import WEIGHT
from tvm_qplugin.passes.rebuild import Rebuilder, constant, op_name, value_of
from tvm_qplugin.passes.weights import quantize_weight

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="QuantizeEmbedding")
@dataclass(frozen=True)
class QuantizeEmbedding:
    """Look rows up as int8 and scale them behind.

    In: a module with ``R.take`` of rows of a constant float32 matrix by computed indices. Out: ``take`` of
    int8 codes and of the rows' scales (symmetric, [-127, 127]), as float32 multiplied. Matrices of fewer than
    ``smallest`` elements, and those that ``recipe`` keeps in float or float16, stay.
    """

    recipe: Recipe = field(default_factory=Recipe)
    smallest: int = 1024

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``, if it looks anything up."""
        work = _Lookups(mod["main"], self)
        func = work.run()
        if not work.found:
            return mod
        result = mod.clone()
        result["main"] = func
        return result


class _Lookups(Rebuilder):
    def __init__(self, func: relax.Function, choice: QuantizeEmbedding) -> None:
        super().__init__(func)
        self.choice, self.found = choice, False

    def rewrite(self, call: Expr, name: str) -> Expr:
        """A lookup in a float table."""
        table = value_of(call.args[0]) if op_name(call) == "take" else None
        if table is None or not self._wanted(call, table, name):
            return call
        self.found = True
        codes, grid = quantize_weight(table, replace(WEIGHT, axis=0), None, np.ones(()))
        mode, indices = str(call.attrs.mode), call.args[1]
        scales = constant(grid.scale.reshape(-1, 1).astype("float32"))
        rows = self.emit(relax.op.take(constant(codes), indices, 0, mode), self.fresh(f"{name}_codes"))
        steps = self.emit(relax.op.take(scales, indices, 0, mode), self.fresh(f"{name}_scales"))
        real = self.emit(relax.op.astype(rows, "float32"), self.fresh(f"{name}_real"))
        return relax.op.multiply(real, steps)

    def _wanted(self, call: Expr, table: Any, name: str) -> bool:
        rows = table.ndim == 2 and table.shape[1] > 1 and str(table.dtype) == "float32"
        by_rows = call.attrs.axis is not None and int(call.attrs.axis) == 0 and value_of(call.args[1]) is None
        return (
            rows
            and by_rows
            and table.size >= self.choice.smallest
            and self.choice.recipe.choose("take", name).scheme not in ("float", "fp16")
        )
