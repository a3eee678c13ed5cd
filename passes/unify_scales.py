"""Make tensors that must share scale and zero point do so (union-find over the annotation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm.ir import IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import ANNOTATION
from tvm_qplugin.core.qparams import union_range
from tvm_qplugin.core.spec import SCHEMES, Annotation, FixedSpec, SharedSpec, Spec, second, tensor_of
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.op_kinds import SAME_SCALE
from tvm_qplugin.passes.wide_cells import steps_of

Ranges = Mapping[str, tuple[float, float]]

LOSS = 2.0
"""How much wider than its own the common range of a concatenation may be for a part to join it."""


@tvm.transform.module_pass(opt_level=0, name="UnifyScales")
@dataclass(frozen=True)
class UnifyScales:
    """Unify the scales around pooling, concatenation, resizing and data movement.

    In: an annotated module. Out: the same, where every member of a group but one has a ``SharedSpec``
    that names it. A tensor whose operator fixes its parameters (softmax, sigmoid, tanh) joins a
    concatenation only if all parts agree; otherwise it is requantized there. A tensor of an unrolled cell
    has the scale of those of the other steps: the cell is one, and its kernels and constants are. With
    calibrated ``ranges`` a part that would lose more than one bit of resolution is requantized, too: chains
    of concatenations and slices (ShuffleNet) would otherwise put a whole network on one scale.
    """

    ranges: Ranges | None = None

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite the annotation."""
        func = ir.main_function(mod)
        annotation = unify(Annotation.loads(func.attrs[ANNOTATION]), self.ranges, steps_of(func))
        return ir.with_main_attr(mod, ANNOTATION, annotation.dumps())


def unify(
    annotation: Annotation, ranges: Ranges | None = None, steps: Mapping[str, str] | None = None
) -> Annotation:
    """The annotation with groups of equal parameters resolved; ``steps`` as in ``qplugin.steps``."""
    groups = _Groups(annotation.tensors, ranges or {})
    first: dict[tuple[str, str], str] = {}
    for name, role in (steps or {}).items():
        for grid in (name, *(second(name, scheme) for scheme in SCHEMES)):
            if grid in groups:
                groups.join(first.setdefault((role, groups.dtype(grid)), grid), grid)
    key = annotation.key
    shared = [op for op in annotation.operators.values() if op.integer and op.kind in SAME_SCALE]
    for op in sorted(shared, key=lambda op: len(op.inputs) > 1):
        for name in _members([key(op, used) for used in op.inputs], groups):
            if len(op.inputs) == 1 or groups.fit(op.output, name):
                groups.join(op.output, name)
    return annotation.with_tensors(groups.specs())


def _members(keys: Sequence[str], groups: _Groups) -> list[str]:
    """The inputs that can share the output's parameters: fixed ones only if all are fixed alike."""
    inputs = [name for name in keys if name in groups]
    fixed = [name for name in inputs if isinstance(groups.spec(name), FixedSpec)]
    alike = len({groups.spec(name) for name in inputs}) == 1
    return inputs if alike or not fixed else [name for name in inputs if name not in fixed]


def _width(both: tuple[float, float]) -> float:
    """The extent of a range with zero in it."""
    return max(both[1], 0.0) - min(both[0], 0.0)


class _Groups:
    """Disjoint sets of tensor names, each with one specification."""

    def __init__(self, tensors: Mapping[str, Spec], ranges: Ranges) -> None:
        self._spec = dict(tensors)
        self._parent = {name: name for name in self._spec}
        self._range = {name: ranges[tensor_of(name)] for name in self._spec if tensor_of(name) in ranges}

    def __contains__(self, name: str) -> bool:
        return name in self._parent

    def find(self, name: str) -> str:
        """The tensor that stands for the whole set."""
        while self._parent[name] != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name

    def spec(self, name: str) -> Spec:
        """The specification of the set."""
        return self._spec[self.find(name)]

    def dtype(self, name: str) -> str:
        """What tensors of the set are stored as."""
        spec = self.spec(name)
        return "" if isinstance(spec, SharedSpec) else spec.dtype

    def fit(self, a: str, b: str) -> bool:
        """Whether neither set would lose more than one bit in the common range (unknown: yes)."""
        known = [self._range.get(self.find(name)) for name in (a, b) if name in self]
        found = [both for both in known if both is not None]
        if len(found) < 2:
            return True
        whole = _width(union_range(found))
        return all(whole <= LOSS * _width(both) for both in found)

    def join(self, a: str, b: str) -> None:
        """Union; a fixed specification prevails."""
        if a not in self or b not in self:
            return
        a, b = self.find(a), self.find(b)
        keep, drop = (b, a) if isinstance(self._spec[b], FixedSpec) else (a, b)
        if keep != drop and self.dtype(keep) == self.dtype(drop):
            self._parent[drop] = keep
            both = [self._range[name] for name in (keep, drop) if name in self._range]
            if both:
                self._range[keep] = union_range(both)

    def specs(self) -> dict[str, Spec]:
        """Every tensor's specification: the set's own for its representative, else shared."""
        roots = {name: self.find(name) for name in self._parent}
        return {name: self._spec[name] if root == name else SharedSpec(root) for name, root in roots.items()}
