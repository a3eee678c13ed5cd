"""Kernels of float inputs and weights of 8 or 4 bits: weights exactly, sums within the bound of rounding."""

from __future__ import annotations

from functools import partial

import instruction_sets
import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import runnable

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.grouped import Grouped, quantize_grouped, rounding, wdense, wexpand
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.schedules import weight_only
from tvm_qplugin.schedules.cpu import UNSCHEDULED, schedule_cpu

TARGETS = {
    "portable": ({"mcpu": "x86-64"}, "sse2"),
    "avx2": ({"mcpu": "haswell"}, "avx2"),
    "avx512": ({"mcpu": "skylake-avx512"}, "avx512f"),
}


every_isa = pytest.mark.parametrize("isa", runnable(TARGETS))
target_of = partial(instruction_sets.target_of, TARGETS)


def problem(
    rows: tuple[int, ...], depth: int, outputs: int, bits: int, group: int, seed: int = 0
) -> tuple[KernelCall, Array, Grouped]:
    rng = np.random.default_rng(seed)
    x, weight, bias = (
        rng.normal(size=s).astype("float32") for s in ((*rows, depth), (outputs, depth), outputs)
    )
    stored = quantize_grouped(weight, bits, group)
    lo, hi = [(None, None), (0.0, None), (-1.0, 6.0)][seed % 3]
    arrays = [stored.codes, stored.scale, bias]
    specs = tuple(TensorSpec(a.shape, str(a.dtype)) for a in (x, *arrays))
    out = TensorSpec((*rows, outputs), "float32")
    params = {"lo": lo, "hi": hi, **stored.params}
    return KernelCall("wdense", params, specs, out, dict(enumerate(arrays, 1))), x, stored


def run(func: tvm.tirx.PrimFunc, arrays: list[Array], out: TensorSpec, target: tvm.target.Target) -> Array:
    library = tvm.tirx.build(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=target)
    garbage = np.full(out.shape, np.nan, out.dtype)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (*arrays, garbage)]
    library["main"](*tensors)
    return np.asarray(tensors[-1].numpy())


def check(call: KernelCall, x: Array, stored: Grouped, found: Array) -> None:
    bias = call.constants[3]
    expected = wdense(call.params, x, stored.codes, stored.scale, bias)
    bound = rounding(x, stored.real(), bias) + 2.0**-24 * np.abs(expected)
    assert (np.abs(found - expected) <= bound).all(), np.max(np.abs(found - expected) / bound)


def check_rule(isa: str, call: KernelCall, x: Array, stored: Grouped) -> None:
    target = target_of(isa)
    implementation = weight_only.rule(call, target)
    assert implementation is not None
    arrays = [x if isinstance(a, int) else a for a in implementation.args]
    check(call, x, stored, run(implementation.func, arrays, call.out, target))


@every_isa
@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([(), (1,), (2,), (5,), (2, 9), (33,)]),
    st.integers(1, 150),
    st.integers(1, 120),
    st.sampled_from([4, 8]),
    st.sampled_from([0, 7, 8, 16, 32, 33, 128]),
    st.integers(0, 99),
)
def test_any_layer(
    isa: str, rows: tuple[int, ...], depth: int, outputs: int, bits: int, group: int, seed: int
) -> None:
    check_rule(isa, *problem(rows, depth, outputs, bits, group, seed))


@every_isa
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 0), (8, 64)])
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_layers_of_transformers(isa: str, bits: int, group: int, rows: int) -> None:
    check_rule(isa, *problem((rows,), 384, 1536, bits, group))


@every_isa
@pytest.mark.parametrize("bits", [4, 8])
def test_unit_inputs_read_the_weights_back_exactly(isa: str, bits: int) -> None:
    """With one input 1 and the others 0, the result is a weight: every code at every place, to the bit."""
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.tile(np.arange(-8, 8) if bits == 4 else np.arange(-127, 128), 40))[: 61 * 10]
    call, _, _ = problem((61,), 61, 10, bits, 8)
    packed = quantize_grouped(codes.reshape(10, 61).astype("float32"), bits, 8)
    arrays = {1: packed.codes, 2: packed.scale, 3: np.zeros(10, "float32")}
    call = KernelCall("wdense", {**call.params, "lo": None}, call.args, call.out, arrays)
    target = target_of(isa)
    implementation = weight_only.rule(call, target)
    assert implementation is not None
    found = run(implementation.func, [np.eye(61, dtype="float32"), implementation.args[1]], call.out, target)
    np.testing.assert_array_equal(found.T, packed.real())


@every_isa
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 7), (8, 0)])
def test_the_portable_definition(isa: str, bits: int, group: int) -> None:
    target = target_of(isa)
    call, x, stored = problem((3,), 75, 20, bits, group)
    func = schedule_cpu(build_kernel("wdense", call.params, call.args, call.out), target)
    assert UNSCHEDULED not in func.attrs
    check(call, x, stored, run(func, [x, *call.constants.values()], call.out, target))


@every_isa
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 7), (8, 0), (8, 16)])
def test_the_expanded_weight_is_exact(isa: str, bits: int, group: int) -> None:
    target = target_of(isa)
    call, _, stored = problem((1,), 75, 20, bits, group)
    out = TensorSpec((75, 20), "float32")
    func = schedule_cpu(build_kernel("wexpand", stored.params, call.args[1:3], out), target)
    found = run(func, [stored.codes, stored.scale], out, target)
    np.testing.assert_array_equal(found, wexpand(stored.params, stored.codes, stored.scale))
    np.testing.assert_array_equal(found, stored.real().T)


def test_instructions() -> None:
    """A lookup of 4 bits on AVX-512, scales converted from float16; neither on the oldest CPU."""
    call, _, _ = problem((1,), 64, 64, 4, 32)
    texts = {}
    for isa in ("avx512", "portable"):
        implementation = weight_only.rule(call, target_of(isa))
        assert implementation is not None
        module = tvm.IRModule({"main": implementation.func.with_attr("global_symbol", "main")})
        texts[isa] = tvm.tirx.build(module, target=target_of(isa)).inspect_source("asm")
    assert "vpermps" in texts["avx512"] and "vcvtph2ps" in texts["avx512"] and "vfmadd" in texts["avx512"]
    assert "mulps" in texts["portable"] and "fma" not in texts["portable"]


def test_left_to_others() -> None:
    call, _, _ = problem((1,), 64, 64, 4, 32)
    unknown = KernelCall(call.name, call.params, call.args, call.out, {2: call.constants[2]})
    assert weight_only.rule(unknown, target_of("avx2")) is None
    assert weight_only.rule(KernelCall("fdense", {}, call.args, call.out), target_of("avx2")) is None
