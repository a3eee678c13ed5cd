"""FuseChains: what becomes one kernel, what stays, and what the report says of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tvm
from tvm import IRModule, relax

from tvm_qplugin.core.attrs import MEMBERS, PARAMS, REPORT, Implementation, KernelCall, decode_params
from tvm_qplugin.core.chain16 import CHAIN
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.fuse_chains import FuseChains
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.schedules import x86_chain

TARGET = tvm.target.Target({"kind": "llvm", "mcpu": "haswell", "num-cores": 2})
ANY, UNIT = QuantParams.of(1e-3, 0, "int16"), QuantParams.of(2.0**-15, 0, "int16")


class Graph:
    """A QDQ module written operator by operator, every tensor int16."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        self.inputs = [relax.Var(f"x{i}", relax.TensorType(s, "float32")) for i, s in enumerate(shapes)]
        self.bb = relax.BlockBuilder()

    def build(self, body: Any) -> IRModule:
        with self.bb.function("main", self.inputs):
            with self.bb.dataflow():
                made = body(self, *(self.grid(x, x.name) for x in self.inputs))
                results = self.bb.emit_output(relax.Tuple(list(made)))
            self.bb.emit_func_output(results)
        return self.bb.get()

    def grid(self, value: Any, name: str, params: QuantParams = ANY) -> Any:
        """A tensor as its integers stand for it."""
        var = value if isinstance(value, relax.Var) else self.bb.emit(value, name)
        return self.bb.emit(ir.dequantize(self.bb.emit(ir.quantize(var, params)), params))


def fused(mod: IRModule) -> IRModule:
    return FuseChains((x86_chain.rule,), TARGET)(LowerInteger("uint8")(mod))


def calls(mod: IRModule) -> list[tuple[str, list[str]]]:
    """Every chain: the variable, and the kernels of its nodes."""
    found = []
    for var, value in ir.bindings(mod["main"]):
        attrs = mod[value.args[0]].attrs if ir.op_name(value) == "relax.call_tir" else {}
        if PARAMS in attrs and "nodes" in (params := decode_params(str(attrs[PARAMS]))):
            found.append((var.name, [node["kernel"] for node in params["nodes"]]))
    return found


def gated(g: Graph, a: Any, b: Any) -> list[Any]:
    """Two gates of the halves of a sum, and their product."""
    total = g.grid(relax.op.add(a, b), "total")
    low, high = (g.grid(relax.op.strided_slice(total, [1], [at], [at + 8]), f"half{at}") for at in (0, 8))
    gate = g.grid(relax.op.sigmoid(low), "gate", UNIT)
    shown = g.grid(relax.op.tanh(high), "shown", UNIT)
    return [g.grid(relax.op.multiply(gate, shown), "product")]


def test_a_sum_its_parts_and_their_gates_are_one_kernel() -> None:
    mod = fused(Graph((1, 16), (1, 16)).build(gated))
    ((name, kernels),) = calls(mod)
    assert name == "product"
    assert kernels == ["qadd16", "logistic16", "qadd16", "tanh16", "qmul16"]
    attrs = mod["main"].attrs
    members = json.loads(str(attrs[MEMBERS]))["product"]
    assert set(members) >= {"total", "half0", "half8", "gate", "shown", "product"}
    report = {entry["name"]: entry["kernel"] for entry in json.loads(str(attrs[REPORT]))}
    assert {report[name] for name in ("total", "gate", "shown", "product")} == {CHAIN}


def test_elements_are_counted_from_the_part() -> None:
    """LiteRT rounds whole vectors in front of a sum in another way than the rest."""
    mod = fused(Graph((1, 36), (1, 36)).build(lambda g, a, b: [
        g.grid(relax.op.sigmoid(g.grid(relax.op.strided_slice(
            g.grid(relax.op.add(a, b), "total"), [1], [at], [at + 12]), f"part{at}")), f"gate{at}", UNIT)
        for at in (0, 12, 24)
    ]))  # fmt: skip
    fronts = [
        decode_params(str(func.attrs[PARAMS]))["nodes"][0]["params"]["vectorized"]
        for func in mod.functions.values()
        if PARAMS in (func.attrs or {}) and "nodes" in decode_params(str(func.attrs[PARAMS]))
    ]
    assert sorted(fronts) == [8, 12, 12]


def test_what_two_results_need_is_computed_once() -> None:
    def body(g: Graph, a: Any, b: Any) -> list[Any]:
        total = g.grid(relax.op.add(a, b), "total")
        gates = [g.grid(f(total), n, UNIT) for f, n in ((relax.op.sigmoid, "s"), (relax.op.tanh, "t"))]
        return [g.grid(relax.op.multiply(gate, b), f"p{i}") for i, gate in enumerate(gates)]

    found = calls(fused(Graph((1, 16), (1, 16)).build(body)))
    assert found == [("p0", ["logistic16", "qmul16"]), ("p1", ["tanh16", "qmul16"])]


def test_parts_that_are_not_contiguous_are_read_as_they_are() -> None:
    mod = fused(Graph((2, 16), (2, 16)).build(gated))
    ((name, kernels),) = calls(mod)
    assert (name, kernels) == ("product", ["logistic16", "tanh16", "qmul16"])


def test_broadcasting_stays() -> None:
    mod = fused(Graph((3, 8), (8,)).build(
        lambda g, a, b: [g.grid(relax.op.tanh(g.grid(relax.op.add(a, b), "total")), "y", UNIT)]
    ))  # fmt: skip
    assert calls(mod) == []


@pytest.mark.parametrize("rules", [(), (lambda call, target: None,)])
def test_without_a_kernel_nothing_changes(rules: Any) -> None:
    lowered = LowerInteger("uint8")(Graph((1, 16), (1, 16)).build(gated))
    tvm.ir.assert_structural_equal(FuseChains(rules, TARGET)(lowered), lowered)


def test_the_rule_sees_all_tensors_and_the_table_of_gates_once() -> None:
    seen: list[KernelCall] = []

    def rule(call: KernelCall, target: Any) -> Implementation | None:
        seen.append(call)
        return None

    FuseChains((rule,), TARGET)(LowerInteger("uint8")(Graph((1, 16), (1, 16)).build(gated)))
    assert [(spec.shape, spec.dtype) for spec in seen[0].args] == [
        ((1, 16), "int16"), ((1, 16), "int16"), ((256,), "int32"),
    ]  # fmt: skip
    assert seen[0].out.shape == (1, 8) and isinstance(seen[0], KernelCall)
