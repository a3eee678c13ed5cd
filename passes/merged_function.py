"""One PrimFunc that runs several scheduled ones, with the tensors between them in memory of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tvm import s_tir, tirx

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.passes.kernel_calls import size_of

Statement = tirx.Stmt
Key = TypeVar("Key", bound=Hashable)
SLACK = 64  # bytes behind each tensor: kernels load whole vectors


@dataclass(frozen=True)
class Step:
    """A kernel and the tensors that it is called with, its result last."""

    name: str
    kernel: tirx.PrimFunc
    tensors: tuple[Hashable, ...]


def merged_function(
    steps: Sequence[Step],
    specs: Mapping[Hashable, TensorSpec],
    operands: Sequence[Hashable],
    results: Sequence[Hashable],
    parts: Mapping[Hashable, tuple[Hashable, int]],
) -> tirx.PrimFunc:
    """The function ``(*operands, *results)`` of ``steps`` in order; the other tensors share its memory.

    ``specs``: of every tensor. ``parts``: tensors that lie in an operand or result, from an element on. A
    kernel that stands twice gets variables of its own each time.
    """
    params = {name: _buffer(specs[name], f"p{i}") for i, name in enumerate((*operands, *results))}
    memory = _Memory(steps, specs, params, parts)
    body = [
        s_tir.stmt.SBlockRealize([], True, _block(step, [memory.place(name) for name in step.tensors]))
        for step in steps
    ]
    # TVM 0.27's StorageRewrite does not follow views: in use from the beginning to the end, or it would give
    # this memory to other buffers while a view of it is read.
    uses = [tirx.Evaluate(slot.data) for slot in memory.slots]
    root = s_tir.stmt.SBlock(
        [], [], [], "root", tirx.SeqStmt([*uses, *body, *uses]), alloc_buffers=memory.slots
    )
    function = tirx.PrimFunc(list(params.values()), s_tir.stmt.SBlockRealize([], True, root))
    return function.with_attrs({"s_tir": True, "tirx.noalias": True})


def pack(
    tensors: Mapping[Key, TensorSpec],
) -> tuple[dict[Key, tuple[str, int]], dict[str, TensorSpec]]:
    """Where each tensor begins in the one of its dtype that holds them all, and these; single ones stay."""
    dtypes = Counter(spec.dtype for spec in tensors.values())
    parts: dict[Key, tuple[str, int]] = {}
    sizes: dict[str, int] = {}
    for name, spec in tensors.items():
        if dtypes[spec.dtype] > 1:
            parts[name] = spec.dtype, sizes.get(spec.dtype, 0)
            bytes_taken = -(-spec.size * size_of(spec.dtype) // SLACK) * SLACK + SLACK
            sizes[spec.dtype] = parts[name][1] + bytes_taken // size_of(spec.dtype)
    return parts, {dtype: TensorSpec((size,), dtype) for dtype, size in sizes.items()}


def _block(step: Step, memory: Sequence[tirx.Expr]) -> s_tir.stmt.SBlock:
    """The kernel's body, its arguments declared as views."""
    kernel = s_tir.renew_defs(step.kernel)
    views = [tirx.DeclBuffer(p, data=at) for p, at in zip(kernel.params, memory, strict=True)]
    body, own = kernel.body, []
    if isinstance(body, s_tir.stmt.SBlockRealize) and body.block.name_hint == "root":
        body, own = body.block.body, body.block.alloc_buffers
    statements = body.seq if isinstance(body, tirx.SeqStmt) else [body]
    return s_tir.stmt.SBlock([], [], [], step.name, tirx.SeqStmt([*views, *statements]), alloc_buffers=own)


@dataclass
class _Memory:
    """Where tensors lie: ``params``, ``parts`` of them, or slots that tensors of one dtype share."""

    steps: Sequence[Step]
    specs: Mapping[Hashable, TensorSpec]
    params: Mapping[Hashable, tirx.Buffer]
    parts: Mapping[Hashable, tuple[Hashable, int]]
    slots: list[tirx.Buffer] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Give every tensor between kernels a slot, then make the slots as large as their tensors."""
        self._last = {name: i for i, step in enumerate(self.steps) for name in step.tensors}
        self._taken: dict[Hashable, int] = {}
        sizes: list[tuple[str, int]] = []
        free: dict[int, int] = {}
        for i, step in enumerate(self.steps):
            name = step.tensors[-1]
            if name in self.params or name in self.parts:
                continue
            spec = self.specs[name]
            fits = [s for s, end in free.items() if end < i and sizes[s][0] == spec.dtype]
            slot = min(fits, key=lambda s: abs(sizes[s][1] - spec.size), default=len(sizes))
            if slot == len(sizes):
                sizes.append((spec.dtype, 0))
            sizes[slot] = (spec.dtype, max(sizes[slot][1], spec.size))
            self._taken[name], free[slot] = slot, self._last[name]
        self.slots = [
            _buffer(TensorSpec((size + SLACK // size_of(dtype),), dtype), f"slot{i}")
            for i, (dtype, size) in enumerate(sizes)
        ]

    def place(self, name: Hashable) -> tirx.Expr:
        """The pointer to a tensor."""
        if name in self.parts:
            whole, offset = self.parts[name]
            return tirx.address_of(self.params[whole][offset])
        return (self.params[name] if name in self.params else self.slots[self._taken[name]]).data


def _buffer(spec: TensorSpec, name: str) -> tirx.Buffer:
    return tirx.decl_buffer(spec.shape, spec.dtype, name=name, layout=None)
