"""TVM's operator fusion, which forgets names, with a record of what each fused call computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import CALLS
from tvm_qplugin.passes import ir

Key = tuple[str, tuple[str, ...]]


@tvm.transform.module_pass(opt_level=0, name="FuseNamed")
@dataclass(frozen=True)
class FuseNamed:
    """Run ``relax.transform.FuseOps``.

    In: ``call_tir`` with patterns. Out: the module that FuseOps makes; ``qplugin.calls`` of ``main`` has, for
    each call in order, the function and the names of the variables that it stands for.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Fuse, then find the old variables in the new calls."""
        fused = relax.transform.FuseOps()(mod)
        names = _Names(_known(ir.main_function(mod)))
        calls = list(names.calls(fused))
        return ir.with_main_attr(fused, CALLS, json.dumps(calls))


def _known(func: relax.Function) -> dict[Key, list[str]]:
    """The variables bound to each function of the same variables, in order."""
    found: dict[Key, list[str]] = {}
    for var, value in ir.bindings(func):
        found.setdefault(_key(value, {}), []).append(var.name)
    return found


def _key(value: relax.Expr, names: dict[relax.Var, str]) -> Key:
    """What is done (constants left out), to which variables."""
    if isinstance(value, Call):
        what = str(value.args[0]) if ir.op_name(value) == "relax.call_tir" else str(value.op)
    else:
        what = f"{type(value).__name__}{getattr(value, 'index', '')}"
    return what, tuple(names.get(v, v.name) for v in ir.variables(value))


@dataclass
class _Names:
    """The old name of every variable of a fused module, found by what it is bound to."""

    known: dict[Key, list[str]]
    names: dict[relax.Var, str] = field(default_factory=dict)

    def calls(self, mod: IRModule) -> Iterator[tuple[str, list[str]]]:
        """Function and old names of each call of ``main``."""
        for var, value in ir.bindings(ir.main_function(mod)):
            inner = (
                mod[value.op] if isinstance(value, Call) and isinstance(value.op, tvm.ir.GlobalVar) else None
            )
            if inner is None:
                self._name(var, value)
                if ir.op_name(value) == "relax.call_tir":
                    yield value.args[0].name_hint, [self.names[var]]
                continue
            for param, arg in zip(inner.params, value.args, strict=True):
                if isinstance(arg, relax.Var):
                    self.names[param] = self.names.get(arg, arg.name)
            members = [self._name(v, x) for v, x in ir.bindings(inner) if not isinstance(x, relax.Var)]
            self.names[var] = members[-1]
            yield value.op.name_hint, members

    def _name(self, var: relax.Var, value: relax.Expr) -> str:
        candidates = self.known.get(_key(value, self.names), [])
        self.names[var] = candidates.pop(0) if candidates else var.name
        return self.names[var]
