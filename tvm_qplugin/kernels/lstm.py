"""The integer LSTM: all steps of all sequences in one serial function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.core.lstm import GATES, Rescaling
from tvm_qplugin.core.qparams import INTEGER_RANGE
from tvm_qplugin.kernels.arith import Expr, clamp, wide
from tvm_qplugin.kernels.fixed_functions import fixed_logistic, fixed_tanh, keep, saturate
from tvm_qplugin.kernels.fixed_point import divide_by_power, i32, i64, multiply

T: Any = builder
Buffer = Any


def qlstm(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> tirx.PrimFunc:
    """The oracle's ``qlstm`` as a complete function: steps depend on each other, no schedule applies."""
    x, *_, bias = inputs
    specs = [TensorSpec(tuple(int(e) for e in t.shape), str(t.dtype)) for t in inputs]
    with IRBuilder() as made, T.prim_func(s_tir=True):
        T.func_name("qlstm")
        T.func_attr({"tirx.is_scheduled": True})
        args = [T.arg(f"arg{i}", T.buffer(s.shape, s.dtype)) for i, s in enumerate([*specs, out])]
        with T.sblock("root"):
            T.reads()
            T.writes()
            cells = int(bias.shape[1])
            scratch = [
                T.sblock_alloc_buffer((n,), dtype)
                for n, dtype in ((cells, "int32"), (cells, "int64"), (2, "int32"))
            ]
            _sequences(_Lstm(p, Rescaling.of(p), *(*args, *scratch)), int(x.shape[0]), int(x.shape[1]))
    return made.get()


@dataclass(frozen=True)
class _Lstm:
    """Arguments and scratch: hidden state (distances to its zero point), cell state, two accumulators."""

    p: Params
    rescaling: Rescaling
    x: Buffer
    weight: Buffer
    recurrent: Buffer
    bias: Buffer
    out: Buffer
    hidden: Buffer
    cell: Buffer
    sums: Buffer


def _sequences(k: _Lstm, batch: int, steps: int) -> None:
    """A cell's new hidden state waits in the output until all cells have read the old ones."""
    cells = int(k.bias.shape[1])
    with T.serial(0, batch) as n:
        with T.serial(0, cells) as c:
            T.buffer_store(k.hidden, i32(0), [c])
            T.buffer_store(k.cell, i64(0), [c])
        with T.serial(0, steps) as t:
            with T.serial(0, cells) as c:
                _cell(k, n, t, c)
            with T.serial(0, cells) as c:
                T.buffer_store(k.hidden, wide(k.out[n, t, c], k.p["out_zp"]), [c])


def _cell(k: _Lstm, n: Expr, t: Expr, c: Expr) -> None:
    """One step of one cell: its gates, its new state, its output."""
    r = k.rescaling
    sums = {gate: _gate(k, g, n, t, c) for g, gate in enumerate(GATES)}
    enter, retain, leave = (fixed_logistic(sums[gate]) for gate in ("input", "forget", "output"))
    kept = keep(retain * k.cell[c])
    entered = keep(enter * fixed_tanh(sums["cell"]))
    state = saturate(divide_by_power(kept, 15) + divide_by_power(entered, r.product_shift))
    if r.cell_clip:
        state = clamp(state, i64(-r.cell_clip), i64(r.cell_clip))
    T.buffer_store(k.cell, state, [c])
    product = keep(leave * fixed_tanh(k.cell[c], r.integer_bits))
    code = multiply(product, r.hidden) + i64(k.p["out_zp"])
    lo, hi = INTEGER_RANGE[str(k.out.dtype)]
    T.buffer_store(k.out, clamp(code, i64(lo), i64(hi)).astype(k.out.dtype), [n, t, c])


def _gate(k: _Lstm, g: int, n: Expr, t: Expr, c: Expr) -> Expr:
    """A gate before its activation, in Q3.12: both products are rounded on their own."""
    T.buffer_store(k.sums, k.bias[g, c], [0])
    T.buffer_store(k.sums, i32(0), [1])
    with T.serial(0, int(k.x.shape[2])) as i:
        value = wide(k.x[n, t, i], k.p["in_zp"]) * wide(k.weight[g, c, i])
        T.buffer_store(k.sums, k.sums[0] + value, [0])
    with T.serial(0, int(k.bias.shape[1])) as j:
        T.buffer_store(k.sums, k.sums[1] + k.hidden[j] * wide(k.recurrent[g, c, j]), [1])
    entered = keep(saturate(multiply(k.sums[0], k.rescaling.inputs[g])))
    return keep(saturate(multiply(k.sums[1], k.rescaling.recurrent[g]) + entered))
