"""A quantized model simulated in float, where everything that is quantized can be switched off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import INTEGER_RANGE, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import group
from tvm_qplugin.passes.plan import REASONS

WEIGHT = "weight"


@dataclass(frozen=True)
class Switch:
    """What is quantized: the constants of the operator that puts out ``name``, or that tensor.

    ``kind`` is "weight", or the dtype of the tensor.
    """

    kind: str
    name: str


@tvm.transform.module_pass(opt_level=0, name="SwitchQuantization")
@dataclass(frozen=True)
class SwitchQuantization:
    """Simulate ``quantized`` in float, each part of it as far as a parameter says.

    In: the canonical float module that ``quantized``, a QDQ module with float inputs, was made from. Out:
    ``main`` takes one more parameter, float32 [switches]: 1 rounds the constants of an operator or a tensor
    to their grids, 0 leaves them alone; the order is that of ``Quantized.switches``. It returns a flat
    tuple: the outputs, then the tensors ``names`` as their integer readers see them.
    """

    quantized: IRModule
    names: tuple[str, ...] = ()

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        func = ir.main_function(mod)
        known = Quantized(self.quantized, func)
        number = relax.Var("switches", relax.TensorType((len(known.switches),), "float32"))
        with ir.Emitter(mod, [*func.params, number]) as out:
            work = _Switching(func, known, number, out)
            work.run()
            return out.finish([*work.outputs(), *map(work.seen, self.names)], True)


class Quantized:
    """A QDQ module read by the names of the float function it was made from."""

    def __init__(self, quantized: IRModule, func: relax.Function) -> None:
        self.func = func
        target = ir.main_function(quantized)
        self._defined = ir.definitions(target)
        self.calls = {var.name: value for var, value in self._defined.items()}
        self._names = {var.name for var in (*func.params, *ir.definitions(func))}
        self.outputs = [self.source(var) for var in ir.output_vars(target)]
        self.kept = set(json.loads(str((target.attrs or {}).get(REASONS, "{}"))))
        same = [(p.name, ir.spec_of(p)) for p in target.params] == [
            (p.name, ir.spec_of(p)) for p in func.params
        ]
        if not same:
            raise ModelError(
                "the quantized module was not made of this float module, or has integer inputs: quantize it "
                "with io='float'"
            )

    @cached_property
    def grids(self) -> dict[str, dict[str, QuantParams]]:
        """The parameters of quantized tensors, by name and dtype."""
        found: dict[str, dict[str, QuantParams]] = {}
        for var, value in self._defined.items():
            params = ir.qparams_of(value) if ir.op_name(value) == "relax.dequantize" else None
            name, dtype = self.source(var)
            if params is not None and params.axis is None and dtype == params.dtype:
                found.setdefault(name, {})[dtype] = params
        return found

    @cached_property
    def switches(self) -> list[Switch]:
        """Everything that can be switched, in order of execution."""
        owner = owners(self.func)
        names = [param.name for param in self.func.params]
        found = [Switch(dtype, name) for name in names for dtype in self.grids.get(name, ())]
        for var, value in ir.bindings(self.func):
            if isinstance(value, Call) and self.rounds(var.name):
                found.append(Switch(WEIGHT, owner.get(var.name, var.name)))
            found += [Switch(dtype, var.name) for dtype in self.grids.get(var.name, ())]
        return list(dict.fromkeys(found))

    @cached_property
    def visible(self) -> dict[str, relax.Var]:
        """What stands for a tensor of the float function: its integers as real numbers if it has any."""
        found = {var.name: var for var in self._defined}
        for var in self._defined:
            name, dtype = self.source(var)
            if dtype and name not in self.kept and self._first(var):
                found[name] = var
        return found

    def _first(self, var: relax.Var) -> bool:
        """Whether a dequantized tensor was quantized once."""
        return not self.source(self._defined[self._defined[var].args[0]].args[0])[1]

    def rounds(self, name: str) -> bool:
        """Whether a binding reads quantized constants."""
        return any(self.constant(arg) is not None for arg in self._arguments(name))

    def _arguments(self, name: str) -> Iterator[relax.Expr]:
        """What a binding reads, through bindings that the float function does not have."""
        value = self.calls.get(name)
        for arg in value.args if isinstance(value, Call) else ():
            for used in arg.fields if isinstance(arg, relax.Tuple) else (arg,):
                if isinstance(used, relax.Var) and self.constant(used) is None and not self.known(used):
                    yield from self._arguments(used.name)
                else:
                    yield used

    def known(self, var: relax.Var) -> bool:
        """Whether the float function has the tensor behind a variable."""
        return self.source(var)[0] in self._names

    def constant(self, arg: relax.Expr) -> relax.Expr | None:
        """A quantized constant as real numbers; None for anything else."""
        value: Any = self._defined.get(arg) if isinstance(arg, relax.Var) else None
        if ir.op_name(value) != "relax.dequantize":
            return None
        array, params = ir.const_value(value.args[0]), ir.qparams_of(value)
        return None if array is None or params is None else ir.const(params.dequantize(array), "float32")

    def source(self, var: relax.Var) -> tuple[str, str]:
        """The float tensor behind a variable, and the narrowest dtype that it was rounded to ("": none)."""
        dtypes = []
        while (inner := self._pair(var)) is not None:
            dtypes.append(str(self._defined[var].args[0].ty.dtype))
            var = inner
        return var.name, min(dtypes, key=lambda dtype: np.dtype(dtype).itemsize, default="")

    def _pair(self, var: relax.Var) -> relax.Var | None:
        """What is quantized and dequantized at once."""
        value: Any = self._defined.get(var)
        if ir.op_name(value) != "relax.dequantize" or not isinstance(value.args[0], relax.Var):
            return None
        inner: Any = self._defined.get(value.args[0])
        pair = ir.op_name(inner) == "relax.quantize" and isinstance(inner.args[0], relax.Var)
        return inner.args[0] if pair else None

    def reads(self, name: str) -> dict[str, str]:
        """Which tensors a binding reads, and as which dtype."""
        value = self.calls.get(name)
        found = [value.tuple_value] if isinstance(value, relax.TupleGetItem) else self._arguments(name)
        return dict(self.source(var) for var in found if isinstance(var, relax.Var))


def owners(func: relax.Function) -> dict[str, str]:
    """The operator that a binding belongs to, by the name of its output."""
    return {member: op.output for op in group(func) for member in op.members}


class _Switching:
    """State of one run: ``raw`` values, and ``rounded`` ones by dtype, as integer readers see them."""

    def __init__(self, func: relax.Function, known: Quantized, number: relax.Var, out: ir.Emitter) -> None:
        self.func, self.known, self.number, self.out = func, known, number, out
        self.index = {switch: i for i, switch in enumerate(known.switches)}
        self.owner = owners(func)
        self.raw: dict[relax.Var, relax.Expr] = {}
        self.rounded: dict[relax.Var, dict[str, relax.Expr]] = {}
        self.by_name: dict[str, relax.Var] = {}

    def run(self) -> None:
        for param in self.func.params:
            self._note(param, param)
        for var, value in ir.bindings(self.func):
            if not isinstance(value, relax.Var | relax.Tuple):
                self._note(var, self._value(var, value))

    def seen(self, name: str) -> relax.Expr:
        """A tensor as its producer leaves it, or as its readers see it where that is float."""
        var = self.by_name[name]
        return next(iter(self.rounded[var].values()), self.raw[var])

    def outputs(self) -> list[relax.Expr]:
        """What the quantized module puts out."""
        pairs = zip(ir.output_vars(self.func), self.known.outputs, strict=True)
        return [self._read(var, dtype) for var, (_, dtype) in pairs]

    def _note(self, var: relax.Var, value: relax.Expr) -> None:
        self.raw[var], self.by_name[var.name], self.rounded[var] = value, var, {}
        for dtype, grid in self.known.grids.get(var.name, {}).items():
            rounded = self.out.emit(_rounded(value, grid), f"{var.name}_rounded")
            self.rounded[var][dtype] = self._blend(Switch(dtype, var.name), value, rounded, var.name)

    def _read(self, var: relax.Var, dtype: str) -> relax.Expr:
        return self.rounded[var].get(dtype, self.raw[var])

    def _value(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        reads = self.known.reads(var.name)
        env = {used: self._read(used, reads.get(used.name, "")) for used in ir.variables(value)}
        plain = self.out.emit(ir.retyped(value, env), var.name)
        if not self.known.rounds(var.name) or not isinstance(value, Call):
            return plain
        other = self._rebuilt(var.name)
        return self._blend(Switch(WEIGHT, self.owner.get(var.name, var.name)), plain, other, var.name)

    def _rebuilt(self, name: str) -> relax.Expr:
        """A binding of the quantized module, with its constants as real numbers."""
        value = self.known.calls[name]
        args = [self._argument(arg) for arg in value.args]
        return self.out.emit(Call(value.op, args, value.attrs, value.ty_args), f"{name}_rounded")

    def _argument(self, arg: relax.Expr) -> relax.Expr:
        constant = self.known.constant(arg)
        if constant is not None or not isinstance(arg, relax.Var):
            return arg if constant is None else constant
        name, dtype = self.known.source(arg)
        return self._read(self.by_name[name], dtype) if self.known.known(arg) else self._rebuilt(arg.name)

    def _blend(self, switch: Switch, plain: relax.Expr, rounded: relax.Expr, name: str) -> relax.Expr:
        """``plain`` where the switch is 0, ``rounded`` where it is 1."""
        op, i = relax.op, self.index[switch]
        weight = self.out.emit(op.strided_slice(self.number, [0], [i], [i + 1]), f"{name}_switch")
        change = self.out.emit(op.multiply(weight, op.subtract(rounded, plain)), f"{name}_change")
        return self.out.emit(op.add(plain, change), f"{name}_switched")


def _rounded(value: relax.Expr, grid: QuantParams) -> relax.Expr:
    """``QuantParams.fake_quant`` in float32."""
    lo, hi = (float(edge - int(grid.zero_point)) for edge in INTEGER_RANGE[grid.dtype])
    scale = ir.const(grid.scale, "float32")
    return relax.op.multiply(relax.op.clip(relax.op.round(relax.op.divide(value, scale)), lo, hi), scale)
