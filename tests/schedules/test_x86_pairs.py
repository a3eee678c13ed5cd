"""Byte pairs added in int16: the proof by brute force, the kernels against the oracle, bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules import x86_conv, x86_dense
from tvm_qplugin.schedules.x86_isa import AVX2, PAIRS
from tvm_qplugin.schedules.x86_kernel import Plan
from tvm_qplugin.schedules.x86_pairs import LIMIT, arranged, chained, demand, halved
from tvm_qplugin.schedules.x86_tiles import Tile

TARGET = tvm.target.Target({"kind": "llvm", "mcpu": "haswell", "num-cores": 2})
INT16 = np.iinfo("int16")
CPU = Path("/proc/cpuinfo")
avx2 = pytest.mark.skipif(not CPU.exists() or "avx2" not in CPU.read_text().split(), reason="CPU has no avx2")

KINDS = ("zeros", "uniform", "normal", "small", "halves", "one of each sign", "edges", "lowest", "highest")


def weights_of(kind: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    """int8 weights with different chances to saturate."""
    r = np.random.default_rng(seed)
    made: dict[str, Any] = {
        "zeros": lambda: np.zeros(shape),
        "uniform": lambda: r.integers(-127, 128, shape),
        "normal": lambda: np.clip(np.rint(r.normal(0, 30, shape)), -127, 127),
        "small": lambda: r.integers(-9, 10, shape),
        "halves": lambda: np.full(shape, LIMIT // 2),
        "one of each sign": lambda: np.where(np.arange(shape[-1]) % 2, -128, 127) + np.zeros(shape),
        "edges": lambda: r.choice([-128, -127, -65, -64, -1, 0, 1, 63, 64, 65, 127], shape),
        "lowest": lambda: np.full(shape, -128),
        "highest": lambda: np.full(shape, 127),
    }
    return np.asarray(made[kind]()).astype("int8")


def conv_call(
    weights: Array, size: int = 5, strides: int = 1, padding: int = 0, groups: int = 1, seed: int = 0
) -> tuple[KernelCall, Array, Array]:
    """A convolution of images that are mostly 255, and what the oracle says."""
    r = np.random.default_rng(seed)
    x = np.where(r.random((2, size, size, weights.shape[3] * groups)) < 0.7, 255, r.integers(0, 256))
    params = {
        "strides": [strides] * 2, "padding": [padding] * 4, "dilation": [1, 1], "groups": groups,
        "in_zp": 3, "out_zp": 128, "lo": 0, "hi": 255,
    }  # fmt: skip
    return finish("qconv2d", params, x.astype("uint8"), weights)


def dense_call(weights: Array, x: Array) -> tuple[KernelCall, Array, Array]:
    return finish("qdense", {"in_zp": 0, "out_zp": 128, "lo": 0, "hi": 255}, x, weights)


def finish(name: str, params: dict[str, Any], x: Array, weights: Array) -> tuple[KernelCall, Array, Array]:
    bias = np.arange(len(weights), dtype="int32") * 7 - 50
    largest = np.abs(weights.astype("int64")).reshape(len(weights), -1).sum(1) * 255
    factor = (100 / np.maximum(largest, 1)).astype("float32")
    expected = ORACLE[name](params, x, weights, bias, factor, "uint8")
    constants = [weights, bias, factor]
    specs = tuple(TensorSpec(a.shape, str(a.dtype)) for a in (x, *constants))
    call = KernelCall(name, params, specs, TensorSpec(expected.shape, "uint8"), dict(enumerate(constants, 1)))
    return call, x, expected


def pairs_plan(call: KernelCall) -> Plan:
    """The plan with byte pairs, whether they pay or not."""
    shape = x86_dense.dense_geometry if call.name == "qdense" else x86_conv.conv_geometry
    return Plan(call, PAIRS, shape(call, PAIRS))


def run(plan: Plan, x: Array, tile: Tile | None = None) -> Array:
    implementation = plan.implement(tile or plan.default())
    assert implementation is not None
    func = implementation.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=TARGET)
    arrays = [x if isinstance(a, int) else a for a in implementation.args]
    out = np.full(plan.call.out.shape, 99, plan.call.out.dtype)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (*arrays, out)]
    library["main"](*tensors)
    return np.asarray(tensors[-1].numpy())


def worst(steps: Array) -> tuple[Array, Array]:
    """The largest and the smallest sum of each int16 over all activations; ``steps`` [..., lanes, 4]."""
    pairs = steps.astype("int64").reshape(*steps.shape[:-2], -1, 2)
    sums = [(pairs * np.array(corner)).sum(-1) for corner in itertools.product((0, 255), repeat=2)]
    return np.max(sums, 0), np.min(sums, 0)


def test_every_pair_of_weights_is_judged_right() -> None:
    every = np.arange(-128, 128, dtype="int16")
    pairs = np.stack(np.meshgrid(every, every), -1).reshape(-1, 1, 2)
    steps = np.concatenate([pairs, np.zeros_like(pairs)], -1).astype("int8")[:, None]
    high, low = worst(steps)
    exact = ((high <= INT16.max) & (low >= INT16.min)).all((1, 2))
    np.testing.assert_array_equal(demand(steps)[:, 0].max(-1) <= LIMIT, exact)
    parts = halved(steps)
    np.testing.assert_array_equal(parts.astype("int16").sum(1, keepdims=True), steps)
    assert demand(parts).max() <= LIMIT
    np.testing.assert_array_equal(parts[:, 1].any((1, 2)), ~exact)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_chain_saturates_and_none_is_lost(data: st.DataObject) -> None:
    kind, seed = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 99))
    kernel = data.draw(st.sampled_from([(1, 1), (3, 3), (1, 2)]))
    groups, per_group = data.draw(st.sampled_from([(1, 3), (1, 16), (1, 37), (2, 4), (1, 4)]))
    channels = data.draw(st.integers(1, 20)) * groups
    call, _, _ = conv_call(weights_of(kind, (channels, *kernel, per_group), seed), padding=1, groups=groups)
    g = pairs_plan(call).geometry
    found = chained(call.constants[1], g, PAIRS.chain)
    where = {tuple(offset): i for i, offset in enumerate(positions(g))}
    total = np.zeros((g.groups * g.blocks, g.lanes, len(where)), "int64")
    for block, row in enumerate(found.counts):
        for n, count in enumerate(row, 1):
            for c in range(count):
                at = found.starts[block, n - 1] + c * n
                high, low = (sum(part) for part in zip(*map(worst, found.weights[at : at + n]), strict=True))
                assert high.max() <= INT16.max and low.min() >= INT16.min
                for offset, weights in zip(
                    found.offsets[at : at + n], found.weights[at : at + n], strict=True
                ):
                    for byte in range(4):
                        if weights[:, byte].any():
                            total[block, :, where[(offset + byte,)]] += weights[:, byte]
    lanes = total.reshape(g.groups, g.blocks * g.lanes, -1)
    np.testing.assert_array_equal(lanes[:, : g.channels].reshape(channels, -1), flat(call))
    assert not lanes[:, g.channels :].any()


def positions(g: Any) -> list[tuple[int]]:
    """Offsets of all elements of a window, in the order of OHWI."""
    offsets = np.zeros(1, "int64")
    for tap in g.taps:
        offsets = np.add.outer(offsets, np.arange(tap.extent) * tap.source).reshape(-1)
    return [(int(offset),) for offset in np.add.outer(offsets, np.arange(g.span)).reshape(-1)]


def flat(call: KernelCall) -> Array:
    return call.constants[1].astype("int64").reshape(call.args[1].shape[0], -1)


def test_small_weights_share_chains() -> None:
    steps = halved(weights_of("small", (3, 16, 8, 4)))
    chain = arranged(steps, 4)
    assert (chain.max(1) == 3).all() and (np.sort(chain, 1)[:, 16:] == np.repeat(range(4), 4)).all()


@avx2
@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_equal_the_oracle(kind: str) -> None:
    call, x, expected = conv_call(weights_of(kind, (40, 3, 3, 20)), padding=1)
    np.testing.assert_array_equal(run(pairs_plan(call), x), expected)


@avx2
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_convolution_equals_the_oracle(data: st.DataObject) -> None:
    kind, seed = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 99))
    kernel = data.draw(st.sampled_from([(1, 1), (3, 3), (2, 1), (1, 3)]))
    groups = data.draw(st.sampled_from([1, 1, 2]))
    channels = data.draw(st.integers(1, 40)) * groups
    shape = (channels, *kernel, data.draw(st.integers(2 if groups > 1 else 1, 40)))
    size, strides = data.draw(st.integers(3, 7)), data.draw(st.integers(1, 2))
    call, x, expected = conv_call(
        weights_of(kind, shape, seed), size, strides, data.draw(st.integers(0, 1)), groups, seed
    )
    tile = data.draw(st.sampled_from([None, Tile(3, 1), Tile(2, 2, "mo"), Tile(4, 1, "om", 2)]))
    np.testing.assert_array_equal(run(pairs_plan(call), x, tile), expected)


@avx2
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 13])
def test_dense_layers_equal_the_oracle(kind: str, rows: int) -> None:
    x = np.full((rows, 130), 255, "uint8")
    call, x, expected = dense_call(weights_of(kind, (50, 130)), x)
    np.testing.assert_array_equal(run(pairs_plan(call), x), expected)


@avx2
@pytest.mark.parametrize(
    "pair", [(64, 64), (127, 1), (-64, -64), (-127, -1), (-128, 0), (65, 64), (-128, -1)]
)
def test_pairs_at_the_limit_are_exact(pair: tuple[int, int]) -> None:
    weights = np.tile(np.array(pair, "int8"), (16, 32))
    call, x, expected = dense_call(weights, np.full((2, 64), 255, "uint8"))
    np.testing.assert_array_equal(run(pairs_plan(call), x), expected)


def test_weights_decide_on_the_instruction() -> None:
    chosen = {}
    for kind in ("small", "normal", "highest", "uniform"):
        conv, _, _ = conv_call(weights_of(kind, (32, 3, 3, 64)))
        dense, _, _ = dense_call(weights_of(kind, (32, 576)), np.zeros((4, 576), "uint8"))
        plans = [x86_conv.fastest(conv, TARGET), x86_dense.fastest(dense, TARGET)]
        chosen[kind] = {plan.isa for plan in plans if plan is not None}
    assert chosen == {"small": {PAIRS}, "normal": {PAIRS}, "highest": {AVX2}, "uniform": {AVX2}}


def test_signed_activations_are_widened() -> None:
    call, _, _ = conv_call(weights_of("small", (32, 3, 3, 64)))
    signed = replace(call, args=(TensorSpec(call.args[0].shape, "int8"), *call.args[1:]))
    plan = x86_conv.fastest(signed, TARGET)
    assert plan is not None and plan.isa is AVX2


def test_the_instructions_are_there() -> None:
    call, _, _ = dense_call(weights_of("small", (32, 64)), np.zeros((4, 64), "uint8"))
    implementation = x86_dense.rule(call, TARGET)
    assert implementation is not None
    func = implementation.func.with_attr("global_symbol", "main")
    text = tvm.tirx.build(tvm.IRModule({"main": func}), target=TARGET).inspect_source("asm")
    assert all(name in text for name in ("vpmaddubsw", "vpaddw", "vpmaddwd", "vpaddd"))


def test_similar_layers_share_their_code() -> None:
    functions = []
    for seed in (1, 2):
        call, _, _ = conv_call(weights_of("small", (32, 3, 3, 16), seed))
        implementation = x86_conv.rule(call, TARGET)
        assert implementation is not None
        functions.append(implementation.func)
    tvm.ir.assert_structural_equal(*functions)
