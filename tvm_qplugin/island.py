"""A part of a module's ``main``, compiled as a function of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.builder import Runner, compile_function
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir


@dataclass
class Island:
    """Bindings that are compiled together when they are first needed.

    ``bound`` are bindings of ``main`` in their order, ``results`` those that are read from outside. Called
    with the arrays of other variables it gives those of ``results``.
    """

    mod: IRModule
    bound: dict[relax.Var, relax.Expr]
    results: list[relax.Var]

    def __call__(self, env: Mapping[relax.Var, Array]) -> dict[relax.Var, Array]:
        """Run it once."""
        values = self._run([env[var] for var in self.inputs])
        return dict(zip(self.results, values, strict=True))

    @cached_property
    def inputs(self) -> list[relax.Var]:
        """What it reads from outside."""
        used = (var for value in self.bound.values() for var in ir.variables(value))
        return [var for var in dict.fromkeys(used) if var not in self.bound]

    @cached_property
    def _run(self) -> Runner:
        params = [relax.Var(var.name, var.ty) for var in self.inputs]
        env: dict[relax.Var, relax.Expr] = dict(zip(self.inputs, params, strict=True))
        with ir.Emitter(self.mod, params) as out:
            for var, value in self.bound.items():
                env[var] = out.emit(ir.substitute(value, env), var.name)
            return compile_function(out.finish([env[var] for var in self.results], True), merge=False)
