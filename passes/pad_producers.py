"""Padding is written by the kernel that makes a tensor, so that its consumers need no padded copy of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.select_kernels import kernel_of

Serves = Callable[[KernelCall, tvm.target.Target], bool]
Calls = Mapping[relax.Var, KernelCall]
Halo = tuple[int, ...]

NONE = (0, 0, 0, 0)
PRODUCERS = frozenset(("qconv2d", "qadd", "qavgpool2d", "qmaxpool2d"))
CONSUMERS = {
    "qconv2d": ("in_halo",),
    "qconv2d_add": ("in_halo",),
    "qavgpool2d": ("in_halo",),
    "qmaxpool2d": ("in_halo",),
    "qmean": ("in_halo",),
    "qadd": ("a_halo", "b_halo"),
}
"""The parameter for the halo of each of the first arguments."""


@tvm.transform.module_pass(opt_level=0, name="PadProducers")
@dataclass(frozen=True)
class PadProducers:
    """Surround tensors by the rows and columns of zero points that the convolutions behind them need.

    In: kernels as ``LowerInteger`` leaves them. Out: the same with ``out_halo`` and ``in_halo`` (``a_halo``,
    ``b_halo``) wherever one of ``serves`` takes every kernel that touches the tensor; inputs and outputs
    of ``main`` stay as they are.
    """

    serves: tuple[Serves, ...]
    target: tvm.target.Target

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``; a module in which no halo helps comes back unchanged."""
        func = ir.main_function(mod)
        before = {var: call for var, value in ir.bindings(func) if (call := kernel_of(mod, value))}
        after = self._padded(func, before) if self.serves else {}
        after = {var: call for var, call in after.items() if call is not before[var]}
        if not after:
            return mod
        with ir.Emitter(mod) as out:
            env: dict[relax.Var, relax.Expr] = {}
            for var, value in ir.bindings(func):
                new = ir.substitute(value, env)
                if isinstance(value, relax.Var | relax.Tuple):
                    env[var] = new
                    continue
                env[var] = out.emit(_call(after[var], new, out) if var in after else new, var.name)
            outputs = [env.get(var, var) for var in ir.output_vars(func)]
            return out.finish(outputs, ir.returns_tuple(func))

    def _padded(self, func: relax.Function, before: Calls) -> dict[relax.Var, KernelCall]:
        """Every call, with its halos."""
        calls, users, kept = dict(before), ir.consumers(func), set(ir.output_vars(func))
        defined = ir.definitions(func)
        for var in before:
            readers = list(dict.fromkeys(users.get(var, ())))
            if var in kept or not all(reader in calls for reader in readers):
                continue
            halo = _wanted(calls[var], [calls[reader] for reader in readers])
            if halo is None:
                continue
            changed = {r: _consuming(calls[r], _positions(defined[r], var), halo) for r in readers}
            changed[var] = _producing(calls[var], halo)
            found = {reader: call for reader, call in changed.items() if call and self._takes(call)}
            calls |= found if len(found) == len(changed) else {}
        return calls

    def _takes(self, call: KernelCall) -> bool:
        return any(serves(call, self.target) for serves in self.serves)


def _wanted(producer: KernelCall, readers: list[KernelCall]) -> Halo | None:
    """The smallest halo that holds the padding of every convolution; None where there is none to write."""
    zero = producer.params.get("out_zp")
    paddings = [tuple(r.params["padding"]) for r in readers if r.name in ("qconv2d", "qconv2d_add")]
    zeros = {r.params["in_zp"] for r in readers if any(r.params.get("padding", ())) and "in_zp" in r.params}
    halo = tuple(max(sides) for sides in zip(NONE, *paddings, strict=True))
    return halo if producer.name in PRODUCERS and any(halo) and zeros == {zero} else None


def _producing(call: KernelCall, halo: Halo) -> KernelCall:
    return replace(call, params={**call.params, "out_halo": list(halo)}, out=_grown(call.out, halo))


def _consuming(call: KernelCall, positions: list[int], halo: Halo) -> KernelCall | None:
    """The call with halos around those of its arguments; None where it cannot have them."""
    names = CONSUMERS.get(call.name, ())
    if any(position >= len(names) for position in positions):
        return None
    args, params = list(call.args), dict(call.params)
    for position in positions:
        args[position] = _grown(args[position], halo)
        params[names[position]] = list(halo)
    return replace(call, args=tuple(args), params=params)


def _positions(value: Call, var: relax.Var) -> list[int]:
    """Which arguments of a ``call_tir`` are ``var``."""
    return [i for i, arg in enumerate(value.args[1].fields) if isinstance(arg, relax.Var) and arg == var]


def _grown(spec: TensorSpec, halo: Halo) -> TensorSpec:
    (n, h, w, c), (top, left, bottom, right) = spec.shape, halo
    return TensorSpec((n, h + top + bottom, w + left + right, c), spec.dtype)


def _call(kernel: KernelCall, old: Call, out: ir.Emitter) -> Call:
    func = build_kernel(kernel.name, kernel.params, kernel.args, kernel.out).without_attr("global_symbol")
    ty = relax.TensorType(kernel.out.shape, kernel.out.dtype)
    name = f"{kernel.name}_padded"  # apart from the functions that stay
    return relax.call_tir(out.bb.add_func(func, name), list(old.args[1].fields), ty)
