"""A generic schedule for every PrimFunc that no rule has scheduled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.ir.transform import PassContext

SCHEDULED = "tirx.is_scheduled"
Scheduler = Callable[[tirx.PrimFunc, tvm.target.Target], tirx.PrimFunc]


@tvm.transform.module_pass(opt_level=0, name="ScheduleRest")
@dataclass(frozen=True)
class ScheduleRest:
    """Schedule float islands and portable kernels.

    In: PrimFuncs after fusion. Out: all of them scheduled (``tirx.is_scheduled``); those that are
    already stay as they are.
    """

    schedule: Scheduler
    target: tvm.target.Target

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Visit every PrimFunc."""
        out = tvm.IRModule(dict(mod.functions_items()), attrs=mod.attrs)
        for var, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and not (func.attrs or {}).get(SCHEDULED, False):
                out[var] = self.schedule(func, self.target)
        return out
