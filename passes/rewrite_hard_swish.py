"""HARD_SWISH as an addition, a clamp and multiplications, which more devices have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.qparams import INTEGER_RANGE, QuantParams
from tvm_qplugin.passes import ir, lut
from tvm_qplugin.passes.rebuild import Rebuilder, op_name, rebuild_main

Expr = Any
Var = Any


@tvm.transform.module_pass(opt_level=0, name="RewriteHardSwish")
@dataclass(frozen=True)
class RewriteHardSwish:
    """Quantize every step of ``x * clip(x + 3, 0, 6) / 6`` instead of the whole.

    In: a QDQ module, in which LiteRT's HARD_SWISH stands for the function. Out: ADD of 3 with a clamp to
    [0, 6], MUL by it on six times the output's scale, MUL by 1/6. Inside of the output's range the result
    differs from the real function by at most half a step of the output plus abs(x) / 510, the latter
    because the gate has 255 steps.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Rewrite)


class _Rewrite(Rebuilder):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """The quantized product in place of the quantized function."""
        if op_name(call) != "quantize" or not isinstance(call.args[0], relax.Var):
            return call
        result, grid = call.args[0], ir.qparams_of(call)
        leaf = lut.unary_slice(result, self.defined)
        if grid is None or leaf is None or op_name(self.defined[result]) == "dequantize":
            return call
        if grid.dtype not in ("int8", "uint8") or lut.recognize(result, leaf, self.defined) != "HARD_SWISH":
            return call
        return ir.quantize(self._product(leaf, grid, result.name), grid)

    def _product(self, x: Var, grid: QuantParams, name: str) -> Var:
        gate_grid = QuantParams.from_range(0.0, 6.0, grid.dtype)
        product_grid = QuantParams.of(grid.scale * np.float32(6), grid.zero_point, grid.dtype)
        shifted = self._named(
            relax.op.add(x, self._number(3.0, grid.dtype, f"{name}_three")), f"{name}_shifted"
        )
        gate = self._on_grid(relax.op.clip(shifted, 0.0, 6.0), gate_grid, f"{name}_gate")
        product = self._on_grid(relax.op.multiply(x, gate), product_grid, f"{name}_product")
        sixth = self._number(1 / 6, grid.dtype, f"{name}_sixth")
        return self._named(relax.op.multiply(product, sixth), f"{name}_scaled")

    def _number(self, value: float, dtype: str, name: str) -> Var:
        """A positive constant as the highest code of a grid of its own."""
        high = INTEGER_RANGE[dtype][1]
        grid = QuantParams.of(np.float32(value / high), 0, dtype)
        return self._named(ir.dequantize(ir.const(np.full((1,), high, dtype)), grid), f"{name}_dq")

    def _on_grid(self, call: Expr, grid: QuantParams, name: str) -> Var:
        q = self._named(ir.quantize(self._named(call, name), grid), f"{name}_q")
        return self._named(ir.dequantize(q, grid), f"{name}_dq")

    def _named(self, call: Expr, name: str) -> Var:
        return self.emit(call, self.fresh(name))
