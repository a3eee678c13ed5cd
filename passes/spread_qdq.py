"""Quantization parameters travel with data that is only moved."""

from __future__ import annotations

import json
from typing import Any

from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import KINDS, MOVEMENT, obstacle
from tvm_qplugin.passes.plan import REASONS, activation_params


def spread_qdq(mod: IRModule) -> IRModule:
    """Put a pair of the same parameters behind data movement that reads dequantized tensors.

    PyTorch exports ``dequantize, flatten, gemm``: nothing is quantized behind the flatten, though its
    values still lie on the grid. The pair changes no value and lets both become integer. Movement that
    is quantized already, whose operands differ in parameters, or that is to stay float is left alone.
    """
    func = ir.main_function(mod)
    work = _Spreading(func)
    if not work.needed():
        return mod
    with ir.Emitter(mod) as out:
        return out.finish(work.run(out), ir.returns_tuple(func))


class _Spreading:
    def __init__(self, func: relax.Function) -> None:
        self.func = func
        self.defined, self.users = ir.definitions(func), ir.consumers(func)
        self.kept = set(json.loads(str((func.attrs or {}).get(REASONS, "{}"))))
        self.grids: dict[relax.Var, QuantParams] = {}
        for var, value in self.defined.items():
            grid = self._grid(var, value)
            if grid is not None:
                self.grids[var] = grid

    def needed(self) -> bool:
        return any(self._moves(var) for var in self.grids)

    def _moves(self, var: relax.Var) -> bool:
        return ir.op_name(self.defined[var]) != "relax.dequantize"

    def _grid(self, var: relax.Var, value: Any) -> QuantParams | None:
        """The parameters of a dequantized tensor, or of one that was only moved since."""
        if ir.op_name(value) == "relax.dequantize":
            return activation_params(value) if ir.const_value(value.args[0]) is None else None
        if var.name in self.kept or not self._spreadable(var, value):
            return None
        found = [self.grids.get(used) for used in ir.variables(value)]
        first = found[0]
        return first if first and all(other and other.same(first) for other in found) else None

    def _spreadable(self, var: relax.Var, value: Any) -> bool:
        kind = KINDS.get(ir.op_name(value), "")
        if kind not in MOVEMENT - {"split"} or obstacle(kind, value) or not ir.variables(value):
            return False
        readers = [ir.op_name(self.defined[user]) for user in self.users.get(var, [])]
        return any(name and name != "relax.quantize" for name in readers)

    def run(self, out: ir.Emitter) -> list[relax.Expr]:
        env: dict[relax.Var, relax.Expr] = {}
        for var, value in self.defined.items():
            if isinstance(value, relax.Var | relax.Tuple):
                continue
            env[var] = out.emit(ir.substitute(value, env), var.name)
            if var in self.grids and self._moves(var):
                q = out.emit(ir.quantize(env[var], self.grids[var]), f"{var.name}_q")
                env[var] = out.emit(ir.dequantize(q, self.grids[var]), f"{var.name}_dq")
        return [env.get(var, var) for var in ir.output_vars(self.func)]
