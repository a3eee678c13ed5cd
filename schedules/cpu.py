"""A schedule for any PrimFunc on any CPU: no tuning, no instruction set, never an error.

It shapes the loops so that LLVM's vectoriser sees contiguous memory, keeps accumulators in registers
and puts parallel loops where a launch pays. Kernels with a rule of their own do not come here.
"""

from __future__ import annotations

import logging

import tvm
from tvm import s_tir, tirx
from tvm.target import Target

from tvm_qplugin.core.attrs import KERNEL
from tvm_qplugin.schedules.cpu_blocks import REDUCTION, Block, blocks, cores, vector_bytes
from tvm_qplugin.schedules.cpu_loops import schedule_reduction, schedule_spatial

SCHEDULED = "tirx.is_scheduled"
UNSCHEDULED = "qplugin.unscheduled"
_LOG = logging.getLogger(__name__)


def schedule_cpu(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """Schedule a PrimFunc of static shapes; what cannot be scheduled stays as it is.

    The result carries ``tirx.is_scheduled``, and ``qplugin.unscheduled`` with the reason where the loops
    were left alone. A function that is already scheduled is returned unchanged.
    """
    if func.attrs and SCHEDULED in func.attrs:
        return func
    try:
        return _scheduled(func, target).with_attr(SCHEDULED, True)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        _LOG.debug("left unscheduled: %s", reason)
        return func.with_attrs({SCHEDULED: True, UNSCHEDULED: reason})


def _scheduled(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    sch = s_tir.Schedule(tvm.IRModule({"main": func}), error_render_level="none")
    _inline(sch)
    if any(block.branches and not block.cuts for block in blocks(sch)):
        sch = s_tir.Schedule(s_tir.transform.StmtSimplify()(sch.mod), error_render_level="none")
    threads, width = cores(target), vector_bytes(target)
    todo = {block.name: block for block in blocks(sch)}
    while todo:
        block = todo.pop(next(iter(todo)))
        if block.reduction:
            epilogue = _epilogue(sch, block, todo)
            schedule_reduction(sch, block, epilogue, threads, width, _may_reorder(func))
        else:
            schedule_spatial(sch, block, threads)
    return sch.mod["main"]


def _may_reorder(func: tirx.PrimFunc) -> bool:
    """Whether float sums may be reordered: not in integer kernels, which equal the oracle exactly."""
    return not str((func.attrs or {}).get(KERNEL, "")).startswith("q")


def _inline(sch: s_tir.Schedule) -> None:
    """Remove intermediate buffers whose elements are cheap to compute where they are used."""
    known = {block.name: block for block in blocks(sch)}
    for name, block in known.items():
        consumers = [known[sch.get(rv).name_hint] for rv in sch.get_consumers(block.rv)]
        if not block.reduction and consumers and _worth_inlining(sch, block, consumers):
            sch.compute_inline(block.rv)
            known.update({c.name: b for c in consumers for b in blocks(sch) if b.name == c.name})
            known[name] = block


def _worth_inlining(sch: s_tir.Schedule, block: Block, consumers: list[Block]) -> bool:
    after_reduction = any(
        int(it.iter_type) == REDUCTION for rv in sch.get_producers(block.rv) for it in sch.get(rv).iter_vars
    )
    if after_reduction and any(c.branches for c in consumers):
        return False
    repeated = len(consumers) > 1 or any(_reuses(c, block) for c in consumers)
    return not (repeated and (block.heavy or block.branches or block.gathers))


def _reuses(consumer: Block, block: Block) -> bool:
    """Whether a consumer reads the same element many times: it broadcasts, or is a kind of product.

    Overlapping windows (pooling) do not count.
    """
    if not consumer.reduction:
        return consumer.work > block.work
    return any(
        load.strides[axis] == 0 and consumer.extents[axis] > 1
        for load in consumer.loads
        for axis in consumer.spatial
    )


def _epilogue(sch: s_tir.Schedule, block: Block, todo: dict[str, Block]) -> Block | None:
    """Take the elementwise block that consumes a reduction, and nothing else, out of ``todo``."""
    consumers = sch.get_consumers(block.rv)
    other = todo.get(str(sch.get(consumers[0]).name_hint)) if len(consumers) == 1 else None
    if other is None or other.reduction or other.branches or len(sch.get_producers(other.rv)) > 1:
        return None
    if other.extents != tuple(block.extents[i] for i in block.spatial):
        return None
    return todo.pop(other.name)
