"""Generated x86 depthwise convolutions against the oracle: integers exactly, floats to rounding."""

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

from tvm_qplugin.core.attrs import KERNEL, PARAMS, Implementation, KernelCall, TensorSpec, decode_params
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array
from tvm_qplugin.schedules import x86_depthwise
from tvm_qplugin.schedules.x86_depthwise_plan import weight_plan, window
from tvm_qplugin.schedules.x86_isa import TABLE

FLAGS = {
    "znver4": "avx512_vnni",
    "alderlake": "avx_vnni",
    "haswell": "fma",
}
SOME = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MOBILENET_V1 = [
    (112, 32, 1),
    (112, 64, 2),
    (56, 128, 1),
    (28, 256, 2),
    (14, 512, 1),
    (14, 512, 2),
    (7, 1024, 1),
]
MOBILENET_V2 = [
    (112, 96, 2),
    (56, 144, 1),
    (56, 144, 2),
    (28, 192, 1),
    (28, 192, 2),
    (14, 384, 1),
    (14, 576, 1),
    (14, 576, 2),
    (7, 960, 1),
]


def runnable() -> list[Any]:
    """CPU models, those that this machine cannot imitate as skipped parameters."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    skip = pytest.mark.skipif
    return [pytest.param(m, marks=skip(f not in flags, reason=f"CPU has no {f}")) for m, f in FLAGS.items()]


CPUS = runnable()


def target_of(cpu: str, cores: int = 2) -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu, "num-cores": cores})


def make_call(
    height: int = 7,
    width: int = 7,
    channels: int = 64,
    repeat: int = 1,
    kernel: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, ...] = (1, 1, 1, 1),
    dilation: tuple[int, int] = (1, 1),
    batch: int = 1,
    in_halo: tuple[int, ...] = (0, 0, 0, 0),
    out_halo: tuple[int, ...] = (0, 0, 0, 0),
    dtype: str = "uint8",
    out_dtype: str | None = None,
    zero_points: tuple[int, int] = (7, 11),
    clamp: tuple[int, int] | None = None,
    factor: float = 1.0,
    values: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> tuple[KernelCall, Array, Array]:
    """(call, physical input, expected physical output); ``values`` overrides random x, w, b, m."""
    r = np.random.default_rng(seed)
    out_dtype = out_dtype or dtype
    integer = dtype != "float32"
    w_shape = (outputs := channels * repeat, *kernel, 1)
    x_shape = (batch, height, width, channels)
    params: dict[str, Any] = {
        "strides": list(strides), "padding": list(padding), "dilation": list(dilation), "groups": channels,
    }  # fmt: skip
    if integer:
        lo, hi = INTEGER_RANGE[dtype]
        arrays = {
            "x": r.integers(lo, hi + 1, x_shape).astype(dtype),
            "w": r.integers(-127, 128, w_shape).astype("int8"),
            "b": r.integers(-1000, 1000, outputs).astype("int32"),
            "m": (r.uniform(0.5, 1.5, outputs) * factor / 120).astype("float32"),
        }
        bounds = clamp or INTEGER_RANGE[out_dtype]
        params |= {"in_zp": zero_points[0], "out_zp": zero_points[1], "lo": bounds[0], "hi": bounds[1]}
    else:
        shapes = {"x": x_shape, "w": w_shape, "b": (outputs,)}
        arrays = {k: r.standard_normal(s).astype("float32") for k, s in shapes.items()}
        params |= {"lo": None, "hi": None} if clamp is None else {"lo": clamp[0], "hi": clamp[1]}
    arrays |= values or {}
    name = "qconv2d" if integer else "fconv2d"
    x, *constants = arrays.values()
    expected = ORACLE[name](params, x, *constants, out_dtype)
    x = padded(x, in_halo, zero_points[0] if integer else 0)
    expected = padded(expected, out_halo, zero_points[1] if integer else 0)
    params |= {"in_halo": list(in_halo), "out_halo": list(out_halo)}
    specs = tuple(TensorSpec(a.shape, str(a.dtype)) for a in (x, *constants))
    known = dict(enumerate(constants, 1))
    return KernelCall(name, params, specs, TensorSpec(expected.shape, out_dtype), known), x, expected


def padded(x: Array, halo: tuple[int, ...], value: int) -> Array:
    t, left, b, r = halo
    return np.pad(x, ((0, 0), (t, b), (left, r), (0, 0)), constant_values=value)


def run(implementation: Implementation, target: tvm.target.Target, x: Array, expected: Array) -> Array:
    func = implementation.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=target)
    assert implementation.args[0] == 0
    out = tvm.runtime.tensor(np.full(expected.shape, 99, expected.dtype))
    constants = [tvm.runtime.tensor(np.asarray(a)) for a in implementation.args[1:]]
    library["main"](tvm.runtime.tensor(x), *constants, out)
    return np.asarray(out.numpy())


def verify(cpu: str, **shape: Any) -> None:
    """The rule's kernel computes the oracle's numbers."""
    call, x, expected = make_call(**shape)
    implementation = x86_depthwise.rule(call, target_of(cpu))
    assert implementation is not None
    got = run(implementation, target_of(cpu), x, expected)
    if expected.dtype == np.float32:
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(got, expected)


@st.composite
def shapes(draw: st.DrawFn, dtypes: tuple[str, ...]) -> dict[str, Any]:
    """Any call that the rule is meant to serve."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    def four(high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(0, high), min_size=4, max_size=4)))

    size, padding = pair(1, 13), four(3)
    kernel = draw(st.sampled_from([(3, 3), pair(1, 7)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]))
    dtype = draw(st.sampled_from(dtypes))
    for axis in (0, 1):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        assume(size[axis] + padding[axis] + padding[axis + 2] >= reach)
    return {
        "height": size[0],
        "width": size[1],
        "channels": draw(st.sampled_from([64, 128, 192, 32, 96, 144, 24, 8, 16, 48, 100, 65])),
        "repeat": draw(st.sampled_from([1, 1, 2, 3])),
        "kernel": kernel,
        "strides": draw(st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 1)])),
        "padding": padding,
        "dilation": dilation,
        "batch": draw(st.integers(1, 2)),
        "in_halo": draw(st.sampled_from([(0, 0, 0, 0), padding, four(3)])),
        "out_halo": draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), four(2)])),
        "dtype": dtype,
        "seed": draw(st.integers(0, 99)),
    }


def served(cpu: str, shape: dict[str, Any]) -> bool:
    """Rows shorter than a vector of the narrowest instruction set are left to the portable kernel."""
    width, channels = make_call(**shape)[2].shape[2:]
    inner = width - shape["out_halo"][1] - shape["out_halo"][3]
    return bool(inner * channels >= 32)


@pytest.mark.parametrize("cpu", CPUS)
@SOME
@given(data=st.data())
def test_any_integer_call(cpu: str, data: st.DataObject) -> None:
    shape = data.draw(shapes(("uint8", "int8") if cpu == "haswell" else ("uint8",)))
    out_dtype = data.draw(st.sampled_from(["uint8", "int8", "int16"]))
    zero_in, code = (st.integers(*INTEGER_RANGE[d]) for d in (shape["dtype"], out_dtype))
    clamp, words = sorted((data.draw(code), data.draw(code))), out_dtype == "int16"
    extra = {
        "out_dtype": out_dtype,
        "zero_points": (data.draw(zero_in), 0 if words else data.draw(code)),
        "clamp": data.draw(st.sampled_from([None, clamp])),
        "factor": 256.0 if words else 1.0,
    }
    assume(served(cpu, shape))
    verify(cpu, **shape, **extra)


@pytest.mark.parametrize("cpu", [p for p in CPUS if p.values[0] != "alderlake"])
@SOME
@given(shape=shapes(("float32",)))
def test_any_float_call(cpu: str, shape: dict[str, Any]) -> None:
    assume(served(cpu, shape))
    verify(cpu, **shape)


@pytest.mark.parametrize("halo", [True, False], ids=["halo", "padded"])
@pytest.mark.parametrize(("size", "channels", "stride"), MOBILENET_V1 + MOBILENET_V2)
def test_mobilenet_shapes(size: int, channels: int, stride: int, halo: bool) -> None:
    padding = (1, 1, 1, 1) if stride == 1 else (0, 0, 1, 1)
    border = padding if halo else (0, 0, 0, 0)
    verify(
        "znver4" if not CPUS[0].marks[0].args[0] else "haswell",
        height=size, width=size, channels=channels, strides=(stride, stride), padding=padding,
        in_halo=border, clamp=(11, 255),
    )  # fmt: skip


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize(
    "shape",
    [
        {"channels": 32, "repeat": 2, "height": 28, "width": 28},
        {"channels": 8, "repeat": 8, "height": 20, "width": 20, "strides": (2, 2)},
        {"channels": 5, "repeat": 3, "height": 9, "width": 17, "padding": (0, 2, 1, 0)},
        {"channels": 3, "repeat": 100, "batch": 2, "out_halo": (1, 1, 1, 1), "in_halo": (0, 1, 2, 0)},
    ],
)
def test_several_outputs_of_a_channel(cpu: str, shape: dict[str, Any]) -> None:
    verify(cpu, **shape)
    verify(cpu, **shape, zero_points=(131, 0), out_dtype="int16", factor=256.0)
    if cpu != "alderlake":
        verify(cpu, **shape, dtype="float32")


@pytest.mark.parametrize("cpu", CPUS)
def test_keyword_spotting_shape(cpu: str) -> None:
    verify(cpu, height=25, width=5, channels=64)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("sign", [127, -127])
@pytest.mark.parametrize("factor", [1.0, 1e-3, 1e9])
def test_extremes(cpu: str, sign: int, factor: float) -> None:
    values = {"x": np.full((1, 7, 7, 64), 255, "uint8"), "w": np.full((64, 3, 3, 1), sign, "int8")}
    verify(cpu, values=values, factor=factor, clamp=(20, 200))
    verify(cpu, values=values, factor=factor, zero_points=(7, 0), out_dtype="int16")


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize(
    "shape",
    [
        {"channels": 96, "height": 14, "width": 14, "kernel": (7, 7), "padding": (3,) * 4},
        {"channels": 40, "kernel": (5, 5), "padding": (2,) * 4, "strides": (2, 2), "width": 28},
        {"channels": 64, "height": 30, "width": 30, "strides": (3, 3)},
        {"channels": 144, "height": 1, "width": 50, "kernel": (1, 31), "padding": (0, 15, 0, 15)},
        {"channels": 65, "height": 14, "width": 14, "dilation": (2, 2), "padding": (2,) * 4},
    ],
)
def test_bytes_become_words(cpu: str, shape: dict[str, Any]) -> None:
    verify(cpu, **shape, zero_points=(131, 0), out_dtype="int16", factor=256.0, out_halo=(1, 0, 2, 1))


def test_rounds_half_to_even() -> None:
    x = np.arange(49 * 64).reshape(1, 7, 7, 64) % 200
    values = {
        "x": x.astype("uint8"),
        "w": np.ones((64, 1, 1, 1), "int8"),
        "b": np.zeros(64, "int32"),
        "m": np.full(64, 0.5, "float32"),
    }
    verify("haswell", kernel=(1, 1), padding=(0,) * 4, values=values, zero_points=(0, 0))


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize(
    "shape", [{"channels": 96, "height": 9}, {"channels": 128, "kernel": (5, 5), "padding": (2,) * 4}]
)
def test_every_candidate_is_exact(cpu: str, shape: dict[str, Any]) -> None:
    call, x, expected = make_call(**shape)
    found = x86_depthwise.candidates(call, target_of(cpu))
    assert len(found) >= 2 and len(set(found)) == len(found)
    for config in found:
        implementation = x86_depthwise.with_config(call, target_of(cpu), config)
        assert implementation is not None
        np.testing.assert_array_equal(run(implementation, target_of(cpu), x, expected), expected)


def test_tags_and_signature() -> None:
    call, _, _ = make_call()
    implementation = x86_depthwise.rule(call, target_of("znver4"))
    assert implementation is not None
    attrs = implementation.func.attrs
    assert attrs[KERNEL] == "qconv2d" and decode_params(attrs[PARAMS]) == call.params
    assert attrs["tirx.is_scheduled"] and attrs["tirx.noalias"]
    script = implementation.func.script()
    for spec in (call.args[0], call.out):
        assert f'T.Buffer({spec.shape}, "{spec.dtype}")' in script


@pytest.mark.parametrize(("size", "cores", "parallel"), [(28, 2, False), (56, 2, True), (56, 1, False)])
def test_only_large_calls_are_parallel(size: int, cores: int, parallel: bool) -> None:
    call, _, _ = make_call(height=size, width=size)
    implementation = x86_depthwise.rule(call, target_of("znver4", cores))
    assert implementation is not None
    assert ("T.parallel" in implementation.func.script()) == parallel


def test_weights_are_stored_once_for_both_rows() -> None:
    call, _, _ = make_call(channels=512)
    implementation = x86_depthwise.rule(call, target_of("znver4"))
    assert implementation is not None
    plan = weight_plan(window(call), TABLE["vnni512"], 2)
    assert plan.planes == ((0, 1, 2, None),) and plan.where[(None, 0, 1, 2)] == (0, 1)
    assert np.asarray(implementation.args[1]).nbytes <= 512 * (3 * 4 + 4 + 4) + 64 + 8


@pytest.mark.parametrize(
    "change",
    [
        {"params": {"groups": 1}},
        {"constants": {}},
        {"name": "qdense"},
    ],
)
def test_other_calls_are_left_alone(change: dict[str, Any]) -> None:
    call, _, _ = make_call()
    params = {**call.params, **change.get("params", {})}
    other = KernelCall(
        change.get("name", call.name), params, call.args, call.out, change.get("constants", call.constants)
    )
    assert x86_depthwise.rule(other, target_of("znver4")) is None
    assert x86_depthwise.candidates(other, target_of("znver4")) == []


def test_other_targets_are_left_alone() -> None:
    call, _, _ = make_call()
    arm = tvm.target.Target(
        {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76", "num-cores": 2}
    )
    assert x86_depthwise.rule(call, arm) is None
    assert x86_depthwise.rule(call, target_of("x86-64")) is None
    signed, _, _ = make_call(dtype="int8", zero_points=(0, 0))
    assert x86_depthwise.rule(signed, target_of("znver4")) is None


def test_bias_beyond_int32_is_left_alone() -> None:
    call, _, _ = make_call(
        values={"b": np.full(64, 2**31 - 1, "int32"), "w": np.full((64, 3, 3, 1), -127, "int8")}
    )
    assert x86_depthwise.rule(call, target_of("znver4")) is None


@pytest.mark.parametrize("cpu", [p for p in CPUS if p.values[0] != "alderlake"])
@pytest.mark.parametrize("channels", [64, 24])
def test_weights_of_float16_give_the_same_numbers(cpu: str, channels: int) -> None:
    call, x, expected = make_call(height=9, width=9, channels=channels, dtype="float32", clamp=(0, 6))
    halves = {i: array.astype("float16") for i, array in call.constants.items()}
    wide = {i: array.astype("float32") for i, array in halves.items()}
    specs = (call.args[0], *(TensorSpec(array.shape, "float16") for array in halves.values()))
    calls = replace(call, constants=halves, args=specs), replace(call, constants=wide)
    made = [x86_depthwise.rule(c, target_of(cpu)) for c in calls]
    small, large = (run(m, target_of(cpu), x, expected) for m in made if m is not None)
    np.testing.assert_array_equal(small, large)
