"""Decide what is quantized: group bindings into operators and give every tensor its specification."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import tvm
from tvm import relax
from tvm.ir import GenericConst, IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import ANNOTATION
from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.core.recipe import STORAGE_SCHEMES, Recipe
from tvm_qplugin.core.spec import SCHEMES, WEIGHT, Annotation, OpAnnotation, SharedSpec, Spec, second
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.attention_scores import float_residuals, float_scores, float_weights
from tvm_qplugin.passes.op_kinds import (
    ELEMENTWISE,
    KIND_NAMES,
    MOVEMENT,
    WEIGHTED,
    Fusion,
    divides_by_constant,
    kind_of,
    no_kernel,
    obstacle,
    obstacle16,
)
from tvm_qplugin.passes.wide_cells import float_front, widened

Explain = Callable[[str], str | None]
_CHANNELS = {"conv2d": 0, "dense": 1, "prelu": None}
"""Operators with a weight, and its axis of output channels (None: it has one scale)."""


@tvm.transform.module_pass(opt_level=0, name="Annotate")
@dataclass(frozen=True)
class Annotate:
    """Group the bindings of ``main`` into operators and decide which become integer kernels.

    In: a canonical float module. Out: the same, with the ``Annotation`` in the function attribute
    ``qplugin.annotation``. ``explain(kind)`` says why a device cannot run an operator (None: it can).
    ``wide_cells``: recurrent cells of an int8 model compute in int16 between their products; what comes
    before them, and softmaxes that weigh many positions, stay in float.
    Raises RecipeError for a rule about a kind that does not exist.
    """

    recipe: Recipe = field(default_factory=Recipe)
    explain: Explain | None = None
    wide_cells: bool = True

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Attach the annotation."""
        check_rules(self.recipe)
        func = ir.main_function(mod)
        operators = {op.output: self._decide(op, whole) for op, whole in self._groups(func)}
        if self.wide_cells:
            operators = float_front(func, operators, self.recipe)
        operators = float_scores(operators, self.recipe, self.wide_cells)
        if self.wide_cells:
            operators = float_weights(func, operators, self.recipe)
        settled = _settle(func, operators)
        if self.wide_cells:
            if sums := float_residuals(settled, self.recipe):
                settled = _settle(func, {**operators, **sums})
            settled = widened(func, settled)
        annotation = _tensors(func, _follow(settled), self.recipe)
        return ir.with_main_attr(mod, ANNOTATION, annotation.dumps())

    def _groups(self, func: relax.Function) -> Iterator[tuple[OpAnnotation, OpAnnotation]]:
        """Operators, each with the one whose scheme it has.

        Chains that become int16 are taken apart, because int16 has no tables for them.
        """
        if not {"int8", "int16x8"} <= self.recipe.schemes:
            yield from ((op, op) for op in group(func, "int16x8" not in self.recipe.schemes))
            return
        parts = {op.output: op for op in group(func, False)}
        for op in group(func):
            wide = self.recipe.choose(op.kind, op.output).scheme == "int16x8"
            pieces = [parts.pop(name) for name in op.members if name in parts] if wide else [op]
            yield from ((piece, op) for piece in pieces)

    def _decide(self, op: OpAnnotation, whole: OpAnnotation) -> OpAnnotation:
        choice = self.recipe.choose(whole.kind, whole.output)
        reason = op.reason
        if not reason and choice.scheme == "float":
            reason = "the recipe keeps it in float"
        if not reason and choice.scheme in STORAGE_SCHEMES:
            reason = f"the recipe computes it in float (scheme {choice.scheme})"
        if not reason and choice.scheme == "int16x8":
            reason = obstacle16(op.kind)
        if not reason and self.explain is not None:
            reason = self.explain(op.kind) or ""
        weight = None
        if op.kind in _CHANNELS and not reason:
            axis = _CHANNELS[op.kind] if choice.per_channel else None
            reduced = choice.reduce_range and choice.scheme == "int8" and op.kind != "prelu"
            weight = replace(WEIGHT, axis=axis, reduced=reduced)
        scheme = choice.scheme if choice.scheme in SCHEMES else op.scheme
        return replace(op, integer=not reason, reason=reason, weight=weight, scheme=scheme)


def check_rules(recipe: Recipe) -> None:
    """Refuse rules that can match nothing, because there is no such kind of operator."""
    known = {*KIND_NAMES, "split_item", "clamp", "lut", *(n.removeprefix("relax.") for n in ELEMENTWISE)}
    for rule in recipe.rules:
        if rule.op is not None and rule.op not in known and not str(rule.op).startswith("relax."):
            raise RecipeError(
                f"a rule of recipe {recipe.name!r} is for op {rule.op!r}, which is no kind of operator; "
                f"use one of {', '.join(sorted(known))}, or null for all"
            )


def group(func: relax.Function, chains: bool = True) -> list[OpAnnotation]:
    """Operators in order of execution, each with the bindings that it covers.

    ``chains``: elementwise operators of one tensor, one behind the other, become one (a table); else a
    division by a number counts as multiplication.
    """
    return _Grouping(func, chains).operators()


class _Grouping:
    """Finds what one kernel can compute: conv + bias + activation, or a unary elementwise chain."""

    def __init__(self, func: relax.Function, chains: bool) -> None:
        self.chains = chains
        self.fusion = Fusion.of(func)
        self.defined, self.users, self.results = self.fusion.defined, self.fusion.users, self.fusion.results
        self.absorbed: set[relax.Var] = set()
        self.root: dict[relax.Var, relax.Var] = {}

    def operators(self) -> list[OpAnnotation]:
        found: list[OpAnnotation] = []
        for var, value in self.defined.items():
            if isinstance(value, relax.Var | relax.Tuple) or var in self.absorbed:
                continue
            if self._chained(var, value):
                found += self._chain_end(var)
            else:
                found.append(self._operator(var, value))
        return found

    def _operator(self, var: relax.Var, value: relax.Expr) -> OpAnnotation:
        kind = "split_item" if isinstance(value, relax.TupleGetItem) else kind_of(value)
        kind = "multiply" if divides_by_constant(value) else kind
        name = kind or ir.op_name(value) or type(value).__name__
        members = self.fusion.members(var, kind)
        self.absorbed.update(members[1:])
        reason = obstacle(kind, value) if kind else no_kernel(name)
        inputs = tuple(dict.fromkeys(v.name for v in ir.variables(value)))
        return OpAnnotation(name, members[-1].name, inputs, tuple(v.name for v in members), reason=reason)

    def _chained(self, var: relax.Var, value: relax.Expr) -> bool:
        """Whether the binding is elementwise in a single tensor; its root is noted."""
        if ir.op_name(value) not in ELEMENTWISE or not _only_scalars(value):
            return False
        roots = {self._root_of(used) for used in ir.variables(value)}
        if len(roots) != 1:
            return False
        root = roots.pop()
        if ir.spec_of(root).shape != ir.spec_of(var).shape:
            return False
        self.root[var] = root
        return True

    def _chain_end(self, var: relax.Var) -> list[OpAnnotation]:
        """An operator, if the chain's value is read from outside the chain."""
        root = self.root[var]
        users = self.users.get(var, [])
        inside = all(self._continues(user, root) for user in users)
        if users and inside and var not in self.results:
            return []
        members = self._slice(var, root)
        kind = _chain_kind([ir.op_name(self.defined[m]) for m in members])
        if not self.chains and divides_by_constant(self.defined[var]):
            kind = "multiply"
        reason = "" if ir.spec_of(root).dtype == "float32" else "it is not a float32 tensor"
        return [OpAnnotation(kind, var.name, (root.name,), tuple(m.name for m in members), reason=reason)]

    def _root_of(self, var: relax.Var) -> relax.Var:
        return self.root.get(var, var) if self.chains else var

    def _continues(self, user: relax.Var, root: relax.Var) -> bool:
        value = self.defined[user]
        if not self.chains or ir.op_name(value) not in ELEMENTWISE or not _only_scalars(value):
            return False
        return {self.root.get(used, used) for used in ir.variables(value)} == {root}

    def _slice(self, var: relax.Var, root: relax.Var) -> list[relax.Var]:
        needed, stack = {var}, [var]
        while stack:
            for used in ir.variables(self.defined[stack.pop()]):
                if used is not root and used not in needed and used != root:
                    needed.add(used)
                    stack.append(used)
        return [v for v in self.defined if v in needed]


def _only_scalars(value: relax.Expr) -> bool:
    sizes = [c.value.numpy().size for c in value.args if isinstance(c, GenericConst)]
    return all(size == 1 for size in sizes)


def _chain_kind(ops: list[str]) -> str:
    """``clamp`` for relu and clip, the operator's own name where there is just one, else ``lut``."""
    if set(ops) <= {"relax.nn.relu", "relax.clip"}:
        return "clamp"
    return ops[0].removeprefix("relax.") if len(ops) == 1 else "lut"


def _settle(func: relax.Function, operators: Mapping[str, OpAnnotation]) -> dict[str, OpAnnotation]:
    """Integer where it pays: not for data that comes from float operators and returns to them."""
    settled = _settled_once(func, operators)
    while between := {name for name, op in settled.items() if _between_floats(op, settled)}:
        reason = "it lies between float operators"
        operators = {
            name: replace(op, integer=False, reason=reason) if name in between else op
            for name, op in operators.items()
        }
        settled = _settled_once(func, operators)
    return settled


def _between_floats(op: OpAnnotation, settled: Mapping[str, OpAnnotation]) -> bool:
    """A sum or product with a float operand, and of float operands only or with float readers only.

    Residual sums before a layer norm, masks on attention: their ranges are too wide for few bits. The model's
    inputs, moved or not, are none.
    """
    if not op.integer or op.kind not in ("add", "subtract", "multiply"):
        return False
    made = [settled[name] for name in op.inputs if _origins([name], settled) & settled.keys()]
    readers = [other for other in settled.values() if op.output in other.inputs]
    floats = [not other.integer for other in made]
    alone = len(made) == len(op.inputs) and all(floats)
    return any(floats) and (alone or (bool(readers) and not any(other.integer for other in readers)))


def _settled_once(func: relax.Function, operators: Mapping[str, OpAnnotation]) -> dict[str, OpAnnotation]:
    """Moving data is worth an integer kernel only where the data is integer already."""
    integer: dict[str, bool] = {}
    settled = {}
    params = {param.name for param in func.params}
    for name, op in operators.items():
        if op.integer and op.kind in MOVEMENT and not any(integer.get(i, False) for i in op.inputs):
            where = "the model's input" if set(op.inputs) & params else "a float operator"
            op = replace(op, integer=False, reason=f"it only moves data of {where}")
        if op.integer and op.kind not in MOVEMENT and _fed_by_float_only(op, operators, integer):
            op = replace(op, integer=False, reason="its input comes from a float operator")
        settled[name] = op
        integer.update({member: op.integer for member in op.members})
    return _moved_after_quantizing(settled, operators, params)


def _moved_after_quantizing(
    settled: dict[str, OpAnnotation], operators: Mapping[str, OpAnnotation], params: set[str]
) -> dict[str, OpAnnotation]:
    """Inputs of the model are quantized before they are moved for integer operators, not after.

    But for a transposition, which quantizing does on the way.
    """
    sources = set(params)
    for name, op in settled.items():
        if op.kind in MOVEMENT and operators[name].integer and set(op.inputs) <= sources:
            sources.add(name)
    for name in [name for name in reversed(settled) if name in sources]:
        readers = [op for op in settled.values() if name in op.inputs]
        op = settled[name]
        if op.kind not in ("permute_dims", "split") and readers and all(reader.integer for reader in readers):
            settled[name] = replace(op, integer=True, reason="")
    return settled


def _follow(operators: dict[str, OpAnnotation]) -> dict[str, OpAnnotation]:
    """Data movement has the scheme of what it reads; where that is float, the wider one of its readers."""
    found = dict(operators)
    made: dict[str, str] = {}
    for name, op in reversed(list(found.items())):
        readers = [other.scheme for other in found.values() if name in other.inputs and other.integer]
        if op.integer and op.kind in MOVEMENT and readers:
            found[name] = replace(op, scheme=_wider(readers))
    for name, op in found.items():
        read = [made[used] for used in op.inputs if used in made]
        if op.integer and op.kind in MOVEMENT and read:
            found[name] = replace(op, scheme=_wider(read))
        if op.integer:
            made[name] = found[name].output_scheme
    return found


def _wider(schemes: list[str]) -> str:
    return "int16x8" if "int16x8" in schemes else schemes[0]


def _fed_by_float_only(
    op: OpAnnotation, operators: Mapping[str, OpAnnotation], integer: Mapping[str, bool]
) -> bool:
    """An elementwise chain stays in the island that feeds it."""
    if op.kind in (*WEIGHTED, "add", "subtract", "multiply") or not op.inputs:
        return False
    origins = _origins(op.inputs, operators)
    return bool(origins) and all(name in integer and not integer[name] for name in origins)


def _origins(names: Iterable[str], operators: Mapping[str, OpAnnotation]) -> set[str]:
    """What computed the data that operators behind it only move."""
    found: set[str] = set()
    for name in names:
        op = operators.get(name)
        moved = op is not None and op.kind in MOVEMENT
        found |= _origins(op.inputs, operators) if op is not None and moved else {name}
    return found


def _tensors(func: relax.Function, operators: Mapping[str, OpAnnotation], recipe: Recipe) -> Annotation:
    """Specifications for what integer operators read and write."""
    tensors: dict[str, Spec] = {}
    floats = {v.name for v in [*func.params, *ir.definitions(func)] if _is_float(v)}
    for op in operators.values():
        if not op.integer:
            continue
        observer = recipe.choose(op.kind, op.output).observer
        used = dict.fromkeys(op.inputs, op.scheme) | {op.output: op.output_scheme}
        for name in [name for name in used if name in floats]:
            spec = replace(SCHEMES[used[name]][0], observer=observer)
            same = tensors.setdefault(name, spec)
            if not isinstance(same, SharedSpec) and same.dtype != spec.dtype:
                tensors.setdefault(second(name, used[name]), spec)
        fixed = SCHEMES[op.output_scheme][1].get(op.kind)
        if fixed is not None:
            tensors[op.output] = fixed
    return Annotation(operators, tensors)


def _is_float(var: relax.Var) -> bool:
    return isinstance(var.ty, relax.TensorType) and str(var.ty.dtype) == "float32"
