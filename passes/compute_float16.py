"""Float16 arithmetic for devices that have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.passes import ir

Expr = Any
HALF = frozenset(
    "relax." + name
    for name in (
        "nn.conv2d matmul add subtract multiply nn.relu clip maximum minimum nn.max_pool2d concat reshape "
        "permute_dims strided_slice"
    ).split()
)
"""Operators that are computed in float16; sums over pixels and functions such as softmax are not."""

LARGEST = float(np.finfo("float16").max)


@tvm.transform.module_pass(opt_level=0, name="ComputeFloat16")
@dataclass(frozen=True)
class ComputeFloat16:
    """Compute the operators in ``HALF`` in float16.

    In: a float module (``ExpandWeights`` comes before). Out: the same with float32 inputs and outputs. A
    tensor is cast once, where it is first needed in the other precision; constants are rounded. What has
    a constant beyond +-65504 stays in float32, and so do products of two tensors that are no layers.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        func = ir.main_function(mod)
        with ir.Emitter(mod) as out:
            work = _Halving(out)
            for var, value in ir.bindings(func):
                work.visit(var, value)
            outputs = [work.seen(var, "float32") for var in ir.output_vars(func)]
            return out.finish(outputs, ir.returns_tuple(func))


class _Halving:
    """Rewrites bindings; ``known`` holds each tensor by variable and dtype, as far as it was needed."""

    def __init__(self, out: ir.Emitter) -> None:
        self.out = out
        self.known: dict[tuple[relax.Var, str], Expr] = {}

    def visit(self, var: relax.Var, value: Expr) -> None:
        """One binding, in the precision that it is computed in."""
        if isinstance(value, relax.Var | relax.Tuple):
            self.known[var, "float32"] = self._read(value, "float32")
            return
        dtype = "float16" if _in_half(value) else "float32"
        if dtype == "float32":
            used = {v: self.seen(v, dtype) for v in ir.variables(value)}
            self.known[var, dtype] = self.out.emit(ir.substitute(value, used), var.name)
            return
        args = [self._read(arg, dtype) for arg in value.args]
        self.known[var, dtype] = self.out.emit(Call(value.op, args, value.attrs, value.ty_args), var.name)

    def seen(self, var: relax.Var, dtype: str) -> Expr:
        """A tensor in a precision; a cast is emitted once."""
        if (var, dtype) not in self.known:
            other = self.known.get((var, "float16" if dtype == "float32" else "float32"), var)
            same = dtype == "float32" and other is var
            cast = relax.op.astype(other, dtype)
            self.known[var, dtype] = var if same else self.out.emit(cast, f"{var.name}_{dtype}")
        return self.known[var, dtype]

    def _read(self, arg: Expr, dtype: str) -> Expr:
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([self._read(field, dtype) for field in arg.fields])
        if isinstance(arg, relax.Var) and isinstance(arg.ty, relax.TensorType):
            return self.seen(arg, dtype)
        if isinstance(arg, GenericConst) and dtype == "float16":
            return ir.const(arg.value.numpy().astype(dtype))
        return arg


def _in_half(value: Expr) -> bool:
    """Whether it is computed in float16: of float32 tensors, with constants that fit."""
    if ir.op_name(value) not in HALF or not isinstance(value.ty, relax.TensorType):
        return False
    if any(str(getattr(v.ty, "dtype", "")) != "float32" for v in ir.variables(value)):
        return False
    constants = [array for arg in _operands(value) if (array := ir.const_value(arg)) is not None]
    if ir.op_name(value) == "relax.matmul" and not constants:
        return False
    return all(c.dtype == "float32" and not np.abs(c).max(initial=0) > LARGEST for c in constants)


def _operands(value: Call) -> list[Expr]:
    fields = [arg.fields if isinstance(arg, relax.Tuple) else [arg] for arg in value.args]
    return [arg for group in fields for arg in group]
