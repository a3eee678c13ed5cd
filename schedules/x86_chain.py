"""``qchain16`` and the elementwise kernels of int16 on x86: 16 or 8 elements at a time, in int32 lanes.

Where a size is no multiple of that, the last vector is shorter, and overlaps the one before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import tvm

from tvm_qplugin.core.attrs import Implementation, KernelCall, TensorSpec, decode_params, encode_params
from tvm_qplugin.core.chain16 import CHAIN
from tvm_qplugin.schedules.primfunc import arguments, function
from tvm_qplugin.schedules.x86_isa import AVX2, F32_512, Buffer, Expr, Index, T, load, store, supports
from tvm_qplugin.schedules.x86_lanes16 import Lanes, Value

PARALLEL_ELEMENTS = 64 * 1024  # what a parallel launch is worth
SHORTEST = 4  # lanes; of two or one, instructions are no fewer
ALONE = ("requantize16", "qadd16", "qmul16")
MAGNITUDES = {"int8": 2**7, "uint8": 2**8 - 1, "int16": 2**15}


def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
    """The kernel; None where operands are broadcast or on CPUs without AVX2: the portable kernel serves."""
    lanes = 16 if supports(F32_512, target) else 8 if supports(AVX2, target) else 0
    chain = _chain(call)
    if chain is None or not lanes:
        return None
    func = _function(encode_params(chain.params), chain.args, chain.out, lanes)
    return Implementation(func, tuple(range(len(call.args))))


def _chain(call: KernelCall) -> KernelCall | None:
    """The call as a chain of its own."""
    if call.name == CHAIN:
        return call
    tensors = (*call.args, call.out)
    if call.name not in ALONE or any("halo" in key for key in call.params):
        return None
    if len({t.shape for t in tensors}) > 1 or any(t.dtype not in MAGNITUDES for t in tensors):
        return None
    args = [["arg", i, 0] for i in range(len(call.args))]
    node = {"kernel": call.name, "params": dict(call.params), "dtype": call.out.dtype, "args": args}
    return replace(call, name=CHAIN, params={"shape": list(call.out.shape), "nodes": [node]})


@lru_cache(maxsize=64)
def _function(params: str, args: tuple[TensorSpec, ...], out: TensorSpec, lanes: int) -> Any:
    call = KernelCall(CHAIN, decode_params(params), args, out)
    with function(call) as builder:
        *sources, result = arguments([*args, out])
        _loop(_Chain(call, sources, result), out.size, lanes)
    return builder.get()


def _loop(chain: _Chain, size: int, most: int) -> None:
    """Vectors of elements that are computed in one way in a loop, the others behind it."""
    lanes = min(most, 1 << (size.bit_length() - 1))
    alike = chain.alike(size)
    whole = -(-size // lanes) if alike == size >= 2 * lanes else alike // lanes
    with (T.parallel if size >= PARALLEL_ELEMENTS else T.serial)(0, whole) as i:
        chain.write(T.min(i * lanes, size - lanes), lanes, inside=True)
    for at, count in _rest(whole * lanes, size, lanes):
        chain.write(at, count, inside=at + count <= alike)


def _rest(begin: int, size: int, lanes: int) -> Iterator[tuple[int, int]]:
    """Where vectors behind a loop begin, and their lanes: at the end no more than it takes, but four."""
    while begin < size:
        count = min(lanes, max(SHORTEST, 1 << (size - begin - 1).bit_length()))
        yield min(begin, size - count), count
        begin += count


class _Chain:
    """A call, its flat buffers, and how its elements are computed."""

    def __init__(self, call: KernelCall, sources: Sequence[Buffer], out: Buffer) -> None:
        self.call, self.sources, self.out = call, sources, out
        self.nodes: list[dict[str, Any]] = call.params["nodes"]

    def alike(self, size: int) -> int:
        """So many elements in front are computed in one way each."""
        fronts = [int(n["params"]["vectorized"]) for n in self.nodes if "vectorized" in n["params"]]
        return min([*(front for front in fronts if 0 < front < size), size])

    def write(self, at: Index, lanes: int, inside: bool) -> None:
        """Elements from ``at`` on; ``inside``: all of them lie in front."""
        with T.sblock("elements"):
            T.reads()
            T.writes()
            values: list[Value] = []
            for node in self.nodes:
                operands = [self._operand(ref, values, at, lanes) for ref in node["args"]]
                made = self._value(node, operands, at, lanes, inside)
                values.append(replace(made, lanes=Lanes(lanes).kept(made.lanes)))
            last = T.Cast(_typed(self.call.out.dtype, lanes), values[-1].lanes)
            store(self.out, at, last, lanes)

    def _operand(self, ref: Sequence[Any], values: Sequence[Value], at: Index, lanes: int) -> Any:
        if ref[0] == "node":
            return values[ref[1]]
        if len(ref) == 2:
            return self.sources[ref[1]]
        loaded = T.Cast(_typed("int32", lanes), load(self.sources[ref[1]], at + ref[2], lanes))
        return Value(Lanes(lanes).kept(loaded), MAGNITUDES[self.call.args[ref[1]].dtype])

    def _value(
        self, node: dict[str, Any], operands: Sequence[Any], at: Index, lanes: int, inside: bool
    ) -> Value:
        kernel, p, work = node["kernel"], node["params"], Lanes(lanes)
        if kernel == "qlut":
            return work.looked_up(*operands)
        if kernel in ("logistic16", "tanh16"):
            return work.gate(kernel, p["scale"], *operands)
        if kernel == "requantize16":
            return work.requantized(p, *operands)
        if kernel == "qmul16":
            return work.product(p, *operands)
        return work.total(p, self._front(p, at, lanes, inside), *operands)

    def _front(self, p: dict[str, Any], at: Index, lanes: int, inside: bool) -> bool | Expr:
        """Which elements are rounded once: all, none, or a condition for each lane."""
        front = int(p["vectorized"])
        if front == 0 or front >= self.call.out.size or inside:
            return front > 0
        if isinstance(at, int) and at >= front:
            return False
        if lanes == 1:
            return at < front
        return T.ramp(at, 1, lanes) < T.broadcast(T.int32(front), lanes)


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
