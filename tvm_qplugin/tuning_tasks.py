"""The tasks of a model: its kernel calls that have knobs, calls of the same shape taken together."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import tvm
from tvm.ir import IRModule

from tvm_qplugin.core.attrs import KernelCall
from tvm_qplugin.core.errors import InputError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.tunable import Tunable, macs_of, task_of
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.select_kernels import kernel_of
from tvm_qplugin.pipeline import kernel_passes
from tvm_qplugin.targets import tunables_of, tvm_target


@dataclass(frozen=True)
class TuningTask:
    """Calls that share records. ``key``: see ``tunable.task_of``; ``layers``: the tensors that they make.

    ``rule``: ``module:function`` of the profile that makes ``tunable`` of ``call``; ``macs``: of one call.
    """

    key: str
    label: str
    layers: tuple[str, ...]
    rule: str
    call: KernelCall
    tunable: Tunable
    macs: int

    @property
    def work(self) -> int:
        """Multiply-adds of all its calls."""
        return self.macs * len(self.layers)

    def matches(self, pattern: re.Pattern[str]) -> bool:
        """Whether a pattern occurs in the label or in the name of a layer."""
        return any(pattern.search(text) for text in (self.label, *self.layers))


def tasks_of(module: IRModule, profile: TargetProfile, only: str | None = None) -> list[TuningTask]:
    """The tasks of a float or QDQ module, that of most work first; ``only``: a pattern they must match.

    Raises InputError for a pattern that is no regular expression or fits no task.
    """
    target = tvm_target(profile)
    with target:
        lowered = tvm.transform.Sequential(kernel_passes(module, profile, target))(module)
        found: dict[str, TuningTask] = {}
        for var, value in ir.bindings(ir.main_function(lowered)):
            call = kernel_of(lowered, value)
            task = None if call is None else task_for(call, var.name, profile, target)
            if task is not None:
                known = found.get(task.key)
                found[task.key] = task if known is None else replace(known, layers=(*known.layers, var.name))
    tasks = sorted(found.values(), key=lambda task: -task.work)
    return tasks if only is None else _matching(tasks, only)


def task_for(
    call: KernelCall, name: str, profile: TargetProfile, target: tvm.target.Target
) -> TuningTask | None:
    """The task of one call; None if no rule with knobs serves it."""
    for rule, make in zip(profile.tunables, tunables_of(profile), strict=True):
        tunable = make(call, target)
        if tunable is not None and tunable.implement(tunable.default()) is not None:
            key = task_of(call, tunable.isa)
            return TuningTask(key, label_of(call), (name,), rule, call, tunable, macs_of(call))
    return None


def label_of(call: KernelCall) -> str:
    """A call in one line: ``qconv2d 14x14x96 -> 14x14x576, 1x1``."""
    source, out = ("x".join(map(str, spec.shape[1:])) for spec in (call.args[0], call.out))
    if len(call.args[1].shape) != 4:
        return f"{call.name} {source} -> {out}"
    kh, kw = call.args[1].shape[1:3]
    strides, groups = call.params["strides"], call.params.get("groups", 1)
    more = f", stride {strides[0]}" if max(strides) > 1 else ""
    more += f", {groups} groups" if groups > 1 else ""
    return f"{call.name} {source} -> {out}, {kh}x{kw}{more}"


def _matching(tasks: list[TuningTask], only: str) -> list[TuningTask]:
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise InputError(f"only={only!r} is no regular expression ({error})") from None
    found = [task for task in tasks if task.matches(pattern)]
    if not found:
        raise InputError(
            f"only={only!r} fits none of the {len(tasks)} tasks; `tvm-qplugin tune MODEL --list` shows them"
        )
    return found
