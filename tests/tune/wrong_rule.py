"""A rule for tests whose settings are not all right: some kernels are wrong, some crash the worker.

Worker processes import it by name.
"""

import os
from collections.abc import Callable
from typing import Any

from tvm import te

from tvm_qplugin.core.attrs import Implementation, KernelCall
from tvm_qplugin.core.tunable import Knobs
from tvm_qplugin.schedules.x86_tunable import TileKnobs
from tvm_qplugin.schedules.x86_tunable import conv as right


def conv(call: KernelCall, target: Any) -> Any:
    found = right(call, target)
    return _Wrong(found.plan) if isinstance(found, TileKnobs) else None


class _Wrong(TileKnobs):
    def implement(self, knobs: Knobs) -> Implementation | None:
        made = super().implement(knobs)
        if made is None or knobs == self.default():
            return made
        if knobs == self.suggestions()[1]:
            os._exit(3)
        return Implementation(_zeros(self.plan.call, made.args), made.args) if is_wrong(knobs) else made


def is_wrong(knobs: Knobs) -> bool:
    """These write zeros, faster than any real kernel."""
    return knobs["order"] == "mo"


def _zeros(call: KernelCall, args: tuple[Any, ...]) -> Any:
    source = te.placeholder(call.args[0].shape, call.args[0].dtype, name="x")
    packed = te.placeholder(args[1].shape, str(args[1].dtype), name="p")
    zero: Callable[..., Any] = lambda *_: te.const(0, call.out.dtype)  # noqa: E731
    out = te.compute(call.out.shape, zero, name="zeros")
    return te.create_prim_func([source, packed, out])
