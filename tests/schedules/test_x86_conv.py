"""Generated x86 convolutions against the oracle: integers exactly, floats to rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.attrs import KERNEL, PARAMS, Implementation, KernelCall, TensorSpec, encode_params
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array
from tvm_qplugin.schedules import x86_conv
from tvm_qplugin.schedules.x86_isa import TABLE, select_isa
from tvm_qplugin.schedules.x86_tiles import Tile, fits

TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "avx2": ({"mcpu": "haswell"}, "avx2"),
    "avxvnni256": ({"mcpu": "x86-64-v3", "mattr": ["+avxvnni"]}, "avx_vnni"),
    "vnni512": ({"mcpu": "icelake-server"}, "avx512_vnni"),
    "f32_256": ({"mcpu": "haswell"}, "fma"),
    "f32_512": ({"mcpu": "skylake-avx512"}, "avx512f"),
}


def runnable(*names: str) -> list[Any]:
    """The named instruction sets; those that this CPU lacks as skipped parameters."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return [
        pytest.param(
            name, marks=pytest.mark.skipif(TARGETS[name][1] not in flags, reason=f"CPU has no {name}")
        )
        for name in names
    ]


INTEGER = runnable("avx2", "avxvnni256", "vnni512")
FLOAT = runnable("f32_256", "f32_512")


def target_of(name: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "num-cores": 2, **TARGETS[name][0]})


def make_call(
    height: int = 7,
    width: int = 7,
    channels: int = 16,
    out_channels: int = 16,
    kernel: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, ...] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    batch: int = 1,
    in_halo: tuple[int, ...] = (0, 0, 0, 0),
    out_halo: tuple[int, ...] = (0, 0, 0, 0),
    dtype: str = "uint8",
    out_dtype: str = "uint8",
    in_zp: int = 7,
    out_zp: int = 11,
    clamp: tuple[int, int] | None = None,
    factor: float = 1.0,
    seed: int = 0,
    values: Mapping[str, Array] | None = None,
) -> tuple[KernelCall, Array, Array]:
    """(call, physical input, expected physical output); ``values`` overrides random x, w, b, m."""
    r = np.random.default_rng(seed)
    lo, hi = INTEGER_RANGE[dtype]
    w_shape = (out_channels, *kernel, channels // groups)
    arrays = {
        "x": r.integers(lo, hi + 1, (batch, height, width, channels)).astype(dtype),
        "w": r.integers(-127, 128, w_shape).astype("int8"),
        "b": r.integers(-1000, 1000, out_channels).astype("int32"),
        "m": (r.uniform(0.5, 1.5, out_channels) * factor / np.sqrt(np.prod(w_shape[1:])) / 120).astype(
            "float32"
        ),
        **(values or {}),
    }
    bounds = clamp or INTEGER_RANGE[out_dtype]
    params = {
        "strides": list(strides), "padding": list(padding), "dilation": list(dilation), "groups": groups,
        "in_zp": in_zp, "out_zp": out_zp, "lo": bounds[0], "hi": bounds[1],
    }  # fmt: skip
    x, *constants = arrays.values()
    expected = ORACLE["qconv2d"](params, x, *constants, out_dtype)
    return finish("qconv2d", params, x, constants, expected, in_halo, out_halo)


def finish(
    name: str,
    params: dict[str, Any],
    x: Array,
    constants: list[Array],
    expected: Array,
    in_halo: tuple[int, ...],
    out_halo: tuple[int, ...],
) -> tuple[KernelCall, Array, Array]:
    x = surround(x, in_halo, params.get("in_zp", 0))
    expected = surround(expected, out_halo, params.get("out_zp", 0))
    halos = {"in_halo": in_halo, "out_halo": out_halo}
    params = params | {key: list(halo) for key, halo in halos.items() if any(halo)}
    specs = tuple(TensorSpec(a.shape, str(a.dtype)) for a in (x, *constants))
    out = TensorSpec(expected.shape, str(expected.dtype))
    return KernelCall(name, params, specs, out, dict(enumerate(constants, 1))), x, expected


def surround(x: Array, halo: tuple[int, ...], value: int) -> Array:
    top, left, bottom, right = halo
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def run(implementation: Implementation | None, x: Array, out: TensorSpec, target: tvm.target.Target) -> Array:
    assert implementation is not None
    func = implementation.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=target)
    arrays = [x if isinstance(a, int) else a for a in implementation.args]
    garbage = np.full(out.shape, 99, out.dtype)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (*arrays, garbage)]
    library["main"](*tensors)
    return np.asarray(tensors[-1].numpy())


def check(isa: str, **settings_: Any) -> None:
    if isa != "avx2":
        settings_["dtype"] = "uint8"
    call, x, expected = make_call(**settings_)
    np.testing.assert_array_equal(
        run(x86_conv.rule(call, target_of(isa)), x, call.out, target_of(isa)), expected
    )


def halos(largest: int = 2) -> st.SearchStrategy[tuple[int, ...]]:
    some = st.tuples(*[st.integers(0, largest)] * 4)
    return st.one_of(st.just((0, 0, 0, 0)), some)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    dtype = draw(st.sampled_from(["uint8", "int8"]))
    out_dtype = draw(st.sampled_from(["uint8", "int8"]))
    lo, hi = INTEGER_RANGE[out_dtype]
    clamp = sorted(draw(st.tuples(st.integers(lo, hi), st.integers(lo, hi))))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    return {
        "height": draw(st.integers(1, 12)), "width": draw(st.integers(1, 40)),
        "channels": groups * draw(st.integers(1, 40)), "out_channels": groups * draw(st.integers(1, 70)),
        "kernel": draw(pair), "strides": draw(pair),
        "dilation": draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 3)])),
        "padding": draw(halos()), "in_halo": draw(halos()), "out_halo": draw(halos()),
        "groups": groups, "batch": draw(st.integers(1, 3)), "dtype": dtype, "out_dtype": out_dtype,
        "in_zp": draw(st.integers(*INTEGER_RANGE[dtype])), "out_zp": draw(st.integers(lo, hi)),
        "clamp": draw(st.sampled_from([None, tuple(clamp)])), "seed": draw(st.integers(0, 1000)),
        "factor": draw(st.sampled_from([0.1, 1.0, 10.0, 1e9])),
    }  # fmt: skip


def has_output(p: Mapping[str, Any]) -> bool:
    size = (p["height"] + p["padding"][0] + p["padding"][2], p["width"] + p["padding"][1] + p["padding"][3])
    return all(s >= (k - 1) * d + 1 for s, k, d in zip(size, p["kernel"], p["dilation"], strict=True))


@pytest.mark.parametrize("isa", INTEGER)
@pytest.mark.parametrize("factor", [1.0, 300.0, 1e9])
@pytest.mark.parametrize("out_channels", [5, 48])
def test_bytes_to_int16(isa: str, factor: float, out_channels: int) -> None:
    check(isa, out_channels=out_channels, out_dtype="int16", out_zp=0, factor=factor, out_halo=(0, 1, 2, 0))


@pytest.mark.parametrize("isa", INTEGER)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(problem=problems())
def test_any_convolution_equals_the_oracle(isa: str, problem: dict[str, Any]) -> None:
    assume(has_output(problem))
    depthwise = problem["groups"] == problem["channels"] and problem["groups"] > 1
    assume(not depthwise)
    if isa != "avx2":
        problem = problem | {"dtype": "uint8", "in_zp": problem["in_zp"] % 256}
    check(isa, **problem)


def layer(
    h: int, w: int, c: int, o: int, kh: int = 1, kw: int = 1, stride: int = 1, **more: Any
) -> dict[str, Any]:
    shape = {"height": h, "width": w, "channels": c, "out_channels": o}
    return {**shape, "kernel": (kh, kw), "strides": (stride, stride), **more}


SAME = (1, 1, 1, 1)
SHAPES: dict[str, dict[str, Any]] = {
    "mobilenet stem": layer(64, 112, 3, 32, 3, 3, 2, padding=(0, 0, 1, 1), out_halo=SAME),
    "resnet stem": layer(32, 112, 3, 64, 7, 7, 2, padding=(2, 2, 3, 3)),
    "stem with halo": layer(32, 112, 3, 32, 3, 3, 2, padding=(0, 0, 1, 1), in_halo=(0, 0, 1, 1)),
    "mobilenet_v1 1x1": layer(14, 14, 512, 512),
    "mobilenet_v1 last": layer(7, 7, 1024, 1024),
    "mobilenet_v2 project 112": layer(56, 112, 32, 16),
    "mobilenet_v2 expand 112": layer(30, 112, 16, 96, out_halo=SAME),
    "mobilenet_v2 expand 56": layer(56, 56, 24, 144, out_halo=SAME),
    "mobilenet_v2 project 14": layer(14, 14, 576, 96, in_halo=SAME),
    "mobilenet_v2 expand 7": layer(7, 7, 160, 960, out_halo=(0, 0, 1, 1)),
    "mobilenet_v2 classes": layer(1, 1, 1280, 1001),
    "resnet 3x3": layer(14, 14, 128, 128, 3, 3, padding=SAME),
    "resnet 3x3 with halo": layer(56, 56, 64, 64, 3, 3, padding=SAME, in_halo=SAME),
    "resnet down": layer(28, 28, 64, 128, stride=2),
    "inception 1x7": layer(17, 17, 64, 192, 1, 7, padding=(0, 3, 0, 3)),
    "inception 7x1": layer(17, 17, 64, 192, 7, 1, padding=(3, 0, 3, 0)),
    "inception 5x5": layer(35, 35, 48, 64, 5, 5, padding=(2, 2, 2, 2)),
    "inception 1x1": layer(35, 35, 288, 48),
    "inception down": layer(17, 17, 192, 320, 3, 3, 2),
    "resnext group": layer(14, 14, 64, 64, 3, 3, padding=SAME, groups=16),
    "regnet group": layer(14, 14, 48, 48, 3, 3, 2, padding=SAME, groups=6),
    "groups of two": layer(9, 9, 64, 64, 3, 3, padding=SAME, groups=32, out_halo=SAME),
    "groups of unlike sizes": layer(9, 9, 24, 30, 3, 3, padding=SAME, groups=6, in_halo=SAME),
    "two groups": layer(9, 9, 16, 10, groups=2, batch=2),
    "shufflenet group": layer(14, 14, 60, 60, groups=3),
    "atrous": layer(14, 14, 32, 32, 3, 3, padding=(2, 2, 2, 2), dilation=(2, 2)),
    "one channel": layer(28, 28, 1, 6, 5, 5, padding=(2, 2, 2, 2)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", INTEGER)
def test_layers_of_known_networks(isa: str, shape: str) -> None:
    check(isa, **SHAPES[shape])


FULL = np.full((1, 7, 7, 16), 255, "uint8")
EXTREMES: dict[str, dict[str, Any]] = {
    "largest sums": {"values": {"x": FULL, "w": np.full((16, 3, 3, 16), -127, "int8")}},
    "largest positive sums": {"values": {"x": FULL, "w": np.full((16, 3, 3, 16), 127, "int8")}, "in_zp": 0},
    "smallest multiplier": {"factor": 1e-30},
    "multiplier above one": {"factor": 1000.0},
    "beyond int32 both ways": {"factor": 1e12, "out_zp": 255},
    "infinite product": {"values": {"m": np.full(16, 3e38, "float32")}},
    "lowest bias": {"values": {"b": np.full(16, -(2**31) + 2**20, "int32")}},
    "highest bias": {"values": {"b": np.full(16, 2**31 - 2**20, "int32")}},
    "narrow clamp": {"clamp": (30, 31)},
    "empty clamp above": {"clamp": (255, 255)},
    "zero point zero": {"out_zp": 0, "in_zp": 0},
    "ties": {"values": {"m": np.full(16, 0.5, "float32")}, "kernel": (1, 1), "factor": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("isa", INTEGER)
def test_extreme_values(isa: str, extreme: str) -> None:
    check(isa, **{"kernel": (3, 3), **EXTREMES[extreme]})


@pytest.mark.parametrize("isa", FLOAT)
@pytest.mark.parametrize("bounds", [(None, None), (0.0, None), (0.0, 6.0)])
@pytest.mark.parametrize(
    "shape", ["mobilenet stem", "mobilenet_v2 project 14", "inception down", "shufflenet group"]
)
def test_float_convolution(isa: str, shape: str, bounds: tuple[float | None, float | None]) -> None:
    call, x, expected = float_call(bounds, **SHAPES[shape])
    got = run(x86_conv.rule(call, target_of(isa)), x, call.out, target_of(isa))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def float_call(bounds: tuple[float | None, float | None], **shape: Any) -> tuple[KernelCall, Array, Array]:
    call, x, _ = make_call(
        **{**shape, "in_halo": (0, 0, 0, 0), "out_halo": (0, 0, 0, 0), "in_zp": 0, "out_zp": 0}
    )
    r = np.random.default_rng(0)
    x = r.standard_normal(x.shape).astype("float32")
    constants = [r.standard_normal(call.args[i].shape).astype("float32") for i in (1, 2)]
    params = dict(call.params) | {"lo": bounds[0], "hi": bounds[1]}
    expected = ORACLE["fconv2d"](params, x, *constants)
    return finish(
        "fconv2d",
        params,
        x,
        constants,
        expected,
        shape.get("in_halo", (0,) * 4),
        shape.get("out_halo", (0,) * 4),
    )


@pytest.mark.parametrize("isa", INTEGER)
@pytest.mark.parametrize(
    "tile", [Tile(5, 3, "om", 1, 1), Tile(6, 2, "mo", 2, 99), Tile(1, 1), Tile(3, 2, "om", 3)]
)
def test_every_tile_gives_the_same_numbers(isa: str, tile: Tile) -> None:
    call, x, expected = make_call(
        height=5, width=3, channels=9, out_channels=88, padding=(1, 1, 1, 1), batch=2
    )
    target = target_of(isa)
    np.testing.assert_array_equal(run(x86_conv.with_tile(call, target, tile), x, call.out, target), expected)


def prefetches(isa: str, shape: dict[str, Any]) -> int:
    call, _, _ = make_call(**shape)
    found = x86_conv.plan(call, target_of(isa))
    assert found is not None
    implementation = found.implement(replace(found.default(), order="om"))
    assert implementation is not None
    return implementation.func.script().count("llvm.prefetch")


@pytest.mark.parametrize("isa", ["avxvnni256", "vnni512"])
def test_weights_that_do_not_stay_in_cache_are_prefetched(isa: str) -> None:
    assert prefetches(isa, layer(7, 7, 256, 512)) > 0
    assert prefetches(isa, layer(7, 7, 64, 64)) == 0


def test_tiles_whose_weights_come_from_l2_use_them_often() -> None:
    call, _, _ = make_call(**layer(38, 38, 128, 128, 3, 3, padding=SAME))
    found = x86_conv.plan(call, target_of("vnni512"))
    assert found is not None and found.default().mt >= 4


@pytest.mark.parametrize("isa", list(TARGETS)[:3])
def test_candidates_start_with_the_default_and_fit_in_registers(isa: str) -> None:
    call, _, _ = make_call(**SHAPES["resnet 3x3"])
    tiles = x86_conv.candidates(call, target_of(isa))
    assert len(tiles) == len(set(tiles)) > 10
    assert {tile.order for tile in tiles} == {"om", "mo"}
    assert all(fits(TABLE[isa], tile.mt, tile.nt) for tile in tiles)


def test_kernel_is_tagged_as_scheduled() -> None:
    call, _, _ = make_call()
    implementation = x86_conv.rule(call, target_of("vnni512"))
    assert implementation is not None
    attrs = implementation.func.attrs
    assert attrs[KERNEL] == "qconv2d" and attrs[PARAMS] == encode_params(call.params)
    assert attrs["tirx.is_scheduled"] and attrs["tirx.noalias"]
    assert implementation.args[0] == 0


@pytest.mark.parametrize(
    ("change", "isa"),
    [
        ({"name": "qadd"}, "vnni512"),
        ({"constants": {}}, "vnni512"),
        ({"args": (TensorSpec((1, 7, 7, 16), "int8"),)}, "vnni512"),
        ({"params": {"groups": 16}}, "vnni512"),
    ],
)
def test_left_to_others(change: dict[str, Any], isa: str) -> None:
    call, _, _ = make_call()
    if "args" in change:
        change = {"args": (*change["args"], *call.args[1:])}
    if "params" in change:
        call, _, _ = make_call(groups=16)
        change = {}
    assert x86_conv.rule(replace(call, **change), target_of(isa)) is None


def test_portable_targets_are_left_to_others() -> None:
    call, _, _ = make_call()
    for spec in ({"kind": "llvm", "mcpu": "x86-64"}, {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}):
        assert x86_conv.rule(call, tvm.target.Target(spec)) is None


def test_instruction_set_follows_the_target_and_the_dtype() -> None:
    chosen = {name: select_isa("uint8", target_of(name)) for name in list(TARGETS)[:3]}
    assert {name: isa.name for name, isa in chosen.items() if isa} == {name: name for name in chosen}
    assert select_isa("int8", target_of("vnni512")) is None
    assert select_isa("int8", target_of("avx2")) is TABLE["avx2"]
    assert select_isa("int16", target_of("avx2")) is TABLE["i16_avx2"]
    assert select_isa("int32", target_of("avx2")) is None


def halved(call: KernelCall) -> tuple[KernelCall, KernelCall]:
    """The call with weights and biases rounded to float16: as float16, and as float32."""
    halves = {i: array.astype("float16") for i, array in call.constants.items()}
    wide = {i: array.astype("float32") for i, array in halves.items()}
    specs = [TensorSpec(array.shape, "float16") for array in halves.values()]
    return replace(call, constants=halves, args=(call.args[0], *specs)), replace(call, constants=wide)


@pytest.mark.parametrize("isa", FLOAT)
@pytest.mark.parametrize("shape", ["mobilenet stem", "mobilenet_v2 project 14", "shufflenet group"])
def test_weights_of_float16_give_the_same_numbers(isa: str, shape: str) -> None:
    """In half the bytes, and to the last bit."""
    call, x, _ = float_call((0.0, 6.0), **SHAPES[shape])
    made = [x86_conv.rule(c, target_of(isa)) for c in halved(call)]
    small, large = (run(implementation, x, call.out, target_of(isa)) for implementation in made)
    np.testing.assert_array_equal(small, large)
    assert 2 * made[0].args[1].nbytes == made[1].args[1].nbytes
