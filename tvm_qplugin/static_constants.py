"""Weights inside the library's read-only data: mapped from the file, never copied, shared by processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import BinaryIO

import numpy as np
from tvm import relax, tirx
from tvm.ir import Call, GenericConst, GlobalVar, IRModule

from tvm_qplugin.core.qparams import Array

ALIGNMENT = 64  # bytes; what TVM's own tensors have
SLACK = 64  # bytes behind the last constant: vector loads may reach over the end
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # of DLPack, by numpy's kinds


@dataclass(frozen=True)
class Constant:
    """A tensor at ``offset`` bytes from the start of the library's constants."""

    array: Array
    offset: int

    @property
    def dtype(self) -> tuple[int, int, int]:
        """DLPack's code, bits and lanes."""
        return _CODES[self.array.dtype.kind], 8 * self.array.dtype.itemsize, 1

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements, of a tensor without gaps."""
        shape = self.array.shape
        return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


@dataclass
class Constants:
    """Constants in the order of their numbers; equal ones are kept once.

    ``users``: kernels that are called with numbers, and with how many arguments; ``size``: bytes.
    """

    items: list[Constant] = field(default_factory=list)
    users: dict[str, int] = field(default_factory=dict)
    size: int = 0
    _numbers: dict[tuple[str, tuple[int, ...], bytes], int] = field(default_factory=dict)

    def add(self, array: Array) -> int:
        """The number of a constant."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = str(array.dtype), array.shape, sha256(array.data).digest()
        if key not in self._numbers:
            self._numbers[key] = len(self.items)
            self.items.append(Constant(array, self.size))
            self.size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        return self._numbers[key]

    def write(self, file: BinaryIO) -> None:
        """All constants, each aligned, and the slack."""
        for constant in self.items:
            file.write(constant.array.data)
            file.write(bytes(-constant.array.nbytes % ALIGNMENT))
        file.write(bytes(SLACK))


def lift_constants(mod: IRModule) -> tuple[IRModule, Constants]:
    """Put numbers in the place of the constants that kernels are called with.

    In: what ``executable_passes`` give. Out: its Relax functions, the kernels declared as external, and the
    constants by number. Constants that are no argument of a kernel stay in the executable, and so do those of
    a kernel that is given anything but tensors.
    """
    constants = Constants()
    kernels = {
        var: str(func.attrs["global_symbol"])
        for var, func in mod.functions_items()
        if isinstance(func, tirx.PrimFunc)
    }
    functions = [(var, func) for var, func in mod.functions_items() if isinstance(func, relax.Function)]
    able = _taking_tensors([func for _, func in functions], kernels)
    out = IRModule(dict(mod.functions_items()), attrs=mod.attrs)
    out.update({var: relax.ExternFunc(name) for var, name in kernels.items()})
    out.update({var: _lifted(func, able, constants) for var, func in functions})
    return out, constants


def _calls(func: relax.Function) -> Iterator[Call]:
    for block in func.body.blocks:
        for binding in block.bindings:
            if isinstance(binding, relax.VarBinding) and isinstance(binding.value, Call):
                yield binding.value


def _taking_tensors(
    functions: Sequence[relax.Function], kernels: Mapping[GlobalVar, str]
) -> dict[GlobalVar, str]:
    """The kernels whose arguments are tensors, all of them in all calls: a number can only be a constant."""
    others = {
        call.op
        for func in functions
        for call in _calls(func)
        if not all(isinstance(arg.ty, relax.TensorType) for arg in call.args)
    }
    return {var: name for var, name in kernels.items() if var not in others}


def _lifted(func: relax.Function, able: Mapping[GlobalVar, str], constants: Constants) -> relax.Function:
    def argument(arg: relax.Expr) -> relax.Expr:
        array = arg.value.numpy() if _liftable(arg) else None
        return arg if array is None else relax.prim_value(constants.add(array))

    def rewritten(binding: relax.Binding) -> relax.Binding:
        call = getattr(binding, "value", None)
        if not (isinstance(call, Call) and call.op in able and any(map(_liftable, call.args))):
            return binding
        constants.users[able[call.op]] = len(call.args)
        return relax.VarBinding(binding.var, Call(call.op, [argument(arg) for arg in call.args]))

    blocks = [relax.BindingBlock([rewritten(b) for b in block.bindings]) for block in func.body.blocks]
    body = relax.SeqExpr(blocks, func.body.body)
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)


def _liftable(arg: relax.Expr) -> bool:
    return isinstance(arg, GenericConst) and np.dtype(str(arg.ty.dtype)).kind in _CODES
