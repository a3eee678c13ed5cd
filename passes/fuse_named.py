"""TVM's operator fusion, which forgets names, with a record of what each fused call computes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, IRModule
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


def _key(value: relax.Expr, names: Mapping[relax.Var, str]) -> Key:
    """What is done to which variables and constants."""
    if isinstance(value, Call):
        what = str(value.args[0]) if ir.op_name(value) == "relax.call_tir" else str(value.op)
    else:
        what = f"{type(value).__name__}{getattr(value, 'index', '')}"
    return what, tuple(_operands(value, names))


def _operands(value: relax.Expr, names: Mapping[relax.Var, str]) -> Iterator[str]:
    """The variables, by their old name, and the constants, by their identity, that a binding reads."""
    if isinstance(value, relax.Var):
        yield names.get(value, value.name)
    elif isinstance(value, GenericConst):
        yield f"constant {hash(value)}"
    elif isinstance(value, relax.TupleGetItem):
        yield from _operands(value.tuple_value, names)
    elif isinstance(value, relax.Tuple | Call):
        for part in value.fields if isinstance(value, relax.Tuple) else value.args:
            yield from _operands(part, names)


@dataclass
class _Names:
    """The old name of every variable of a fused module, found by what it is bound to."""

    known: dict[Key, list[str]]
    names: dict[relax.Var, str] = field(default_factory=dict)

    def calls(self, mod: IRModule) -> Iterator[tuple[str, list[str]]]:
        """Function and old names of each call of ``main``."""
        for var, value in ir.bindings(ir.main_function(mod)):
            if isinstance(value, Call) and isinstance(value.op, tvm.ir.GlobalVar):
                yield value.op.name_hint, self._group(var, value, mod[value.op])
                continue
            name = self._name(var, value)
            if ir.op_name(value) == "relax.call_tir":
                yield value.args[0].name_hint, [name]

    def _group(self, var: relax.Var, call: Call, inner: relax.Function) -> list[str]:
        """The old names inside a group, whose result gets the last of them."""
        for param, arg in zip(inner.params, call.args, strict=True):
            self.names[param] = next(_operands(arg, self.names), param.name)
        computed = [(v, x) for v, x in ir.bindings(inner) if not isinstance(x, relax.Var | relax.Tuple)]
        members = [self._name(v, x) for v, x in computed]
        self.names[var] = members[-1]
        return members

    def _name(self, var: relax.Var, value: relax.Expr) -> str:
        candidates = self.known.get(_key(value, self.names), [])
        self.names[var] = candidates.pop(0) if candidates else var.name
        return self.names[var]
