"""Kernels whose buffers start where their tensors do."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.ir.transform import PassContext


@tvm.transform.module_pass(opt_level=0, name="PlainOffsets")
@dataclass(frozen=True)
class PlainOffsets:
    """Give parameters without a known offset the offset 0, as all tensors of the plugin have it.

    In: PrimFuncs, some with symbolic offsets, which TVM's sorting and scattering have and which do not
    survive fusion. Out: the same functions with buffers of offset 0.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Visit every PrimFunc."""
        out = tvm.IRModule(dict(mod.functions_items()), attrs=mod.attrs)
        for var, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc):
                out[var] = _plain(func)
        return out


def _plain(func: tirx.PrimFunc) -> tirx.PrimFunc:
    plain = {
        param: tirx.decl_buffer(param.shape, str(param.dtype), param.name)
        for param in func.params
        if isinstance(getattr(param, "elem_offset", None), tirx.Var)
    }
    return func.specialize(plain) if plain else func
