"""Generated x86 kernels of int16x8 against the oracle, exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import instruction_sets
import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from instruction_sets import runnable

from tvm_qplugin.core.attrs import Implementation, KernelCall, TensorSpec
from tvm_qplugin.core.fixed_point import reduced_factors
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules import x86_conv, x86_dense, x86_depthwise
from tvm_qplugin.schedules.x86_isa import TABLE
from tvm_qplugin.schedules.x86_rescale16 import Cut, cut_of, rescaling
from tvm_qplugin.schedules.x86_tiles import Tile, fits

TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "i16_avx2": ({"mcpu": "haswell"}, "avx2"),
    "i16_256": ({"mcpu": "x86-64-v3", "mattr": ["+avxvnni"]}, "avx_vnni"),
    "i16_512": ({"mcpu": "icelake-server"}, "avx512_vnni"),
}
LOW, HIGH = -32768, 32767
NONE = (0, 0, 0, 0)
SAME = (1, 1, 1, 1)
Rule = Callable[[KernelCall, tvm.target.Target], Implementation | None]


every_isa = pytest.mark.parametrize("isa", runnable(TARGETS))
target_of = partial(instruction_sets.target_of, TARGETS)


def convolution(
    height: int = 7,
    width: int = 7,
    channels: int = 16,
    out_channels: int = 16,
    kernel: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, ...] = NONE,
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    batch: int = 1,
    in_halo: tuple[int, ...] = NONE,
    out_halo: tuple[int, ...] = NONE,
    bounds: tuple[int, int] = (LOW, HIGH),
    factor: float = 1.0,
    bias: int = 2**20,
    seed: int = 0,
    values: Mapping[str, Array] | None = None,
) -> tuple[KernelCall, Array, Array]:
    """(call, physical input, expected physical output); ``values`` overrides random x, w, b, reals."""
    r = np.random.default_rng(seed)
    shape = (out_channels, *kernel, channels // groups)
    spread = factor / np.sqrt(np.prod(shape[1:])) / 128
    arrays = {
        "x": r.integers(LOW, HIGH + 1, (batch, height, width, channels)).astype("int16"),
        "w": r.integers(-127, 128, shape).astype("int8"),
        "b": r.integers(-bias, bias, out_channels).astype("int64"),
        "reals": np.minimum(r.uniform(0.5, 1.5, out_channels) * spread, 127.0),
        **(values or {}),
    }
    params = {
        "strides": list(strides), "padding": list(padding), "dilation": list(dilation), "groups": groups,
        "in_zp": 0, "out_zp": 0, "lo": bounds[0], "hi": bounds[1], "wide": True,
    }  # fmt: skip
    x, constants = arrays["x"], [arrays["w"], arrays["b"], *reduced_factors(arrays["reals"])]
    expected = surround(ORACLE["qconv2d16"](params, x, *constants, "int16"), out_halo)
    halos = {"in_halo": list(in_halo), "out_halo": list(out_halo)}
    params |= {name: halo for name, halo in halos.items() if any(halo)}
    return finish("qconv2d16", params, surround(x, in_halo), constants, expected)


def dense(
    shape: tuple[int, ...],
    features: int,
    bounds: tuple[int, int] = (LOW, HIGH),
    bias: int = 2**20,
    seed: int = 0,
    values: Mapping[str, Array] | None = None,
) -> tuple[KernelCall, Array, Array]:
    r = np.random.default_rng(seed)
    arrays = {
        "x": r.integers(LOW, HIGH + 1, shape).astype("int16"),
        "w": r.integers(-127, 128, (features, shape[-1])).astype("int8"),
        "b": r.integers(-bias, bias, features).astype("int64"),
        "reals": r.uniform(0.5, 1.5, features) / np.sqrt(shape[-1]) / 128,
        **(values or {}),
    }
    params = {"in_zp": 0, "out_zp": 0, "lo": bounds[0], "hi": bounds[1], "wide": True}
    x, *constants = arrays.values()
    return finish("qdense16", params, x, constants, ORACLE["qdense16"](params, x, *constants, "int16"))


def finish(
    name: str, params: Mapping[str, Any], x: Array, constants: list[Array], expected: Array
) -> tuple[KernelCall, Array, Array]:
    specs = tuple(TensorSpec(a.shape, str(a.dtype)) for a in (x, *constants))
    out = TensorSpec(expected.shape, "int16")
    return KernelCall(name, params, specs, out, dict(enumerate(constants, 1))), x, expected


def surround(x: Array, halo: tuple[int, ...]) -> Array:
    top, left, bottom, right = halo
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


def run(implementation: Implementation | None, x: Array, out: TensorSpec, target: tvm.target.Target) -> Array:
    assert implementation is not None
    func = implementation.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=target)
    arrays = [x if isinstance(a, int) else a for a in implementation.args]
    garbage = np.full(out.shape, 99, out.dtype)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (*arrays, garbage)]
    library["main"](*tensors)
    return np.asarray(tensors[-1].numpy())


def check(isa: str, rule: Rule, problem: tuple[KernelCall, Array, Array]) -> None:
    call, x, expected = problem
    target = target_of(isa)
    np.testing.assert_array_equal(run(rule(call, target), x, call.out, target), expected)


def halos(largest: int = 2) -> st.SearchStrategy[tuple[int, ...]]:
    return st.one_of(st.just(NONE), st.tuples(*[st.integers(0, largest)] * 4))


@st.composite
def problems(draw: st.DrawFn, depthwise: bool) -> dict[str, Any]:
    groups = draw(st.integers(2, 70)) if depthwise else draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels = groups * (1 if depthwise else draw(st.integers(1, 40)))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    bounds = sorted(draw(st.tuples(st.integers(LOW, HIGH), st.integers(LOW, HIGH))))
    return {
        "height": draw(st.integers(1, 12)), "width": draw(st.integers(1, 40)), "channels": channels,
        "out_channels": channels if depthwise else groups * draw(st.integers(1, 70)),
        "kernel": draw(st.tuples(st.integers(1, 5), st.integers(1, 5)) if depthwise else pair),
        "strides": draw(pair), "dilation": draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 3)])),
        "padding": draw(halos()), "in_halo": draw(halos()), "out_halo": draw(halos()),
        "groups": groups, "batch": draw(st.integers(1, 3)), "seed": draw(st.integers(0, 1000)),
        "bounds": draw(st.sampled_from([(LOW, HIGH), (0, HIGH), tuple(bounds)])),
        "factor": draw(st.sampled_from([1e-6, 0.1, 1.0, 10.0, 1e5])),
        "bias": draw(st.sampled_from([2**10, 2**30, 2**44])),
    }  # fmt: skip


def has_output(p: Mapping[str, Any]) -> bool:
    size = (p["height"] + p["padding"][0] + p["padding"][2], p["width"] + p["padding"][1] + p["padding"][3])
    return all(s >= (k - 1) * d + 1 for s, k, d in zip(size, p["kernel"], p["dilation"], strict=True))


FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


@every_isa
@FEW
@given(problem=problems(depthwise=False))
def test_any_convolution_equals_the_oracle(isa: str, problem: dict[str, Any]) -> None:
    assume(has_output(problem) and not problem["groups"] == problem["channels"] > 1)
    check(isa, x86_conv.rule, convolution(**problem))


@every_isa
@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([(), (1,), (5,), (2, 3)]), st.integers(1, 90), st.integers(1, 90), st.integers(0, 1000),
    st.sampled_from([2**10, 2**30, 2**44]),
)  # fmt: skip
def test_any_dense_layer_equals_the_oracle(
    isa: str, rows: tuple[int, ...], depth: int, features: int, seed: int, bias: int
) -> None:
    bounds = [(LOW, HIGH), (0, HIGH), (-7, 12_345)][seed % 3]
    check(isa, x86_dense.rule, dense((*rows, depth), features, bounds, bias, seed))


def layer(
    h: int, w: int, c: int, o: int, kh: int = 1, kw: int = 1, stride: int = 1, **more: Any
) -> dict[str, Any]:
    shape = {"height": h, "width": w, "channels": c, "out_channels": o}
    return {**shape, "kernel": (kh, kw), "strides": (stride, stride), **more}


SHAPES: dict[str, dict[str, Any]] = {
    "mobilenet stem": layer(64, 112, 3, 32, 3, 3, 2, padding=(0, 0, 1, 1), out_halo=SAME),
    "mobilenet_v1 1x1": layer(14, 14, 512, 512),
    "mobilenet_v2 expand 56": layer(56, 56, 24, 144, out_halo=SAME),
    "mobilenet_v2 project 14": layer(14, 14, 576, 96, in_halo=SAME),
    "resnet 3x3": layer(14, 14, 128, 128, 3, 3, padding=SAME),
    "wide 3x3": layer(7, 7, 512, 64, 3, 3, padding=SAME),
    "wide 1x1": layer(7, 7, 2048, 64),
    "inception 1x7": layer(17, 17, 64, 192, 1, 7, padding=(0, 3, 0, 3)),
    "inception 1x1": layer(35, 35, 288, 48),
    "resnext group": layer(14, 14, 64, 64, 3, 3, padding=SAME, groups=16),
    "regnet group": layer(14, 14, 48, 48, 3, 3, 2, padding=SAME, groups=6),
    "groups of two": layer(9, 9, 64, 64, 3, 3, padding=SAME, groups=32, out_halo=SAME),
    "groups of unlike sizes": layer(9, 9, 24, 30, 3, 3, padding=SAME, groups=6, in_halo=SAME),
    "two groups": layer(9, 9, 16, 10, groups=2, batch=2),
    "groups of large sums": layer(
        25, 25, 16, 16, 21, 21, groups=4, values={"w": np.full((16, 21, 21, 4), 127, "int8")}
    ),
    "atrous": layer(14, 14, 32, 32, 3, 3, padding=(2, 2, 2, 2), dilation=(2, 2)),
}


@pytest.mark.parametrize("shape", SHAPES)
@every_isa
def test_layers_of_known_networks(isa: str, shape: str) -> None:
    check(isa, x86_conv.rule, convolution(**SHAPES[shape]))


LOWEST, HIGHEST = (np.full((1, 7, 7, 16), code, "int16") for code in (LOW, HIGH))
EXTREMES: dict[str, dict[str, Any]] = {
    "largest sum": {"values": {"x": LOWEST, "w": np.full((16, 3, 3, 16), -128, "int8")}},
    "smallest sum": {"values": {"x": LOWEST, "w": np.full((16, 3, 3, 16), 127, "int8")}},
    "other smallest sum": {"values": {"x": HIGHEST, "w": np.full((16, 3, 3, 16), -128, "int8")}},
    "smallest multiplier": {"values": {"reals": np.full(16, 2.0**-32)}},
    "no multiplier": {"values": {"reals": np.full(16, 2.0**-40)}},
    "largest multiplier": {"values": {"reals": np.full(16, 127.9)}},
    "multipliers of all sizes": {"values": {"reals": 2.0 ** np.arange(-33, 7)}, "out_channels": 40},
    "bias at int32": {"values": {"b": np.array([2**31 - 1, -(2**31)] * 8)}},
    "bias beyond": {"values": {"b": np.array([2**45, -(2**45)] * 8), "reals": np.full(16, 2.0**-30)}},
    "narrow bounds": {"bounds": (30, 31)},
    "one code": {"bounds": (LOW, LOW)},
}  # fmt: skip


@pytest.mark.parametrize("extreme", EXTREMES)
@every_isa
def test_extreme_values(isa: str, extreme: str) -> None:
    check(isa, x86_conv.rule, convolution(**EXTREMES[extreme]))


def accumulators() -> tuple[Array, Array, Array]:
    """Input and weights of 1x1 convolutions and biases whose sums reach int32's ends, ties and zero."""
    x = np.zeros((1, 64, 64, 2), "int16")
    x[..., 0] = np.random.default_rng(0).integers(LOW, HIGH + 1, (64, 64))
    x[..., 1] = np.arange(64) - 32
    rest = 2**31 - 1 - 32768 * 2
    bias = np.array(
        [rest, -rest, 0, 1, -1, 2**16, -(2**16), 2**16 - 1, rest // 2, -rest // 2, 7, 3, 5, -3, 0, 0]
    )
    return x, np.tile(np.array([1, 1], "int8"), (16, 1)).reshape(16, 1, 1, 2), bias


@pytest.mark.parametrize("exponent", [-1, -2, -3, -7, -16, -17, -25, -31])
@pytest.mark.parametrize("mantissa", [1.0, 1.5, 1.99996])
@every_isa
def test_ends_of_int32_and_ties(isa: str, exponent: int, mantissa: float) -> None:
    x, w, bias = accumulators()
    values = {"x": x, "w": w, "b": bias, "reals": np.full(16, mantissa * 2.0 ** (exponent - 1))}
    problem = convolution(64, 64, 2, 16, (1, 1), values=values)
    assert "low" in rescaling(problem[0]).channels or exponent > -2
    check(isa, x86_conv.rule, problem)


@every_isa
def test_dense_rounds_ties_away_from_zero(isa: str) -> None:
    x = np.arange(-50, 50, dtype="int16").reshape(100, 1)
    values = {
        "x": x,
        "w": np.ones((3, 1), "int8"),
        "b": np.array([0, 1, 2**40]),
        "reals": np.array([0.5, 0.25, 2.0**-26]),
    }
    check(isa, x86_dense.rule, dense((100, 1), 3, values=values))


FORMS = {
    "short": ({}, {"bias", "low", "high", "round", "shift"}),
    "long": ({"bias": 2**40}, {"bias", "offset", "factor", "round", "shift"}),
    "multiplier of 127": ({"factor": 1e5}, {"bias", "offset", "factor", "round", "shift"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_form_follows_from_the_constants(form: str) -> None:
    settings_, sections = FORMS[form]
    assert set(rescaling(convolution(channels=100, **settings_)[0]).channels) == sections


def test_sums_are_cut_no_finer_than_needed() -> None:
    def cut(rows: int, span: int, value: int = 127) -> Cut | None:
        return cut_of(np.full((1, rows, span), value, "int8"), rows, rows, span, 2)

    assert cut(3, 168) is None
    assert cut(3, 512) == Cut(True)
    assert cut(3, 1032) == Cut(False, 2)
    assert cut(3, 1034) == Cut(False, 3)
    assert cut(1, 516) is None
    assert cut(1, 517) == Cut(False, 2)
    assert cut(1, 512, -128) == Cut(False, 2)


@every_isa
@pytest.mark.parametrize(
    "tile", [Tile(5, 3, "om", 1, 1), Tile(6, 2, "mo", 2, 99), Tile(1, 1), Tile(3, 2, "om", 3)]
)
@pytest.mark.parametrize("value", [1, 127])
def test_every_tile_gives_the_same_numbers(isa: str, tile: Tile, value: int) -> None:
    w = np.random.default_rng(0).choice([-value, value], (88, 3, 3, 61)).astype("int8")
    call, x, expected = convolution(5, 3, 61, 88, padding=SAME, batch=2, values={"w": w}, bias=10)
    target = target_of(isa)
    np.testing.assert_array_equal(run(x86_conv.with_tile(call, target, tile), x, call.out, target), expected)


@pytest.mark.parametrize("isa", TARGETS)
def test_candidates_start_with_the_default_and_fit_in_registers(isa: str) -> None:
    call, _, _ = convolution(**SHAPES["resnet 3x3"])
    tiles = x86_conv.candidates(call, target_of(isa))
    assert len(tiles) == len(set(tiles)) > 10
    assert all(fits(TABLE[isa], tile.mt, tile.nt) for tile in tiles)


def test_left_to_the_portable_kernel() -> None:
    call, _, _ = convolution()
    portable = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"})
    assert x86_conv.rule(call, portable) is None
    assert x86_conv.rule(replace(call, constants={}), target_of("i16_512")) is None


@every_isa
@FEW
@given(problem=problems(depthwise=True))
def test_any_depthwise_convolution_equals_the_oracle(isa: str, problem: dict[str, Any]) -> None:
    assume(has_output(problem))
    call, x, expected = convolution(**problem)
    target = target_of(isa)
    found = x86_depthwise.rule(call, target)
    if found is not None:
        np.testing.assert_array_equal(run(found, x, call.out, target), expected)


def depthwise(h: int, w: int, c: int, k: int = 3, stride: int = 1, **more: Any) -> dict[str, Any]:
    return layer(h, w, c, c, k, k, stride, groups=c, **more)


DEPTHWISE: dict[str, dict[str, Any]] = {
    "mobilenet 112": depthwise(30, 112, 32, padding=SAME),
    "mobilenet 112 with halo": depthwise(30, 112, 64, padding=SAME, in_halo=SAME, out_halo=SAME),
    "mobilenet down": depthwise(56, 56, 128, stride=2, padding=(0, 0, 1, 1)),
    "mobilenet_v2 down": depthwise(56, 56, 144, stride=2, padding=(0, 0, 1, 1)),
    "mobilenet_v2 28": depthwise(28, 28, 192, padding=SAME),
    "mobilenet 7": depthwise(7, 7, 960, padding=SAME),
    "24 channels": depthwise(20, 20, 24, padding=SAME),
    "72 channels down": depthwise(20, 20, 72, stride=2, padding=SAME),
    "5x5": depthwise(14, 14, 96, 5, padding=(2, 2, 2, 2)),
    "5x5 down": depthwise(14, 14, 40, 5, 2, padding=(2, 2, 2, 2)),
    "7x7": depthwise(14, 14, 64, 7, padding=(3, 3, 3, 3)),
    "15x15": depthwise(20, 20, 32, 15, padding=(7, 7, 7, 7)),
    "atrous": depthwise(14, 14, 96, padding=(2, 2, 2, 2), dilation=(2, 2)),
    "two outputs of a channel": layer(28, 28, 32, 64, 3, 3, padding=SAME, groups=32),
    "eight down": layer(20, 20, 5, 40, 3, 3, 2, padding=SAME, groups=5),
    "large bias": depthwise(14, 14, 96, padding=SAME, bias=2**44),
}


@pytest.mark.parametrize("shape", DEPTHWISE)
@every_isa
def test_depthwise_layers_of_known_networks(isa: str, shape: str) -> None:
    check(isa, x86_depthwise.rule, convolution(**DEPTHWISE[shape]))


@pytest.mark.parametrize("extreme", EXTREMES)
@every_isa
def test_extreme_values_by_channel(isa: str, extreme: str) -> None:
    chosen = {"channels": 16, "groups": 16, **EXTREMES[extreme]}
    values = dict(chosen.get("values", {}))
    if "w" in values:
        values["w"] = values["w"][..., :1]
    if chosen.pop("out_channels", None):
        values["reals"] = values["reals"][24:]
    chosen["values"] = values
    check(isa, x86_depthwise.rule, convolution(**chosen))


@every_isa
def test_every_configuration_gives_the_same_numbers(isa: str) -> None:
    for shape in ("72 channels down", "5x5 down", "atrous"):
        call, x, expected = convolution(**DEPTHWISE[shape])
        target = target_of(isa)
        for config in x86_depthwise.candidates(call, target):
            got = run(x86_depthwise.with_config(call, target, config), x, call.out, target)
            np.testing.assert_array_equal(got, expected)
