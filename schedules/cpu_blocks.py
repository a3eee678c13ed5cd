"""What a block of a PrimFunc does with memory: the facts that the generic CPU schedule decides by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm_ffi
from tvm import s_tir, sym
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_triple, target_has_features

SPATIAL, REDUCTION = 0, 2
COMPARISONS = ("LE", "LT")
BRANCHES = frozenset({"prim.if_then_else"})
CHEAP = frozenset({"prim.likely"})


@dataclass(frozen=True)
class Load:
    """A read of a buffer: its element strides along the block's axes; None where it is not affine."""

    shape: tuple[int, ...]
    strides: tuple[int | None, ...]


@dataclass(frozen=True)
class Block:
    """A block and what is known about it; extents, strides and ``kinds`` go by axis of the block.

    ``branches``: it chooses between values; ``cuts``: where along an axis such a choice changes;
    ``heavy``: an element costs more than a few integer operations.
    """

    rv: Any
    name: str
    extents: tuple[int, ...]
    kinds: tuple[int, ...]
    loads: tuple[Load, ...]
    store: Load
    branches: bool
    heavy: bool
    cuts: Mapping[int, tuple[int, ...]]
    dtype: str

    @property
    def work(self) -> int:
        """Number of iterations."""
        total = 1
        for extent in self.extents:
            total *= extent
        return total

    @property
    def spatial(self) -> list[int]:
        """Positions of the data-parallel axes."""
        return [i for i, kind in enumerate(self.kinds) if kind == SPATIAL]

    @property
    def reduction(self) -> list[int]:
        """Positions of the reduction axes."""
        return [i for i, kind in enumerate(self.kinds) if kind == REDUCTION]

    def permuted(self, order: Sequence[int]) -> Block:
        """The same block with its axes in another order; it must have no cuts."""

        def moved(load: Load) -> Load:
            return replace(load, strides=tuple(load.strides[i] for i in order))

        return replace(
            self,
            extents=tuple(self.extents[i] for i in order),
            kinds=tuple(self.kinds[i] for i in order),
            loads=tuple(moved(load) for load in self.loads),
            store=moved(self.store),
        )

    @property
    def gathers(self) -> bool:
        """Whether an address depends on data."""
        return any(stride is None for load in self.loads for stride in load.strides)


def blocks(sch: s_tir.Schedule) -> list[Block]:
    """All blocks below the root, in order."""
    return [describe(sch, rv) for rv in sch.get_child_blocks(sch.get_sblock("root"))]


def describe(sch: s_tir.Schedule, rv: Any) -> Block:
    """Look at one block; ValueError if it is not a single store with static extents."""
    block = sch.get(rv)
    if type(block.body).__name__ != "BufferStore":
        raise ValueError(f"block {block.name_hint} is not a single store")
    axes = [it.var for it in block.iter_vars]
    loads: list[Load] = []
    calls: set[str] = set()
    cuts: dict[int, set[int]] = {}

    def visit(node: Any) -> None:
        kind = type(node).__name__
        if kind in COMPARISONS:
            _note_cut(node, axes, cuts)
        if kind == "TensorLoad" and not node.source.same_as(block.body.buffer):
            loads.append(_access(node.source, node.indices, axes))
        elif kind == "Call":
            calls.add(str(getattr(node.op, "name", "?")))
        elif kind in ("Select", "Div"):
            calls.add(kind)

    tvm_ffi.structural_walk(block.body.value, visit)
    return Block(
        rv=rv,
        name=str(block.name_hint),
        extents=tuple(int(it.dom.extent) for it in block.iter_vars),
        kinds=tuple(int(it.iter_type) for it in block.iter_vars),
        loads=tuple(loads),
        store=_access(block.body.buffer, block.body.indices, axes),
        branches=bool(calls & BRANCHES) or "Select" in calls,
        heavy=bool(calls - BRANCHES - CHEAP - {"Select"}),
        cuts={axis: tuple(sorted(at)) for axis, at in cuts.items()},
        dtype=str(block.body.buffer.dtype),
    )


def _note_cut(node: Any, axes: Sequence[Any], cuts: dict[int, set[int]]) -> None:
    """Record ``constant <= axis`` and ``axis < constant``."""
    flipped = type(node).__name__ == "LE"
    constant, var = (node.a, node.b) if flipped else (node.b, node.a)
    at = getattr(constant, "value", None)
    axis = next((i for i, v in enumerate(axes) if v.same_as(var)), None)
    if axis is not None and isinstance(at, int):
        cuts.setdefault(axis, set()).add(at)


def _access(buffer: Any, indices: Sequence[Any], axes: Sequence[Any]) -> Load:
    shape = tuple(int(e) for e in buffer.shape)
    strides: list[int | None] = [0] * len(axes)
    scale = 1
    for extent, index in reversed(list(zip(shape, indices, strict=True))):
        coefficients = sym.detect_linear_equation(index, list(axes))
        for i, axis in enumerate(axes):
            step = _step(coefficients, i) if coefficients else (None if _uses(index, axis) else 0)
            known = strides[i]
            strides[i] = None if step is None or known is None else known + step * scale
        scale *= extent
    return Load(shape, tuple(strides))


def _step(coefficients: Sequence[Any], i: int) -> int | None:
    value = getattr(coefficients[i], "value", coefficients[i])
    return int(value) if isinstance(value, int) else None


def _uses(expr: Any, var: Any) -> bool:
    found = []
    tvm_ffi.structural_walk(expr, lambda node: found.append(1) if var.same_as(node) else None)
    return bool(found)


def architecture(target: Target) -> str:
    """``x86_64``, ``aarch64``, ...: of the triple, or of this machine where the target has none."""
    triple = str(target.attrs.get("mtriple", "")) or str(llvm_get_system_triple())
    return triple.split("-")[0]


def widens_halves(target: Target) -> bool:
    """Whether the target has an instruction from float16 to float32; of x86 not every one has."""
    return "x86" not in architecture(target) or bool(target_has_features(["f16c"], target))


def vector_bytes(target: Target) -> int:
    """Width of a vector register: 64 with AVX-512, 32 with AVX2, else 16."""
    for features, width in ((["avx512f", "avx512bw"], 64), (["avx2"], 32)):
        if target.kind.name == "llvm" and target_has_features(features, target):
            return width
    return 16


def cores(target: Target) -> int:
    """Threads that a parallel loop can use; 2 where the target does not say."""
    return int(target.attrs.get("num-cores", 2))
