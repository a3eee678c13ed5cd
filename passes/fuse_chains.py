"""Elementwise kernels of int16 between layers become one: the gates and states of a recurrent cell."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import MEMBERS, REPORT, Implementation, KernelCall
from tvm_qplugin.core.chain16 import CHAIN, gate_of, gate_table
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.plan import grids_of
from tvm_qplugin.passes.select_kernels import KernelRule, kernel_of

ELEMENTWISE = ("requantize16", "qadd16", "qmul16", "qlut")
Ref = list[Any]


@tvm.transform.module_pass(opt_level=0, name="FuseChains")
@dataclass(frozen=True)
class FuseChains:
    """Make ``qchain16`` of elementwise int16 kernels that one result is computed by.

    In: kernels as ``LowerInteger`` leaves them. Out: one call for each result that anything else reads; what
    lies before it is inside, with slices and reshapes that are contiguous in memory, and tables of gates are
    interpolated where that gives the same. Only chains that one of ``rules`` has a kernel for;
    ``qplugin.members`` has their variables by that of the result, and ``qplugin.report`` the kernel.
    """

    rules: tuple[KernelRule, ...]
    target: tvm.target.Target

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``; a module without chains comes back unchanged."""
        chains = dict(_Graph(mod).chains())
        made = {var: found for var, chain in chains.items() if (found := self._implemented(chain.call))}
        if not made:
            return mod
        func, env = ir.main_function(mod), dict[relax.Var, relax.Expr]()
        with ir.Emitter(mod) as out:
            for var, value in ir.bindings(func):
                if var in made:
                    env[var] = _emit(out, var, chains[var], made[var], env)
                elif isinstance(value, relax.Var | relax.Tuple):
                    env[var] = ir.substitute(value, env)
                else:
                    env[var] = out.emit(ir.substitute(value, env), var.name)
            outputs = [env.get(var, var) for var in ir.output_vars(func)]
            attributes = _attributes(func, [chains[var] for var in made])
            fused = out.finish(outputs, ir.returns_tuple(func), **attributes)
        return relax.transform.DeadCodeElimination()(fused)

    def _implemented(self, call: KernelCall) -> Implementation | None:
        with self.target:
            return next(filter(None, (rule(call, self.target) for rule in self.rules)), None)


@dataclass
class _Chain:
    """What one result is computed by: nodes and arguments of the call, and the variables inside."""

    result: relax.Var
    nodes: list[dict[str, Any]] = field(default_factory=list)
    arguments: list[relax.Expr] = field(default_factory=list)
    members: list[relax.Var] = field(default_factory=list)
    known: dict[tuple[relax.Expr, int], Ref] = field(default_factory=dict)

    @property
    def call(self) -> KernelCall:
        """The kernel that computes it."""
        out = ir.spec_of(self.result)
        params = {"shape": list(out.shape), "nodes": self.nodes}
        return KernelCall(CHAIN, params, tuple(map(ir.spec_of, self.arguments)), out)

    def argument(self, expr: relax.Expr, *offset: int) -> Ref:
        """A reference to an operand of the call."""
        if expr not in self.arguments:
            self.arguments.append(expr)
        return ["arg", self.arguments.index(expr), *offset]


class _Graph:
    """Which variables are elementwise or views, and whose chains they belong to."""

    def __init__(self, mod: IRModule) -> None:
        func = ir.main_function(mod)
        self.defined, self.users, self.grids = ir.definitions(func), ir.consumers(func), grids_of(func)
        self.kernels: dict[relax.Var, KernelCall] = {}
        self.views: dict[relax.Var, tuple[relax.Var, int]] = {}
        for var, value in self.defined.items():
            kernel = kernel_of(mod, value)
            if kernel is not None and _elementwise(kernel):
                self.kernels[var] = kernel
            elif (view := _view(value)) is not None:
                self.views[var] = view
        self.outputs = set(ir.output_vars(func))
        self.table = ir.const(gate_table())
        self.tables: dict[tuple[bytes, float], str | None] = {}
        self.roots: dict[relax.Var, set[relax.Var]] = {}

    def chains(self) -> list[tuple[relax.Var, _Chain]]:
        """The chains of more than one kernel, or of views, by their result."""
        for var in reversed(list(self.defined)):
            if var in self.kernels or var in self.views:
                self.roots[var] = self._roots(var)
        found = []
        for var in self.kernels:
            if self.roots[var] == {var}:
                chain = _Chain(var)
                self._node(chain, var, 0, math.prod(ir.spec_of(var).shape))
                if len(chain.members) > 1:
                    found.append((var, chain))
        return found

    def _roots(self, var: relax.Var) -> set[relax.Var]:
        """The results that a variable is computed for; itself if it is one."""
        readers = self.users.get(var, [])
        inside = all(reader in self.roots for reader in readers) and var not in self.outputs
        found = set[relax.Var]().union(*(self.roots.get(reader, set()) for reader in readers))
        if var in self.views:
            return found if inside else {var}
        return found if inside and (len(found) == 1 or self._parted(var, readers)) else {var}

    def _parted(self, var: relax.Var, readers: Sequence[relax.Var]) -> bool:
        """Whether all that reads a tensor are views of parts of it: nothing is computed twice."""
        parts = [ir.spec_of(reader).size for reader in readers if reader in self.views]
        return len(parts) == len(readers) and sum(parts) <= ir.spec_of(var).size

    def _ref(self, chain: _Chain, expr: relax.Expr, offset: int, size: int) -> Ref:
        """``size`` elements of a tensor from ``offset`` on, as an argument of a node."""
        while expr in self.views:
            chain.members.append(expr)
            expr, begin = self.views[expr]
            offset += begin
        if expr in self.kernels and self.roots[expr] != {expr}:
            if (expr, offset) not in chain.known:
                chain.known[expr, offset] = self._node(chain, expr, offset, size)
            return chain.known[expr, offset]
        return chain.argument(expr, offset)

    def _node(self, chain: _Chain, var: relax.Var, offset: int, size: int) -> Ref:
        kernel, operands = self.kernels[var], list(self.defined[var].args[1].fields)
        name, params = kernel.name, dict(kernel.params)
        if name == "qlut":
            args = [self._ref(chain, operands[0], offset, size)]
            gate = self._gate(kernel, operands[0])
            if gate is not None:
                name, params = gate[0], {"scale": gate[1]}
            args.append(chain.argument(operands[1] if gate is None else self.table))
        else:
            args = [self._ref(chain, operand, offset, size) for operand in operands]
            if "vectorized" in params:
                params["vectorized"] = min(max(params["vectorized"] - offset, 0), size)
        chain.members.append(var)
        chain.nodes.append({"kernel": name, "params": params, "dtype": kernel.out.dtype, "args": args})
        return ["node", len(chain.nodes) - 1]

    def _gate(self, kernel: KernelCall, source: relax.Expr) -> tuple[str, float] | None:
        """The gate that a table stands for, and the scale of what it reads."""
        grid = self._grid(source)
        if grid is None:
            return None
        table, scale = kernel.constants[1], float(grid.scale)
        key = table.tobytes(), scale
        if key not in self.tables:
            self.tables[key] = gate_of(table, scale)
        name = self.tables[key]
        return None if name is None else (name, scale)

    def _grid(self, expr: relax.Expr) -> QuantParams | None:
        while expr in self.views and expr.name not in self.grids:
            expr = self.views[expr][0]
        return self.grids.get(getattr(expr, "name", ""))


def _elementwise(kernel: KernelCall) -> bool:
    """One of int16 tensors of one shape."""
    if kernel.name not in ELEMENTWISE or any("halo" in key for key in kernel.params):
        return False
    if kernel.name == "qlut":
        return kernel.args[0].dtype == kernel.out.dtype == "int16" and 1 in kernel.constants
    return all(spec.shape == kernel.out.shape for spec in kernel.args)


def _view(value: Any) -> tuple[relax.Var, int] | None:
    """What a reshape or slice takes its elements from, and where they begin; None unless contiguous."""
    name = ir.op_name(value)
    if name == "relax.reshape" and isinstance(value.args[0], relax.Var):
        return value.args[0], 0
    if name != "relax.strided_slice" or not isinstance(value.args[0], relax.Var):
        return None
    fields = [[int(item.value) for item in arg.fields] for arg in value.args[1:]]
    axes, begins = fields[:2]
    shape = ir.spec_of(value.args[0]).shape
    if len(axes) != 1 or (len(fields) > 3 and fields[3] != [1]):
        return None
    axis = axes[0] % len(shape)
    begin = begins[0] + (shape[axis] if begins[0] < 0 else 0)
    if math.prod(shape[:axis]) != 1 or not 0 <= begin < shape[axis]:
        return None
    return value.args[0], begin * math.prod(shape[axis + 1 :])


def _emit(
    out: ir.Emitter, var: relax.Var, chain: _Chain, made: Implementation, env: Mapping[relax.Var, relax.Expr]
) -> relax.Expr:
    args = [chain.arguments[arg] if isinstance(arg, int) else ir.const(arg) for arg in made.args]
    function = out.bb.add_func(made.func.without_attr("global_symbol"), CHAIN)
    return out.emit(relax.call_tir(function, [ir.substitute(arg, env) for arg in args], var.ty), var.name)


def _attributes(func: relax.Function, chains: Sequence[_Chain]) -> dict[str, str]:
    """The attributes of ``main`` that tell what a kernel computes."""
    attrs = func.attrs or {}
    members = json.loads(str(attrs.get(MEMBERS, "{}")))
    report = json.loads(str(attrs.get(REPORT, "[]")))
    inside = {member.name for chain in chains for member in chain.members}
    members |= {chain.result.name: list(dict.fromkeys(m.name for m in chain.members)) for chain in chains}
    for entry in report:
        if entry["variable"] in inside:
            entry["kernel"] = CHAIN
    return {MEMBERS: json.dumps(members), REPORT: json.dumps(report)}
