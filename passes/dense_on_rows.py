"""Dense layers of one row that stand in more than two dimensions: the row alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.passes.op_kinds import is_activation, is_bias
from tvm_qplugin.passes.rebuild import Rebuilder, op_name, rebuild_main, shape_of, value_of

Expr = Any
Var = Any


@tvm.transform.module_pass(opt_level=0, name="DenseOnRows")
@dataclass(frozen=True)
class DenseOnRows:
    """Reshape [1, .., 1, C] to [1, C] before a dense layer, and back behind its bias and activation.

    In: a float module. Out: every ``matmul`` of one row with a constant matrix works on two dimensions
    (the Edge TPU wants a FULLY_CONNECTED whose output is a vector). The values are the same.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Rows)


class _Rows(Rebuilder):
    """``rows`` holds the two-dimensional versions; the original shape is made where something needs it."""

    def __init__(self, func: relax.Function) -> None:
        """Nothing is in two dimensions yet."""
        super().__init__(func)
        self.rows: dict[Var, Expr] = {}
        self.heads: dict[Var, Var] = {}

    def visit(self, var: Var, value: Expr) -> None:
        """One binding: in two dimensions if it belongs to such a layer."""
        if _one_row(value):
            x = self.mapped(value.args[0])
            flat = self.emit(relax.op.reshape(x, (1, shape_of(x)[-1])), self.fresh(f"{var.name}_row"))
            self._keep(var, var, relax.op.matmul(flat, self.mapped(value.args[1])))
        elif (source := self._layer_before(value)) is not None:
            args = [self._flat(arg, source) for arg in value.args]
            self._keep(var, self.heads[source], relax.Call(value.op, args, value.attrs, value.ty_args))
        else:
            super().visit(var, value)

    def replacement(self, var: Var) -> Expr:
        """The version of the original shape."""
        if var in self.rows and var not in self.known:
            shaped = relax.op.reshape(self.rows[var], shape_of(var))
            self.known[var] = self.emit(shaped, self.fresh(f"{var.name}_shaped"))
        return super().replacement(var)

    def finish(self, outputs: Any) -> relax.Function:
        """Outputs have their original shapes."""
        return super().finish([self.replacement(out) if out in self.rows else out for out in outputs])

    def _keep(self, var: Var, head: Var, call: Expr) -> None:
        self.rows[var], self.heads[var] = self.emit(call, var.name), head

    def _layer_before(self, value: Expr) -> Var | None:
        """The layer that a bias or an activation belongs to, if that is in two dimensions."""
        if not isinstance(value, relax.Call):
            return None
        for arg in value.args:
            if isinstance(arg, relax.Var) and arg in self.rows and self.uses[arg] == 1:
                if is_activation(arg, value) or is_bias(arg, value):
                    return arg
        return None

    def _flat(self, arg: Expr, source: Var) -> Expr:
        if arg is source or (isinstance(arg, relax.Var) and arg.same_as(source)):
            return self.rows[source]
        value = value_of(arg)
        return arg if value is None or value.ndim <= 1 else relax.const(value.reshape(-1))


def _one_row(value: Expr) -> bool:
    if op_name(value) != "matmul" or not isinstance(value.args[0], relax.Var):
        return False
    shape = shape_of(value.args[0])
    weight = value_of(value.args[1])
    return len(shape) > 2 and set(shape[:-1]) == {1} and weight is not None and weight.ndim == 2
