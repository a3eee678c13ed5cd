"""Generated x86 additions against the oracle, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.attrs import Implementation, KernelCall, TensorSpec
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array, add_params
from tvm_qplugin.schedules import x86_add

FLAGS = {"znver4": "avx512_vnni", "haswell": "fma"}
SOME = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
NONE = (0, 0, 0, 0)


def runnable() -> list[Any]:
    """CPU models, those that this machine cannot imitate as skipped parameters."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    skip = pytest.mark.skipif
    return [pytest.param(m, marks=skip(f not in flags, reason=f"CPU has no {f}")) for m, f in FLAGS.items()]


CPUS = runnable()


def target_of(cpu: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu, "num-cores": 2})


def make_call(
    shape: tuple[int, ...] = (1, 5, 7, 24),
    dtype: str = "uint8",
    scales: tuple[float, float] = (0.04, 0.03),
    zero_points: tuple[int, int, int] = (7, 30, 19),
    clamp: tuple[int, int] | None = None,
    halos: tuple[tuple[int, ...], ...] = (NONE, NONE, NONE),
    subtract: bool = False,
    seed: int = 0,
) -> tuple[KernelCall, list[Array], Array]:
    """(call, physical inputs, expected physical output)."""
    a_mul, b_mul, shift = add_params(*scales, 0.05)
    lo, hi = clamp or INTEGER_RANGE[dtype]
    params: dict[str, Any] = {
        "a_mul": a_mul, "b_mul": -b_mul if subtract else b_mul, "shift": shift, "lo": lo, "hi": hi,
        **dict(zip(("a_zp", "b_zp", "out_zp"), zero_points, strict=True)),
    }  # fmt: skip
    low, high = INTEGER_RANGE[dtype]
    x = np.random.default_rng(seed).integers(low, high + 1, (2, *shape)).astype(dtype)
    expected = ORACLE["qadd"](params, x[0], x[1], dtype)
    *inputs, expected = (
        np.pad(t, ((0, 0), (h[0], h[2]), (h[1], h[3]), (0, 0)), constant_values=z) if any(h) else t
        for t, h, z in zip((*x, expected), halos, zero_points, strict=True)
    )
    params |= {f"{name}_halo": list(halo) for name, halo in zip(("a", "b", "out"), halos, strict=True)}
    specs = tuple(TensorSpec(t.shape, dtype) for t in inputs)
    return KernelCall("qadd", params, specs, TensorSpec(expected.shape, dtype)), inputs, expected


def run(implementation: Implementation, cpu: str, inputs: list[Array], expected: Array) -> Array:
    func = implementation.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=target_of(cpu))
    out = tvm.runtime.tensor(np.full(expected.shape, 99, expected.dtype))
    arrays = [inputs[a] if isinstance(a, int) else a for a in implementation.args]
    library["main"](*(tvm.runtime.tensor(array) for array in arrays), out)
    return np.asarray(out.numpy())


def verify(cpu: str, **options: Any) -> None:
    """The rule's kernel computes the oracle's numbers."""
    call, inputs, expected = make_call(**options)
    implementation = x86_add.rule(call, target_of(cpu))
    assert implementation is not None
    np.testing.assert_array_equal(run(implementation, cpu, inputs, expected), expected)


@pytest.mark.parametrize("cpu", CPUS)
@SOME
@given(data=st.data())
def test_any_call(cpu: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["uint8", "int8"]))
    codes, scale = st.integers(*INTEGER_RANGE[dtype]), st.floats(0.01, 1)
    halo = st.sampled_from([NONE, (1, 1, 1, 1), (0, 2, 1, 0)])
    clamp = sorted((data.draw(codes), data.draw(codes)))
    verify(
        cpu,
        shape=(data.draw(st.integers(1, 2)), 3, data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))),
        dtype=dtype,
        scales=(data.draw(scale), data.draw(scale)),
        zero_points=tuple(data.draw(codes) for _ in range(3)),
        clamp=data.draw(st.sampled_from([None, tuple(clamp)])),
        halos=tuple(data.draw(halo) for _ in range(3)),
        subtract=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 99)),
    )


@pytest.mark.parametrize("shape", [(10,), (3, 50), (1, 56, 56, 24), (2, 4, 3, 8, 5)])
@pytest.mark.parametrize("cpu", CPUS)
def test_ranks_and_threads(cpu: str, shape: tuple[int, ...]) -> None:
    verify(cpu, shape=shape)


def test_layers_of_one_shape_share_a_function() -> None:
    first, _, _ = make_call()
    second, _, _ = make_call(scales=(0.5, 0.02), zero_points=(0, 128, 3), clamp=(5, 200))
    functions = []
    for call in (first, second):
        same = KernelCall(call.name, {}, call.args, call.out)
        implementation = x86_add.rule(call, target_of("haswell"))
        assert implementation is not None
        functions.append(implementation.func.with_attr("qplugin.params", str(same.params)))
    tvm.ir.assert_structural_equal(*functions)


def test_other_calls_are_left_alone() -> None:
    call, _, _ = make_call()
    target = target_of("haswell")
    broadcast = KernelCall(call.name, call.params, (call.args[0], TensorSpec((24,), "uint8")), call.out)
    wide = KernelCall(call.name, {**call.params, "a_mul": 2**30}, call.args, call.out)
    other = KernelCall("qmul", call.params, call.args, call.out)
    assert all(x86_add.rule(c, target) is None for c in (broadcast, wide, other))
    assert x86_add.rule(call, target_of("x86-64")) is None
