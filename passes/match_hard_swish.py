"""Find ``x * clip(x + 3, 0, 6) / 6`` in a float function, however it is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import relax

from tvm_qplugin.passes import ir, lut
from tvm_qplugin.passes.op_kinds import Fusion

Members = tuple[relax.Var, ...]


def hard_swishes(func: relax.Function) -> dict[relax.Var, tuple[relax.Var, Members]]:
    """By the variable of the result: what it is a function of, and the bindings on the way.

    Only where nobody else reads what is between.
    """
    fusion = Fusion.of(func)
    found = {}
    for var in fusion.defined:
        for leaf in _leaves(var, fusion):
            members = _between(var, leaf, fusion)
            if members and _private(members, var, fusion):
                if lut.recognize(var, leaf, fusion.defined) == "HARD_SWISH":
                    found[var] = leaf, members
    return found


def _leaves(var: relax.Var, fusion: Fusion) -> Iterator[relax.Var]:
    """The two factors of the product that ``var`` is, or is a constant times."""
    value: Any = fusion.defined[var]
    if ir.op_name(value) in ("relax.multiply", "relax.divide"):
        used = ir.variables(value)
        inner = fusion.defined.get(used[0]) if len(used) == 1 else value
        if inner is not None and ir.op_name(inner) == "relax.multiply":
            yield from dict.fromkeys(ir.variables(inner))


def _between(var: relax.Var, leaf: relax.Var, fusion: Fusion) -> Members | None:
    """The bindings from ``leaf`` to ``var``; None where another tensor takes part."""
    found: dict[relax.Var, None] = {}
    stack = [var]
    while stack:
        at = stack.pop()
        if at in found or at.same_as(leaf):
            continue
        value = fusion.defined.get(at)
        if value is None or len(found) > 5 or not lut.is_elementwise(at, value):
            return None
        found[at] = None
        stack += ir.variables(value)
    return tuple(found)


def _private(members: Members, var: relax.Var, fusion: Fusion) -> bool:
    inside = [member for member in members if not member.same_as(var)]
    users = [user for member in inside for user in fusion.users.get(member, [])]
    return all(user in members for user in users) and not fusion.results.intersection(inside)
