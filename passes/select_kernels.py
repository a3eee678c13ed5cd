"""Give every tagged kernel the implementation of the first schedule rule that takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import relax, tirx
from tvm.ir import Call, IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import (
    KERNEL,
    PARAMS,
    Implementation,
    KernelCall,
    Params,
    decode_params,
    encode_params,
)
from tvm_qplugin.passes import ir

KernelRule = Callable[[KernelCall, tvm.target.Target], Implementation | None]

GEOMETRY = frozenset(
    "strides padding dilation groups pool axes keepdims axis size method coordinate rounding "
    "pad_width".split()
)
OPAQUE = 8  # relax's OpPatternKind: FuseOps leaves such a function alone


@tvm.transform.module_pass(opt_level=0, name="SelectKernels")
@dataclass(frozen=True)
class SelectKernels:
    """Replace tagged PrimFuncs by a target's own and pack their constants.

    In: ``call_tir`` of kernels tagged with ``qplugin.kernel``. Out: the same calls of scheduled
    PrimFuncs, weights packed as the rule asks. What no rule takes keeps its portable definition.
    """

    rules: tuple[KernelRule, ...]
    target: tvm.target.Target

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite the kernel calls of ``main``."""
        func = ir.main_function(mod)
        env: dict[relax.Var, relax.Expr] = {}
        with ir.Emitter(mod) as out:
            for var, value in ir.bindings(func):
                if isinstance(value, relax.Var | relax.Tuple):
                    env[var] = ir.substitute(value, env)
                    continue
                new = ir.substitute(value, env)
                kernel = kernel_of(mod, value)
                env[var] = out.emit(new if kernel is None else self._select(mod, new, kernel, out), var.name)
            outputs = [env.get(var, var) for var in ir.output_vars(func)]
            return _without_unused(out.finish(outputs, ir.returns_tuple(func)))

    def _select(self, mod: IRModule, call: Call, kernel: KernelCall, out: ir.Emitter) -> Call:
        with self.target:
            found = next(filter(None, (rule(kernel, self.target) for rule in self.rules)), None)
        args = list(call.args[1].fields)
        func = mod[call.args[0]]
        if found is not None:
            args = [args[arg] if isinstance(arg, int) else ir.const(arg) for arg in found.args]
            func = found.func.with_attr(KERNEL, kernel.name).with_attr(
                PARAMS, encode_params(_geometry(kernel))
            )
        func = func.with_attr("op_pattern", OPAQUE).without_attr("global_symbol")
        ty = relax.TensorType(kernel.out.shape, kernel.out.dtype)
        return relax.call_tir(out.bb.add_func(func, kernel.name), args, ty)


def kernel_of(mod: IRModule, value: relax.Expr) -> KernelCall | None:
    """The tagged kernel that a binding calls, with its constant arguments, or None."""
    if ir.op_name(value) != "relax.call_tir":
        return None
    func = mod[value.args[0]]
    if not isinstance(func, tirx.PrimFunc) or KERNEL not in (func.attrs or {}):
        return None
    args = list(value.args[1].fields)
    constants = {i: array for i, arg in enumerate(args) if (array := ir.const_value(arg)) is not None}
    params = decode_params(str(func.attrs[PARAMS]))
    specs = tuple(ir.spec_of(arg) for arg in args)
    return KernelCall(str(func.attrs[KERNEL]), params, specs, ir.spec_of(value), constants)


def _geometry(kernel: KernelCall) -> Params:
    """What the tag of a scheduled kernel keeps: layers that differ in nothing else share one function."""
    return {key: value for key, value in kernel.params.items() if key in GEOMETRY}


def _without_unused(mod: IRModule) -> IRModule:
    return relax.transform.DeadCodeElimination()(mod)
