"""Names of the tensors of an imported model: unique identifiers, one for every variable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tvm import relax

from tvm_qplugin.passes.rebuild import Rebuilder, op_name, straight_bindings

Expr = Any


def sanitize(name: str) -> str:
    """A tensor's name as an identifier."""
    clean = re.sub(r"\W", "_", name, flags=re.ASCII) or "t"
    return f"t_{clean}" if clean[0].isdigit() else clean


class Names:
    """What an importer calls its tensors: ``of`` maps variables to names, ``steps`` names to roles.

    A role is what a tensor inside a recurrent layer is in every step.
    """

    def __init__(self) -> None:
        self.of: dict[Expr, str] = {}
        self.steps: dict[str, str] = {}
        self._taken: set[str] = set()

    def fresh(self, name: str) -> str:
        """An identifier like ``name`` that nothing has yet."""
        clean = base = sanitize(name)
        count = 1
        while clean in self._taken:
            clean, count = f"{base}_{count}", count + 1
        self._taken.add(clean)
        return clean

    def give(self, var: Expr, name: str) -> Expr:
        """Call ``var`` by a fresh name like ``name``."""
        self.of[var] = self.fresh(name)
        return var

    def give_part(self, var: Expr, owner: str, role: str, step: int | None) -> Expr:
        """Name a tensor inside a layer; what it is in every step is noted."""
        role = f"{sanitize(owner)}_{role}"
        self.give(var, role if step is None else f"{role}_t{step}")
        self.steps[self.of[var]] = role
        return var


class Named(Rebuilder):
    """Gives every variable its tensor's name, and temporaries that of the tensor they lead to."""

    def __init__(self, func: relax.Function, names: Mapping[Expr, str]) -> None:
        """``names``: variable -> name of the model's tensor it holds."""
        super().__init__(func)
        self._reserved = {*self._names, *names.values()}
        self.labels: dict[Expr, str] = {}
        owner = "t"
        for var, value in reversed(list(straight_bindings(func))):
            owner = names.get(var, owner)
            suffix = op_name(value).split(".")[-1] or "item"
            self.labels[var] = names.get(var) or f"{owner}_{suffix}"

    def visit(self, var: Expr, value: Expr) -> None:
        """Bind under the label; a copy of a variable vanishes."""
        label = self.labels[var]
        free = label if label in self._reserved and label not in self._names else self.fresh(label)
        self.known[var] = self.emit(self.mapped(value), free)
