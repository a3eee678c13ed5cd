"""Kernels that are in a QDQ module already, as importers put them there: they stay what they are."""

from __future__ import annotations

import math

import numpy as np
from tvm.ir import Call, IRModule

from tvm_qplugin.core.attrs import KernelCall
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.passes.plan import Plan, Source
from tvm_qplugin.passes.select_kernels import kernel_of


def tagged_plan(mod: IRModule, call: Call) -> Plan | None:
    """The plan of a tagged kernel of one operand and constants; None for any other function.

    Its parameters name the grids: ``in_scale``, ``in_zp``, ``out_scale``, ``out_zp``. Operand and result keep
    the dtypes of the kernel, whatever integers are stored as around it.
    """
    kernel = kernel_of(mod, call)
    if kernel is None or not {"in_scale", "out_scale"} <= set(kernel.params):
        return None
    if len(kernel.constants) != len(kernel.args) - 1 or 0 in kernel.constants:
        return None
    grid = _grid(kernel, "in", kernel.args[0].dtype)
    constants = tuple(kernel.constants.values())
    weights = sum(array.size for array in constants if array.dtype == "int8")
    return Plan(
        kernel.name.removeprefix("q"),
        kernel.out,
        kernel.name,
        kernel.params,
        (Source(call.args[1].fields[0], grid, grid),),
        (),
        constants,
        macs=math.prod(kernel.out.shape[:-1]) * weights,
        result=_grid(kernel, "out", kernel.out.dtype),
    )


def _grid(kernel: KernelCall, side: str, dtype: str) -> QuantParams:
    return QuantParams.of(np.float32(kernel.params[f"{side}_scale"]), kernel.params[f"{side}_zp"], dtype)
