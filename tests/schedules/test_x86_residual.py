"""Generated x86 convolutions with a residual addition against the oracle, exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array, add_params
from tvm_qplugin.schedules import x86_conv

TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "avx2": ({"mcpu": "haswell"}, "avx2"),
    "avxvnni256": ({"mcpu": "x86-64-v3", "mattr": ["+avxvnni"]}, "avx_vnni"),
    "vnni512": ({"mcpu": "icelake-server"}, "avx512_vnni"),
}
SOME = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def runnable() -> list[Any]:
    """The instruction sets; those that this CPU lacks as skipped parameters."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    skip = pytest.mark.skipif
    return [pytest.param(n, marks=skip(f not in flags, reason=f"no {n}")) for n, (_, f) in TARGETS.items()]


def target_of(isa: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "num-cores": 2, **TARGETS[isa][0]})


def make_call(
    shape: tuple[int, int, int, int] = (1, 5, 7, 12),
    channels: int = 24,
    kernel: int = 1,
    groups: int = 1,
    dtype: str = "uint8",
    zero_points: tuple[int, int, int, int] = (7, 11, 30, 19),
    bounds: tuple[tuple[int, int], tuple[int, int]] | None = None,
    subtract: bool = False,
    factor: float = 1.0,
    seed: int = 0,
) -> tuple[KernelCall, list[Array], Array]:
    """(call, activation and residual, expected); zero points of input, convolution, residual, sum."""
    r, (low, high) = np.random.default_rng(seed), INTEGER_RANGE[dtype]
    conv_bounds, sum_bounds = bounds or ((low, high), (low, high))
    x = r.integers(low, high + 1, shape).astype(dtype)
    w = r.integers(-127, 128, (channels, kernel, kernel, shape[3] // groups)).astype("int8")
    bias = r.integers(-1000, 1000, channels).astype("int32")
    scale = (r.uniform(0.5, 1.5, channels) * factor / np.sqrt(w[0].size) / 90).astype("float32")
    other = r.integers(low, high + 1, (*shape[:3], channels)).astype(dtype)
    a_mul, b_mul, shift = add_params(0.04, 0.03, 0.05)
    add = {
        "a_mul": a_mul, "b_mul": -b_mul if subtract else b_mul, "shift": shift, "a_zp": zero_points[1],
        "b_zp": zero_points[2], "out_zp": zero_points[3], "lo": sum_bounds[0], "hi": sum_bounds[1],
    }  # fmt: skip
    params = {
        "strides": [1, 1], "padding": [kernel // 2] * 4, "dilation": [1, 1], "groups": groups, "add": add,
        "in_zp": zero_points[0], "out_zp": zero_points[1], "lo": conv_bounds[0], "hi": conv_bounds[1],
    }  # fmt: skip
    arrays = [x, w, bias, scale, other]
    specs = tuple(TensorSpec(a.shape, str(a.dtype)) for a in arrays)
    expected = ORACLE["qconv2d_add"](params, *arrays, dtype)
    constants = dict(enumerate(arrays[1:4], 1))
    return KernelCall("qconv2d_add", params, specs, specs[4], constants), [x, other], expected


def verify(isa: str, **options: Any) -> None:
    """The rule's kernel computes the oracle's numbers."""
    call, (x, other), expected = make_call(**options)
    implementation = x86_conv.rule(call, target_of(isa))
    assert implementation is not None
    func = implementation.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=target_of(isa))
    arrays = [{0: x, 4: other}[a] if isinstance(a, int) else a for a in implementation.args]
    out = tvm.runtime.tensor(np.full(expected.shape, 99, expected.dtype))
    library["main"](*(tvm.runtime.tensor(array) for array in arrays), out)
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("isa", runnable())
@SOME
@given(data=st.data())
def test_any_call(isa: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["uint8", "int8"])) if isa == "avx2" else "uint8"
    code = st.integers(*INTEGER_RANGE[dtype])
    pair = st.tuples(code, code).map(lambda two: (min(two), max(two)))
    groups = data.draw(st.sampled_from([1, 1, 2]))
    verify(
        isa,
        shape=(data.draw(st.integers(1, 2)), 3, data.draw(st.integers(1, 20)), groups * 6),
        channels=groups * data.draw(st.integers(1, 70)),
        kernel=data.draw(st.sampled_from([1, 3])),
        groups=groups,
        dtype=dtype,
        zero_points=data.draw(st.tuples(code, code, code, code)),
        bounds=data.draw(st.one_of(st.none(), st.tuples(pair, pair))),
        subtract=data.draw(st.booleans()),
        factor=data.draw(st.sampled_from([0.1, 1.0, 10.0, 1e9])),
        seed=data.draw(st.integers(0, 99)),
    )


@pytest.mark.parametrize("isa", runnable())
def test_threads_and_long_reductions(isa: str) -> None:
    verify(isa, shape=(1, 28, 28, 64), channels=96, kernel=3)


def test_only_full_vectors_are_worth_it() -> None:
    target = target_of("vnni512")
    for channels, worth in ((32, True), (24, False)):
        call, _, _ = make_call(channels=channels)
        assert x86_conv.fuses(call, target) is worth and x86_conv.plan(call, target) is not None


def test_other_calls_are_left_alone() -> None:
    call, _, _ = make_call(channels=32)
    target, add = target_of("vnni512"), call.params["add"]
    wide = replace(call, params={**call.params, "add": {**add, "a_mul": 2**30}})
    halo = replace(call, params={**call.params, "out_halo": [0, 0, 1, 0]})
    broadcast = replace(call, args=(*call.args[:4], TensorSpec((32,), "uint8")))
    depthwise, _, _ = make_call(shape=(1, 5, 7, 32), channels=32, groups=32)
    assert not any(x86_conv.fuses(c, target) for c in (wide, halo, broadcast, depthwise))
    assert not x86_conv.fuses(call, tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"}))
