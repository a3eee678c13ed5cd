"""Small kernels that follow each other, made one function: a call costs what a small kernel takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import tvm
from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import CALLS, INSTRUCTION, KERNEL, MERGED, PARAMS, TUNED, encode_params
from tvm_qplugin.core.chain16 import CHAIN
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.kernel_calls import NamedCall, Operators, bytes_of, named_calls
from tvm_qplugin.passes.merged_function import Step, merged_function, pack

SCHEDULED = "tirx.is_scheduled"
MACS = 3_000_000
"""Multiply-adds of a small kernel: 6 us at the peak of one core. A call costs 0.25 us."""

BYTES = 64 * 1024
"""Of the activations that a small kernel reads and writes."""

SHARED, SHARED_MACS = 6, 1_000_000
"""A kernel that more calls than this share stays one, if it takes so long that a call costs little."""

PARTS = 4
"""Of an operand that a chain reads, each of the size of its result: as many as an LSTM has gates."""

KERNELS = 64
"""The most that one function runs: what they share between layers is compiled again for each."""

PACKED = 4096
"""Bytes of a tensor that merged functions pass on with others, in one: to allocate it would take 0.4 us."""


@tvm.transform.module_pass(opt_level=0, name="MergeKernels")
@dataclass(frozen=True)
class MergeKernels:
    """Replace runs of small kernels by one ``call_tir``, whose function holds what lies between them.

    In: ``call_tir`` of scheduled PrimFuncs. Out: the same with fewer calls; a function made of several is
    tagged ``merged``, and ``qplugin.calls`` has one entry for it with all names; small tensors that such
    functions alone read are parts of one. Large kernels, those that many layers share, those of several
    results and those of other operands than tensors stay as they are.
    """

    macs: int = MACS
    bytes: int = BYTES
    kernels: int = KERNELS

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Find the runs, make functions of them, call these."""
        func = ir.main_function(mod)
        calls = {call.var: call for call in named_calls(func)}
        runs = [run for run in self._runs(mod, func, calls) if len(run) > 1]
        return _Merger(mod, func, calls).replace(runs) if runs else mod

    def _runs(
        self, mod: IRModule, func: relax.Function, calls: dict[relax.Var, NamedCall]
    ) -> Iterator[list[NamedCall]]:
        """Calls of small kernels with no other binding between them."""
        operators, run = Operators(func), list[NamedCall]()
        uses = Counter(call.function for call in calls.values())
        for var, _ in ir.bindings(func):
            call = calls.get(var)
            joins = call is not None and self._small(mod, call, operators)
            if call is not None and uses[call.function] > SHARED:
                joins = joins and operators.macs(call.names) <= SHARED_MACS
            if not joins or len(run) == self.kernels:
                yield run
                run = []
            if call is not None and joins:
                run.append(call)
        yield run

    def _small(self, mod: IRModule, call: NamedCall, operators: Operators) -> bool:
        func = mod[call.value.args[0]]
        types = [x.ty for x in call.operands if isinstance(x, relax.Var)]
        if len(call.value.args) > 2 or not isinstance(func, tirx.PrimFunc):
            return False
        if len(call.results) > 1 or not all(isinstance(ty, relax.TensorType) for ty in types):
            return False
        return _moved(func, types, call.results) <= self.bytes and operators.macs(call.names) <= self.macs


def _moved(
    func: tirx.PrimFunc, operands: Sequence[relax.TensorType], results: Sequence[relax.TensorType]
) -> int:
    """Bytes of the activations; a chain reads parts of its operands, which may hold all steps of a cell."""
    written = sum(map(bytes_of, results))
    most = PARTS * written if str((func.attrs or {}).get(KERNEL)) == CHAIN else None
    read = (bytes_of(ty) for ty in operands)
    return written + sum(size if most is None else min(size, most) for size in read)


def _operands(run: Sequence[NamedCall]) -> list[list[relax.Expr]]:
    """What each call reads; of equal constants, the first stands for all: an operand costs 0.1 us."""
    first: dict[tuple[str, tuple[int, ...], bytes], relax.Expr] = {}

    def canonical(arg: relax.Expr) -> relax.Expr:
        value = ir.const_value(arg)
        return (
            arg if value is None else first.setdefault((str(arg.ty.dtype), value.shape, value.tobytes()), arg)
        )

    return [[canonical(arg) for arg in call.operands] for call in run]


@dataclass
class _Merger:
    """Writes the new ``main``."""

    mod: IRModule
    func: relax.Function
    calls: dict[relax.Var, NamedCall]
    env: dict[relax.Var, relax.Expr] = field(default_factory=dict)
    records: list[tuple[str, list[str]]] = field(default_factory=list)
    parts: dict[relax.Var, tuple[relax.Var, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find who reads what."""
        self._users, self._outputs = ir.consumers(self.func), set(ir.output_vars(self.func))

    def replace(self, runs: Sequence[list[NamedCall]]) -> IRModule:
        """One call for each run, in the place of its last member; the others stay."""
        last = {run[-1].var: run for run in runs}
        self._inside = {call.var for run in runs for call in run}
        with ir.Emitter(self.mod) as out:
            for var, value in ir.bindings(self.func):
                if var in last:
                    self._merge(out, last[var])
                elif var not in self._inside:
                    self._keep(out, var, value)
            outputs = [self.env.get(var, var) for var in ir.output_vars(self.func)]
            merged = out.finish(outputs, ir.returns_tuple(self.func), **{CALLS: json.dumps(self.records)})
        return relax.transform.DeadCodeElimination()(merged)

    def _keep(self, out: ir.Emitter, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.Var | relax.Tuple):
            self.env[var] = ir.substitute(value, self.env)
            return
        self.env[var] = out.emit(ir.substitute(value, self.env), var.name)
        if var in self.calls:
            self.records.append((self.calls[var].function, list(self.calls[var].names)))

    def _merge(self, out: ir.Emitter, run: list[NamedCall]) -> None:
        made, read = {call.var for call in run}, _operands(run)
        escaping = self._escaping(run)
        own, packs = pack({var: ir.spec_of(var) for var in escaping if self._passed_on(var)})
        parts = own | {arg: self.parts[arg] for args in read for arg in args if arg in self.parts}
        outer = [arg for args in read for arg in args if arg not in made]
        operands = list(dict.fromkeys(parts[arg][0] if arg in parts else arg for arg in outer))
        results = [*(var for var in escaping if var not in own), *packs]
        specs = {x: ir.spec_of(x) for x in (*operands, *made)} | packs
        steps = [
            Step(call.function, self.mod[call.value.args[0]], (*args, call.var))
            for call, args in zip(run, read, strict=True)
        ]
        function = merged_function(steps, specs, operands, results, parts).with_attrs(self._tags(run))
        gvar = out.bb.add_func(function, MERGED)
        self.records.append((gvar.name_hint, [name for call in run for name in call.names]))
        args = [ir.substitute(operand, self.env) for operand in operands]
        types = [relax.TensorType(specs[name].shape, specs[name].dtype) for name in results]
        value = out.emit(relax.call_tir(gvar, args, types if len(types) > 1 else types[0]), escaping[-1].name)
        for i, name in enumerate(results):
            var = value if len(results) == 1 else out.emit(relax.TupleGetItem(value, i), _name(name))
            self.env[name] = var
            self.parts |= {part: (var, offset) for part, (packed, offset) in own.items() if packed == name}

    def _escaping(self, run: list[NamedCall]) -> list[relax.Var]:
        """The results that are read outside of the run."""
        inside = {call.var for call in run}
        return [
            call.var
            for call in run
            if call.var in self._outputs or any(user not in inside for user in self._users.get(call.var, []))
        ]

    def _passed_on(self, var: relax.Var) -> bool:
        """Whether a small result is only read by functions that are made here."""
        read = all(user in self._inside for user in self._users.get(var, []))
        return read and var not in self._outputs and bytes_of(var.ty) <= PACKED

    def _tags(self, run: list[NamedCall]) -> dict[str, object]:
        operators = Operators(self.func)
        largest = max(run, key=lambda call: operators.macs(call.names))
        tags = {SCHEDULED: True, KERNEL: MERGED, PARAMS: encode_params({"dtype": largest.dtype})}
        attrs = [self.mod[call.value.args[0]].attrs or {} for call in run]
        if any(TUNED in found for found in attrs):
            tags[TUNED] = True
        if used := dict.fromkeys(str(found[INSTRUCTION]) for found in attrs if INSTRUCTION in found):
            tags[INSTRUCTION] = "; ".join(used)
        return tags


def _name(result: relax.Var | str) -> str:
    return result.name if isinstance(result, relax.Var) else f"passed_on_{result}"
