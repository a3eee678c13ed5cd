"""Which kernels of x86 are worth having with halos around their tensors."""

from __future__ import annotations

import tvm

from tvm_qplugin.core.attrs import KernelCall
from tvm_qplugin.schedules import x86_add, x86_conv, x86_depthwise, x86_pool

MIN_COLUMNS = 14  # a convolution with a halo behind it cannot take pixels of two rows at once


def serves(call: KernelCall, target: tvm.target.Target) -> bool:
    """Whether a call with ``in_halo``, ``out_halo``, ``a_halo`` or ``b_halo`` has a kernel that is fast."""
    if call.name in ("qconv2d", "qconv2d_add"):
        if x86_depthwise.plan(call, target) is not None:
            return True
        halo = call.params.get("out_halo") or (0, 0, 0, 0)
        wide = call.out.shape[2] - halo[1] - halo[3] >= MIN_COLUMNS
        return (wide or not any(halo)) and x86_conv.plan(call, target) is not None
    return any(rule(call, target) is not None for rule in (x86_add.rule, x86_pool.rule))
