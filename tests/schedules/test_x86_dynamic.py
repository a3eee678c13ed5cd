"""Generated x86 layers that quantize their inputs at run time, against LiteRT's arithmetic, to the bit."""

from __future__ import annotations

from functools import partial
from typing import Any

import instruction_sets
import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from instruction_sets import runnable
from tvm import relax

from tvm_qplugin.builder import build, compile_function
from tvm_qplugin.core import dynamic
from tvm_qplugin.core.attrs import Implementation, KernelCall, TensorSpec
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.quantize_dynamic import QuantizeDynamic
from tvm_qplugin.schedules import x86_dynamic
from tvm_qplugin.simulator import simulate

TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "avxvnni256": ({"mcpu": "x86-64-v3", "mattr": ["+avxvnni"]}, "avx_vnni"),
    "vnni512": ({"mcpu": "icelake-server"}, "avx512_vnni"),
}
BOUNDS = [(None, None), (0.0, None), (0.0, 6.0)]
Problem = tuple[KernelCall, Array, Array]


every_isa = pytest.mark.parametrize("isa", runnable(TARGETS))
target_of = partial(instruction_sets.target_of, TARGETS)


def values(rng: Any, shape: tuple[int, ...]) -> Array:
    """Values of any size and any mean."""
    return np.asarray(rng.normal(size=shape) * rng.uniform(0.01, 9) + rng.normal(), "float32")


def arrays(rng: Any, shape: tuple[int, ...]) -> list[Array]:
    """Weight, scale of each channel or of all, bias."""
    scale = rng.uniform(0.001, 0.1, shape[0] if rng.integers(2) else 1)
    weight = rng.integers(-127, 128, shape).astype("int8")
    return [weight, scale.astype("float32"), rng.normal(size=shape[0]).astype("float32")]


def finish(name: str, params: dict[str, Any], x: Array, constants: list[Array]) -> Problem:
    run = dynamic.conv2d if name == "dconv2d" else dynamic.dense
    expected = run(params, x, *constants)
    specs = tuple(TensorSpec(a.shape, str(a.dtype)) for a in (x, *constants))
    out = TensorSpec(expected.shape, "float32")
    return KernelCall(name, params, specs, out, dict(enumerate(constants, 1))), x, expected


def convolution(
    size: tuple[int, ...],
    outputs: int,
    kernel: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, ...] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    seed: int = 0,
    x: Array | None = None,
) -> Problem:
    rng = np.random.default_rng(seed)
    params = {
        "strides": list(strides), "padding": list(padding), "dilation": list(dilation), "groups": groups,
        **dict(zip(("lo", "hi"), BOUNDS[seed % 3], strict=True)),
    }  # fmt: skip
    constants = arrays(rng, (outputs, *kernel, size[3] // groups))
    return finish("dconv2d", params, values(rng, size) if x is None else x, constants)


def dense(shape: tuple[int, ...], outputs: int, seed: int = 0, x: Array | None = None) -> Problem:
    rng = np.random.default_rng(seed)
    params = dict(zip(("lo", "hi"), BOUNDS[seed % 3], strict=True))
    constants = arrays(rng, (outputs, shape[-1]))
    return finish("ddense", params, values(rng, shape) if x is None else x, constants)


def run(implementation: Implementation | None, x: Array, out: TensorSpec, target: tvm.target.Target) -> Array:
    assert implementation is not None
    func = implementation.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=target)
    operands = [x if isinstance(a, int) else a for a in implementation.args]
    garbage = np.full(out.shape, np.nan, out.dtype)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (*operands, garbage)]
    library["main"](*tensors)
    return np.asarray(tensors[-1].numpy())


def check(isa: str, problem: Problem) -> None:
    call, x, expected = problem
    target = target_of(isa)
    np.testing.assert_array_equal(run(x86_dynamic.rule(call, target), x, call.out, target), expected)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    groups, pair = draw(st.sampled_from([1, 1, 1, 2, 3])), st.tuples(st.integers(1, 3), st.integers(1, 3))
    channels = groups * draw(st.integers(1 if groups == 1 else 2, 40))
    return {
        "size": (1, draw(st.integers(1, 12)), draw(st.integers(1, 30)), channels),
        "outputs": groups * draw(st.integers(1, 60)), "groups": groups, "kernel": draw(pair),
        "strides": draw(pair), "dilation": draw(st.sampled_from([(1, 1), (2, 1), (1, 2)])),
        "padding": draw(st.tuples(*[st.integers(0, 2)] * 4)), "seed": draw(st.integers(0, 1000)),
    }  # fmt: skip


@every_isa
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(problem=problems())
def test_any_convolution(isa: str, problem: dict[str, Any]) -> None:
    _, height, width, _ = problem["size"]
    top, left, bottom, right = problem["padding"]
    reach = [(k - 1) * d + 1 for k, d in zip(problem["kernel"], problem["dilation"], strict=True)]
    assume(height + top + bottom >= reach[0] and width + left + right >= reach[1])
    unit = problem["kernel"] == (1, 1) and problem["strides"] == (1, 1) and problem["groups"] == 1
    check(isa, convolution(**problem | ({"padding": (0, 0, 0, 0)} if unit else {})))


@every_isa
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(), (1,), (5,), (2, 3)]), st.integers(1, 150), st.integers(1, 90), st.integers(0, 999)
)
def test_any_dense_layer(isa: str, rows: tuple[int, ...], depth: int, outputs: int, seed: int) -> None:
    check(isa, dense((*rows, depth), outputs, seed))


@every_isa
def test_several_images_of_pixels(isa: str) -> None:
    check(isa, convolution((3, 5, 7, 24), 40, (1, 1), seed=1))


LAYERS = {
    "stem": ((1, 64, 112, 3), 32, (3, 3), (2, 2), (0, 0, 1, 1)),
    "expand": ((1, 28, 28, 32), 192, (1, 1)),
    "project": ((1, 14, 14, 576), 96, (1, 1)),
    "3x3": ((1, 14, 14, 128), 128, (3, 3), (1, 1), (1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", LAYERS)
@every_isa
def test_layers_of_known_networks(isa: str, name: str) -> None:
    check(isa, convolution(*LAYERS[name]))


@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -2.5, 1e-30, 1e30])
@every_isa
def test_inputs_that_are_all_equal(isa: str, value: float) -> None:
    check(isa, dense((4, 37), 20, x=np.full((4, 37), value, "float32")))
    check(
        isa,
        convolution(
            (1, 6, 6, 5), 20, (3, 3), padding=(1, 1, 1, 1), x=np.full((1, 6, 6, 5), value, "float32")
        ),
    )


@pytest.mark.parametrize("seed", range(6))
@every_isa
def test_numbers_between_two_codes(isa: str, seed: int) -> None:
    check(isa, dense((1, 128), 128, x=ties(seed, 128).reshape(1, 128)))


def ties(seed: int, count: int) -> Array:
    """Numbers in the middle between two codes, and their neighbours."""
    rng = np.random.default_rng(seed)
    low, high = -float(rng.uniform(0, 6)) * (seed % 2), float(rng.uniform(1, 6))
    step = np.float32(high - low) / 255
    found = ((rng.integers(0, 255, count) + 0.5) * step + low).astype("float32")
    found = np.nextafter(found, found + rng.integers(-1, 2, count), dtype="float32")
    found[:2] = low, high
    return np.clip(found, low, high).astype("float32")


DEPTHWISE: dict[str, tuple[Any, ...]] = {
    "mobilenet 112": ((1, 30, 112, 32), 32, (3, 3), (1, 1), (1, 1, 1, 1)),
    "mobilenet down": ((1, 28, 28, 128), 128, (3, 3), (2, 2), (0, 0, 1, 1)),
    "mobilenet_v2 28": ((1, 28, 28, 144), 144, (3, 3), (1, 1), (1, 1, 1, 1)),
    "mobilenet_v2 down": ((1, 28, 28, 192), 192, (3, 3), (2, 2), (1, 1, 1, 1)),
    "24 channels": ((1, 20, 20, 24), 24, (3, 3), (2, 2), (1, 1, 1, 1)),
    "5x5": ((1, 14, 14, 96), 96, (5, 5), (1, 1), (2, 2, 2, 2)),
    "atrous": ((1, 14, 14, 64), 64, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "7x7 image": ((1, 7, 7, 960), 960, (3, 3), (1, 1), (1, 1, 1, 1)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DEPTHWISE)
@every_isa
def test_depthwise_layers(isa: str, name: str, seed: int) -> None:
    size, outputs, *rest = DEPTHWISE[name]
    check(isa, convolution(size, outputs, *rest, groups=size[3], seed=seed))


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5])
@every_isa
def test_depthwise_inputs_that_are_all_equal(isa: str, value: float) -> None:
    x = np.full((1, 12, 12, 64), value, "float32")
    check(isa, convolution(x.shape, 64, (3, 3), padding=(1, 1, 1, 1), groups=64, x=x))


@pytest.mark.parametrize("seed", range(6))
@every_isa
def test_depthwise_numbers_between_two_codes(isa: str, seed: int) -> None:
    x = ties(seed, 64 * 16).reshape(1, 4, 4, 64)
    check(isa, convolution(x.shape, 64, (1, 1), groups=64, x=x))


def test_what_stays_in_float() -> None:
    target = target_of("vnni512")
    padded = convolution((1, 4, 4, 8), 8, (1, 1), padding=(1, 1, 1, 1))
    images = convolution((2, 4, 4, 8), 8, (3, 3))
    depthwise = convolution((1, 40, 40, 6), 6, (3, 3), groups=6)
    assert [x86_dynamic.rule(call, target) for call, *_ in (padded, images, depthwise)] == [None] * 3
    portable = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"})
    assert x86_dynamic.rule(dense((1, 16), 16)[0], portable) is None


@pytest.mark.parametrize("isa", runnable(TARGETS))
def test_a_model_computes_what_the_simulator_does(isa: str) -> None:
    """Two convolutions and a dense layer, each behind float operators."""
    rng = np.random.default_rng(0)
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 8, 8, 6), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            value: Any = x
            for name, shape in (("first", (20, 3, 3, 6)), ("second", (24, 1, 1, 20))):
                weight = relax.const(rng.normal(size=shape).astype("float32"))
                layer = relax.op.nn.conv2d(
                    value, weight, padding=[shape[1] // 2] * 4, data_layout="NHWC", kernel_layout="OHWI"
                )
                value = bb.emit(relax.op.nn.relu(bb.emit(layer, name)), f"{name}_relu")
            flat = bb.emit(relax.op.reshape(value, (1, 8 * 8 * 24)), "flat")
            weight = relax.const(rng.normal(size=(8 * 8 * 24, 10)).astype("float32"))
            out = bb.emit_output(bb.emit(relax.op.matmul(flat, weight), "classes"))
        bb.emit_func_output(out)
    module = tvm.transform.Sequential([QuantizeDynamic(smallest=1)])(bb.get())
    profile = {"vnni512": "x86-64-v4-vnni", "avxvnni256": "x86-64-avxvnni"}[isa]
    image = values(rng, (1, 8, 8, 6))
    (found,) = compile_function(module, profile)([image])
    np.testing.assert_array_equal(found, simulate(module, image)[0])
    operators = build(module, target=profile).manifest.operators
    assert [op.kernel for op in operators if op.macs] == ["dconv2d", "dconv2d", "ddense"]
    assert [op.op for op in operators if not op.integer] == ["reshape"]
    assert [op.weight_bytes for op in operators if op.macs] == [20 * 54, 24 * 20, 8 * 8 * 24 * 10]
