"""Generated x86 dense layers against the oracle: integers exactly, floats to rounding."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import instruction_sets
import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import runnable

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array
from tvm_qplugin.schedules import x86_dense

TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "avx2": ({"mcpu": "haswell"}, "avx2"),
    "avxvnni256": ({"mcpu": "x86-64-v3", "mattr": ["+avxvnni"]}, "avx_vnni"),
    "vnni512": ({"mcpu": "icelake-server"}, "avx512_vnni"),
}


target_of = partial(instruction_sets.target_of, TARGETS)


def integer_call(
    shape: tuple[int, ...], features: int, dtype: str, out_dtype: str, in_zp: int, out_zp: int, seed: int
) -> tuple[KernelCall, Array, Array]:
    r = np.random.default_rng(seed)
    lo, hi = INTEGER_RANGE[dtype]
    x = r.integers(lo, hi + 1, shape).astype(dtype)
    weight = r.integers(-127, 128, (features, shape[-1])).astype("int8")
    bias = r.integers(-5000, 5000, features).astype("int32")
    factor = (r.uniform(0.5, 1.5, features) / np.sqrt(shape[-1]) / 120).astype("float32")
    factor *= 256 if out_dtype == "int16" else 1
    bounds = INTEGER_RANGE[out_dtype]
    params = {"in_zp": in_zp, "out_zp": out_zp, "lo": bounds[0], "hi": bounds[1]}
    return finish("qdense", params, x, [weight, bias, factor], out_dtype)


def finish(
    name: str, params: dict[str, Any], x: Array, constants: list[Array], dtype: str
) -> tuple[KernelCall, Array, Array]:
    expected = ORACLE[name](params, x, *constants, dtype)
    specs = tuple(TensorSpec(a.shape, str(a.dtype)) for a in (x, *constants))
    out = TensorSpec(expected.shape, dtype)
    return KernelCall(name, params, specs, out, dict(enumerate(constants, 1))), x, expected


def run(call: KernelCall, x: Array, isa: str) -> Array:
    implementation = x86_dense.rule(call, target_of(isa))
    assert implementation is not None
    func = implementation.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=target_of(isa))
    arrays = [x if isinstance(a, int) else a for a in implementation.args]
    garbage = np.full(call.out.shape, 99, call.out.dtype)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (*arrays, garbage)]
    library["main"](*tensors)
    return np.asarray(tensors[-1].numpy())


@pytest.mark.parametrize("isa", runnable(TARGETS))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_dense_layer_equals_the_oracle(isa: str, data: st.DataObject) -> None:
    leading = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    shape = (*leading, data.draw(st.integers(1, 300)))
    dtype = data.draw(st.sampled_from(["uint8", "int8"] if isa == "avx2" else ["uint8"]))
    out_dtype = data.draw(st.sampled_from(["uint8", "int8", "int16"]))
    zero = [data.draw(st.integers(*INTEGER_RANGE[d])) for d in (dtype, out_dtype)]
    zero[1] *= out_dtype != "int16"
    features, seed = data.draw(st.integers(1, 150)), data.draw(st.integers(0, 99))
    call, x, expected = integer_call(shape, features, dtype, out_dtype, *zero, seed)
    np.testing.assert_array_equal(run(call, x, isa), expected)


@pytest.mark.parametrize("isa", runnable(TARGETS))
@pytest.mark.parametrize("shape", [(1, 1024, 1024), (1, 1280, 1000), (1, 2048, 1001), (64, 256, 256)])
def test_classifiers_of_known_networks(isa: str, shape: tuple[int, int, int]) -> None:
    rows, depth, features = shape
    call, x, expected = integer_call((rows, depth), features, "uint8", "uint8", 3, 128, 0)
    np.testing.assert_array_equal(run(call, x, isa), expected)


@pytest.mark.parametrize("isa", runnable(TARGETS))
@pytest.mark.parametrize("weight", [127, -127])
def test_the_largest_products_do_not_saturate(isa: str, weight: int) -> None:
    """255 * 127 twice is 64,770: pairs u8 x s8 added in int16 (``vpmaddubsw``) would end at 32,767."""
    x = np.full((3, 512), 255, "uint8")
    weights = np.full((40, 512), weight, "int8")
    total = 255 * weight * 512
    factor = np.full(40, 100 / abs(total), "float32")
    params = {"in_zp": 0, "out_zp": 128, "lo": 0, "hi": 255}
    constants = [weights, np.zeros(40, "int32"), factor]
    call, x, expected = finish("qdense", params, x, constants, "uint8")
    assert (expected == 128 + np.sign(weight) * 100).all()
    np.testing.assert_array_equal(run(call, x, isa), expected)


def test_avx2_adds_pairs_in_int32() -> None:
    """``vpmaddwd`` of int16: two products of 16 bits each fit int32, so no weight has to be kept small."""
    assert 2 * 255 * 127 > INTEGER_RANGE["int16"][1] and 2 * 2**15 * 2**15 <= 2**31
    call, _, _ = integer_call((4, 256), 64, "uint8", "uint8", 3, 128, 0)
    implementation = x86_dense.rule(call, target_of("avx2"))
    assert implementation is not None
    func = implementation.func.with_attr("global_symbol", "main")
    text = tvm.tirx.build(tvm.IRModule({"main": func}), target=target_of("avx2")).inspect_source("asm")
    assert "vpmaddwd" in text and "vpmaddubsw" not in text


def test_workspace_keeps_its_size() -> None:
    """TVM's CompactBufferAllocation fails on this shape when the workspace has no opaque use."""
    call, _, _ = integer_call((7, 5), 9, "uint8", "uint8", 0, 0, 0)
    implementation = x86_dense.rule(call, target_of("avx2"))
    assert implementation is not None
    tvm.tirx.build(implementation.func.with_attr("global_symbol", "main"), target=target_of("avx2"))


@pytest.mark.parametrize("isa", runnable(TARGETS))
@pytest.mark.parametrize("bounds", [(None, None), (0.0, 6.0)])
def test_float_dense(isa: str, bounds: tuple[float | None, float | None]) -> None:
    r = np.random.default_rng(0)
    x, weight, bias = (r.standard_normal(s).astype("float32") for s in ((2, 3, 100), (77, 100), (77,)))
    call, x, expected = finish("fdense", {"lo": bounds[0], "hi": bounds[1]}, x, [weight, bias], "float32")
    np.testing.assert_allclose(run(call, x, isa), expected, rtol=1e-4, atol=1e-4)


def test_left_to_others() -> None:
    call, _, _ = integer_call((2, 64), 32, "int8", "int8", 0, 0, 0)
    assert x86_dense.rule(call, target_of("vnni512")) is None
    assert x86_dense.rule(call, tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"})) is None
    assert x86_dense.candidates(call, target_of("vnni512")) == []
    assert len(x86_dense.candidates(call, target_of("avx2"))) > 4


@pytest.mark.parametrize("isa", runnable(TARGETS))
@pytest.mark.parametrize(("shape", "features"), [((1, 20), 80), ((1, 214), 856), ((3, 2, 9), 13)])
@pytest.mark.parametrize("factor", [0.3, 200.0, 1e7])
def test_bytes_to_int16(isa: str, shape: tuple[int, ...], features: int, factor: float) -> None:
    """Small, saturating, and beyond int32 before the clamp."""
    narrow, x, _ = integer_call(shape, features, "uint8", "uint8", 131, 0, 5)
    weight, bias, scale = (narrow.constants[i] for i in (1, 2, 3))
    params = {"in_zp": 131, "out_zp": 0, "lo": -32768, "hi": 32767}
    call, x, expected = finish("qdense", params, x, [weight, bias, np.float32(factor) * scale], "int16")
    np.testing.assert_array_equal(run(call, x, isa), expected)


@pytest.mark.parametrize("isa", TARGETS)
def test_int16_to_bytes_is_left_to_others(isa: str) -> None:
    call, _, _ = integer_call((2, 64), 32, "uint8", "uint8", 0, 0, 0)
    wide = replace(call, args=(replace(call.args[0], dtype="int16"), *call.args[1:]))
    assert x86_dense.rule(wide, target_of(isa)) is None


@pytest.mark.parametrize("isa", runnable(TARGETS))
def test_weights_of_float16_give_the_same_numbers(isa: str) -> None:
    r = np.random.default_rng(0)
    x, *constants = (r.standard_normal(s).astype("float32") for s in ((100,), (77, 100), (77,)))
    halves = [constant.astype("float16") for constant in constants]
    params = {"lo": None, "hi": None}
    small, large = (
        run(finish("fdense", params, x, [c.astype(kind) for c in halves], "float32")[0], x, isa)
        for kind in ("float16", "float32")
    )
    np.testing.assert_array_equal(small, large)
