"""One PrimFunc that runs several scheduled ones, with the tensors between them in memory of its own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from tvm import s_tir, tirx

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.passes.kernel_calls import size_of

Statement = tirx.Stmt
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
) -> tirx.PrimFunc:
    """The function ``(*operands, *results)`` of ``steps`` in order; the other tensors share its memory.

    ``specs``: of every tensor. A kernel that stands twice gets variables of its own each time.
    """
    params = {name: _buffer(specs[name], f"p{i}") for i, name in enumerate((*operands, *results))}
    memory = _Memory(steps, specs, params)
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


def _block(step: Step, memory: Sequence[tirx.Buffer]) -> s_tir.stmt.SBlock:
    """The kernel's body, its arguments declared as views."""
    kernel = s_tir.renew_defs(step.kernel)
    views = [tirx.DeclBuffer(p, data=at.data) for p, at in zip(kernel.params, memory, strict=True)]
    body, own = kernel.body, []
    if isinstance(body, s_tir.stmt.SBlockRealize) and body.block.name_hint == "root":
        body, own = body.block.body, body.block.alloc_buffers
    statements = body.seq if isinstance(body, tirx.SeqStmt) else [body]
    return s_tir.stmt.SBlock([], [], [], step.name, tirx.SeqStmt([*views, *statements]), alloc_buffers=own)


@dataclass
class _Memory:
    """Where tensors lie: ``params``, or slots of one dtype that tensors of different times share."""

    steps: Sequence[Step]
    specs: Mapping[Hashable, TensorSpec]
    params: Mapping[Hashable, tirx.Buffer]
    slots: list[tirx.Buffer] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Give every tensor between kernels a slot, then make the slots as large as their tensors."""
        self._last = {name: i for i, step in enumerate(self.steps) for name in step.tensors}
        self._taken: dict[Hashable, int] = {}
        sizes: list[tuple[str, int]] = []
        free: dict[int, int] = {}
        for i, step in enumerate(self.steps):
            name = step.tensors[-1]
            if name in self.params:
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

    def place(self, name: Hashable) -> tirx.Buffer:
        """The buffer that a tensor is a view of."""
        return self.params[name] if name in self.params else self.slots[self._taken[name]]


def _buffer(spec: TensorSpec, name: str) -> tirx.Buffer:
    return tirx.decl_buffer(spec.shape, spec.dtype, name=name, layout=None)
