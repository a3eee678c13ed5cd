"""Which kernel calls a lowered module makes, and which operators of the model each of them computes."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import relax, tirx
from tvm.ir import IRModule

from tvm_qplugin.core.attrs import INSTRUCTION, KERNEL, MERGED, PARAMS, decode_params
from tvm_qplugin.core.manifest import CallInfo
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.kernel_calls import NamedCall, Operators, bytes_of, named_calls

DYNAMIC = ("dconv2d", "ddense", "dmatmul")


def calls_of(lowered: IRModule) -> tuple[CallInfo, ...]:
    """The calls of kernels that the virtual machine will make, in this order.

    ``lowered``: what ``builder.compile_module`` returns; reshapes in it that become views are no calls.
    """
    mod = relax.transform.RewriteDataflowReshape()(lowered)
    func = ir.main_function(mod)
    operators = Operators(func)
    return tuple(_info(mod, call, operators.positions(call.names)) for call in named_calls(func))


def _info(mod: IRModule, call: NamedCall, operators: list[int]) -> CallInfo:
    func = mod[call.value.args[0]]
    attrs: Mapping[str, object] = (func.attrs or {}) if isinstance(func, tirx.PrimFunc) else {}
    kernel = str(attrs[KERNEL]) if KERNEL in attrs else None
    moved = sum(bytes_of(ty) for ty in (*(operand.ty for operand in call.operands), *call.results))
    dtype = decode_params(str(attrs[PARAMS]))["dtype"] if kernel == MERGED else call.dtype
    if kernel in DYNAMIC:  # what they multiply
        dtype = "int8"
    instruction = str(attrs[INSTRUCTION]) if INSTRUCTION in attrs else None
    return CallInfo(call.function, call.names[-1], tuple(operators), kernel, dtype, moved, instruction)
