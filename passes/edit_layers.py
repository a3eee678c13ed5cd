"""Give the float layers of a module other weights, biases and activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import IRModule, relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.rebuild import Rebuilder, rebuild_main, with_args

Var = Any


def edit_layers(
    mod: IRModule,
    weights: Mapping[Var, Array],
    biases: Mapping[Var, Array],
    unbounded: frozenset[Var] = frozenset(),
) -> IRModule:
    """The module with ``weights`` [..] by product and ``biases`` [O] by the sum that adds them.

    A bias given for a product that has none is added behind it. Of ``unbounded`` clips the upper bound is
    dropped: they become relu.
    """
    return rebuild_main(mod, lambda func: _Editing(func, weights, biases, unbounded))


class _Editing(Rebuilder):
    def __init__(
        self,
        func: relax.Function,
        weights: Mapping[Var, Array],
        biases: Mapping[Var, Array],
        unbounded: frozenset[Var],
    ) -> None:
        super().__init__(func)
        self.weights, self.biases, self.unbounded = weights, biases, unbounded

    def visit(self, var: Var, value: Any) -> None:
        """One binding with what was given for it."""
        call = self.mapped(value)
        if var in self.weights:
            call = with_args(call, [call.args[0], ir.const(self.weights[var].astype("float32"))])
            if var in self.biases:
                product = self.emit(call, self.fresh(f"{var.name}_product"))
                call = relax.op.add(product, ir.const(self.biases[var].astype("float32")))
        elif var in self.biases:
            call = with_args(call, [_biased(arg, self.biases[var]) for arg in call.args])
        elif var in self.unbounded:
            call = relax.op.nn.relu(call.args[0])
        self.known[var] = self.emit(call, var.name)


def _biased(arg: Any, bias: Array) -> Any:
    """A constant operand replaced; it keeps its rank."""
    old = ir.const_value(arg)
    if old is None:
        return arg
    return ir.const(bias.astype("float32").reshape(*[1] * (old.ndim - 1), -1))
