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
from tvm_qplugin.passes.merged_function import Step, merged_function

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


@tvm.transform.module_pass(opt_level=0, name="MergeKernels")
@dataclass(frozen=True)
class MergeKernels:
    """Replace runs of small kernels by one ``call_tir``, whose function holds what lies between them.

    In: ``call_tir`` of scheduled PrimFuncs. Out: the same with fewer calls; a function made of several is
    tagged ``merged``, and ``qplugin.calls`` has one entry for it with all names. Large kernels, those that
    many layers share, those of several results and those of other operands than tensors stay as they are.
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


@dataclass
class _Merger:
    """Writes the new ``main``."""

    mod: IRModule
    func: relax.Function
    calls: dict[relax.Var, NamedCall]
    env: dict[relax.Var, relax.Expr] = field(default_factory=dict)
    records: list[tuple[str, list[str]]] = field(default_factory=list)

    def replace(self, runs: Sequence[list[NamedCall]]) -> IRModule:
        """One call for each run, in the place of its last member; the others stay."""
        last = {run[-1].var: run for run in runs}
        inside = {call.var for run in runs for call in run}
        with ir.Emitter(self.mod) as out:
            for var, value in ir.bindings(self.func):
                if var in last:
                    self._merge(out, last[var])
                elif var not in inside:
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
        results = self._escaping(run)
        made = {call.var for call in run}
        operands = list(dict.fromkeys(arg for call in run for arg in call.operands if arg not in made))
        specs = {x: ir.spec_of(x) for x in (*operands, *made)}
        steps = [
            Step(call.function, self.mod[call.value.args[0]], (*call.operands, call.var)) for call in run
        ]
        function = merged_function(steps, specs, operands, results).with_attrs(self._tags(run))
        gvar = out.bb.add_func(function, MERGED)
        self.records.append((gvar.name_hint, [name for call in run for name in call.names]))
        args = [ir.substitute(operand, self.env) for operand in operands]
        types = [var.ty for var in results]
        value = out.emit(relax.call_tir(gvar, args, types if len(types) > 1 else types[0]), results[-1].name)
        for i, var in enumerate(results):
            self.env[var] = value if len(results) == 1 else out.emit(relax.TupleGetItem(value, i), var.name)

    def _escaping(self, run: list[NamedCall]) -> list[relax.Var]:
        """The results that are read outside of the run."""
        inside = {call.var for call in run}
        users, outputs = ir.consumers(self.func), set(ir.output_vars(self.func))
        return [
            call.var
            for call in run
            if call.var in outputs or any(user not in inside for user in users.get(call.var, []))
        ]

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
