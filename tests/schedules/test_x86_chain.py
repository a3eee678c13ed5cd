"""Elementwise kernels of int16 and chains of them on x86 against the oracle, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_qplugin.core import interpolated, lite16, oracle16
from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.chain16 import gate_of, gate_table, qchain16
from tvm_qplugin.core.fixed_point import quantize_multiplier
from tvm_qplugin.core.oracle16 import ORACLE16
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array, QuantParams
from tvm_qplugin.schedules import x86_chain

TARGETS = {"avx2": {"mcpu": "haswell"}, "avx512f": {"mcpu": "skylake-avx512"}}
FULL = {"out_zp": 0, "lo": -32768, "hi": 32767}
SIZES = st.sampled_from([1, 3, 8, 20, 31, 48, 214])
SCALES = st.floats(2.0**-16, 2.0**-8)


def runnable() -> list[Any]:
    """Instruction sets; those that this CPU lacks as skipped parameters."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return [
        pytest.param(name, marks=pytest.mark.skipif(name not in flags, reason=f"CPU has no {name}"))
        for name in TARGETS
    ]


every_isa = pytest.mark.parametrize("isa", runnable())
quick = settings(max_examples=8, deadline=None)


def codes(seed: int, size: int, dtype: str = "int16") -> Array:
    """Random codes of which one in four is an extreme."""
    rng, (low, high) = np.random.default_rng(seed), INTEGER_RANGE[dtype]
    extreme = rng.choice([low, high], size)
    return np.where(rng.random(size) < 0.25, extreme, rng.integers(low, high + 1, size)).astype(dtype)


def check(isa: str, name: str, params: dict[str, Any], arrays: list[Array], expected: Array) -> None:
    target = tvm.target.Target({"kind": "llvm", "num-cores": 2, **TARGETS[isa]})
    specs = tuple(TensorSpec(a.shape, str(a.dtype)) for a in arrays)
    call = KernelCall(name, params, specs, TensorSpec(expected.shape, str(expected.dtype)))
    made = x86_chain.rule(call, target)
    assert made is not None and made.args == tuple(range(len(arrays)))
    func = made.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=target)
    tensors = [tvm.runtime.tensor(a) for a in (*arrays, np.full_like(expected, 99))]
    library["main"](*tensors)
    np.testing.assert_array_equal(tensors[-1].numpy(), expected)


def add_params(size: int, front: int, scales: list[float], subtract: bool) -> dict[str, Any]:
    multipliers = oracle16.add_multipliers(*scales, sum(scales) / 1.5)
    return {**FULL, **multipliers, "subtract": subtract, "vectorized": min(front, size)}


@every_isa
@quick
@given(SIZES, st.lists(SCALES, min_size=2, max_size=2), st.booleans(), st.sampled_from([0, 16, 208, 999]))
def test_add(isa: str, size: int, scales: list[float], subtract: bool, front: int) -> None:
    """Also where LiteRT rounds the elements in front once and the others twice."""
    p = add_params(size, front, scales, subtract)
    a, b = codes(size, size), codes(size + 1, size)
    check(isa, "qadd16", p, [a, b], ORACLE16["qadd16"](p, a, b, "int16"))


@every_isa
@quick
@given(SIZES, SCALES, SCALES, st.floats(0.5, 30_000))
def test_multiply(isa: str, size: int, s_a: float, s_b: float, ratio: float) -> None:
    p = {**FULL, "multiplier": oracle16.mul_multiplier(s_a, s_b, s_a * s_b * ratio)}
    a, b = codes(size, size), codes(size + 1, size)
    check(isa, "qmul16", p, [a, b], ORACLE16["qmul16"](p, a, b, "int16"))


@every_isa
@pytest.mark.parametrize("size", [20, 23])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 2.0**14, 2.0**15])
def test_factors_that_are_powers_of_two(isa: str, size: int, ratio: float) -> None:
    scale = 2.0**-12
    a, b = codes(size, size), codes(size + 1, size)
    p = {**FULL, "multiplier": oracle16.mul_multiplier(scale, scale, scale * scale * ratio)}
    check(isa, "qmul16", p, [a, b], ORACLE16["qmul16"](p, a, b, "int16"))
    multipliers = oracle16.add_multipliers(scale, scale * ratio, scale * max(ratio, 1.0))
    p = {**FULL, **multipliers, "subtract": False, "vectorized": 16}
    check(isa, "qadd16", p, [a, b], ORACLE16["qadd16"](p, a, b, "int16"))


@every_isa
@quick
@given(SIZES, st.floats(2.0**-20, 2.0**9), st.sampled_from(["int16", "int8", "uint8"]), st.booleans())
def test_requantize(isa: str, size: int, ratio: float, other: str, back: bool) -> None:
    source, target = ("int16", other) if back else (other, "int16")
    zero, (lo, hi) = {"int16": 0, "int8": -9, "uint8": 130}, INTEGER_RANGE[target]
    p = {"in_zp": zero[source], "out_zp": zero[target], "lo": lo, "hi": hi}
    p["multiplier"] = quantize_multiplier(ratio)
    q = codes(size, size, source)
    check(isa, "requantize16", p, [q], ORACLE16["requantize16"](p, q, target))


@every_isa
@pytest.mark.parametrize("gate", ["logistic16", "tanh16"])
@pytest.mark.parametrize("scale", [2.0**-15, 1.7e-4, 1e-3, 0.3, 2.6])
def test_every_code_of_a_gate(isa: str, gate: str, scale: float) -> None:
    q = np.arange(-32768, 32768).astype("int16")
    grids = QuantParams.of(scale, 0, "int16"), QuantParams.of(interpolated.UNIT, 0, "int16")
    table = (lite16.logistic if gate == "logistic16" else lite16.tanh)(*grids)
    assert gate_of(table, float(grids[0].scale)) == gate
    node = {"kernel": gate, "params": {"scale": float(grids[0].scale)}, "dtype": "int16"}
    node["args"] = [["arg", 0, 0], ["arg", 1]]
    params = {"shape": list(q.shape), "nodes": [node]}
    np.testing.assert_array_equal(qchain16(params, q, gate_table(), dtype="int16"), table)
    check(isa, "qchain16", params, [q, gate_table()], table)


@pytest.mark.parametrize("scale", [interpolated.Q3_12, 3.0])
def test_gates_that_are_no_interpolation_keep_their_table(scale: float) -> None:
    grid = QuantParams.of(scale, 0, "int16")
    assert gate_of(lite16.logistic(grid, grid), scale) is None
    assert gate_of(np.zeros(65536, "int16"), 1e-3) is None


@every_isa
@pytest.mark.parametrize("size", [5, 20, 214])
def test_a_cell(isa: str, size: int) -> None:
    """Parts of longer tensors, a table, a gate, a result that is read twice, a result of bytes."""
    x, h, table = codes(1, 4 * size), codes(2, size), codes(3, 65536)
    total = add_params(size, size // 16 * 16, [1e-3, 3e-3], False)
    out = {"in_zp": 0, "out_zp": 131, "lo": 0, "hi": 255, "multiplier": quantize_multiplier(0.004)}
    product = {**FULL, "multiplier": quantize_multiplier(2.0**-15)}
    nodes = [
        {"kernel": "qadd16", "params": total, "args": [["arg", 0, 2 * size], ["arg", 1, 0]]},
        {"kernel": "logistic16", "params": {"scale": 1e-3}, "args": [["node", 0], ["arg", 2]]},
        {"kernel": "qlut", "params": {}, "args": [["node", 0], ["arg", 3]]},
        {"kernel": "qmul16", "params": product, "args": [["node", 1], ["node", 2]]},
        {"kernel": "requantize16", "params": out, "args": [["node", 3]]},
    ]
    for node in nodes:
        node["dtype"] = "uint8" if node["params"] is out else "int16"
    params = {"shape": [1, size], "nodes": nodes}
    arrays = [x, h, gate_table(), table]
    check(isa, "qchain16", params, arrays, qchain16(params, *arrays, dtype="uint8"))


def test_left_to_others() -> None:
    p = add_params(16, 16, [1e-3, 1e-3], False)
    specs = TensorSpec((2, 8), "int16"), TensorSpec((8,), "int16"), TensorSpec((2, 8), "int16")
    avx512 = tvm.target.Target({"kind": "llvm", **TARGETS["avx512f"]})
    oldest = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"})
    same = KernelCall("qadd16", p, (specs[0], specs[0]), specs[2])
    assert x86_chain.rule(KernelCall("qadd16", p, specs[:2], specs[2]), avx512) is None
    assert x86_chain.rule(same, oldest) is None and x86_chain.rule(same, avx512) is not None
