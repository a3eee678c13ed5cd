"""Give a model batch 1, which is what small devices run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.passes.canonicalize import IO
from tvm_qplugin.passes.rebuild import Rebuilder, op_name, rebuild_main, shape_of, variables_in

Expr = Any
Var = Any
ALONG = ("nn.softmax", "nn.log_softmax", "cumsum", "cumprod")
"""Operators that mix what lies along an axis and keep its extent."""


@tvm.transform.module_pass(opt_level=0, name="FixBatch")
@dataclass(frozen=True)
class FixBatch:
    """Run one sample at a time.

    In: a module whose inputs have a batch N in front. Out: the same function of one sample; every
    tensor that depends on an input has its first dimension divided by N. Raises ModelError where
    that cannot be, because the samples of a batch are mixed. With batch 1 nothing changes.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return mod if _batch(mod["main"]) == 1 else rebuild_main(mod, _Fix)


def _batch(func: relax.Function) -> int:
    """The batch of the first input; scalars have 1."""
    shape = shape_of(func.params[0]) if func.params else ()
    return shape[0] if shape else 1


class _Fix(Rebuilder):
    """``batched`` holds the old variables that depend on an input with the batch."""

    def __init__(self, func: relax.Function) -> None:
        """Inputs with the batch in front become inputs of one sample."""
        super().__init__(func)
        self.batch = _batch(func)
        self.batched = {param for param in func.params if shape_of(param)[:1] == (self.batch,)}
        self.known = {p: self._single(p) if p in self.batched else p for p in func.params}

    def visit(self, var: Var, value: Expr) -> None:
        """One binding, whose result must be what it was for one sample."""
        if not any(used in self.batched for used in variables_in(value)):
            return super().visit(var, value)
        self.batched.add(var)
        try:
            self.known[var] = self.emit(self._of_one(self.mapped(value), var), var.name)
            made = self.known[var].ty
        except Exception as error:
            raise self._mixed(var, str(error).strip().splitlines()[-1]) from None
        for before, after in zip(_fields(var.ty), _fields(made), strict=True):
            if tuple(map(int, after.shape)) != self._wanted(var, before.shape):
                raise self._mixed(var, f"{list(before.shape)} would become {list(after.shape)}")
        return None

    def finish(self, outputs: Sequence[Expr]) -> relax.Function:
        """Parameters and the described interface of one sample."""
        func = super().finish(outputs)
        params = [self.known[param] for param in self.func.params]
        func = relax.Function(params, func.body, attrs=func.attrs)
        if not func.attrs or IO not in func.attrs:
            return func
        described = json.loads(str(func.attrs[IO]))
        for side, tensors in (("inputs", params), ("outputs", outputs)):
            for item, tensor in zip(described[side], tensors, strict=True):
                item["shape"] = list(shape_of(tensor))
        return func.with_attr(IO, json.dumps(described))

    def _single(self, param: Var) -> Var:
        return relax.Var(param.name, relax.TensorType((1, *shape_of(param)[1:]), param.ty.dtype))

    def _of_one(self, call: Expr, var: Var) -> Expr:
        if op_name(call) == "reshape":
            return relax.op.reshape(call.args[0], self._wanted(var, var.ty.shape))
        if op_name(call) in ALONG and int(call.attrs.axis) % len(shape_of(call.args[0])) == 0:
            raise ModelError("it works along the batch")
        return call

    def _wanted(self, var: Var, shape: Sequence[Any]) -> tuple[int, ...]:
        first, *rest = (int(extent) for extent in shape) if len(shape) else (0,)
        if first % self.batch or not first:
            raise self._mixed(var, f"its shape is {[int(extent) for extent in shape]}")
        return first // self.batch, *rest

    def _mixed(self, var: Var, why: str) -> ModelError:
        return ModelError(
            f"the model has batch {self.batch}, the device runs 1, and {var.name} mixes the samples of a "
            f"batch ({why}): export the model with batch 1"
        )


def _fields(ty: Any) -> list[Any]:
    return list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
