"""Generated x86 pooling against the oracle, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array
from tvm_qplugin.schedules import x86_pool

FLAGS = {"znver4": "avx512_vnni", "alderlake": "avx_vnni", "haswell": "fma"}
SOME = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
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
    name: str,
    shape: tuple[int, ...] = (1, 7, 7, 64),
    dtype: str = "uint8",
    in_halo: tuple[int, ...] = NONE,
    out_halo: tuple[int, ...] = NONE,
    seed: int = 0,
    **params: Any,
) -> tuple[KernelCall, Array, Array]:
    """(call, physical input, expected physical output)."""
    lo, hi = INTEGER_RANGE[dtype]
    x = np.random.default_rng(seed).integers(lo, hi + 1, shape).astype(dtype)
    p: dict[str, Any] = {"in_zp": 9, "out_zp": 9, "lo": lo, "hi": hi, **params}
    if name == "qmean":
        p = {"axes": [1, 2], "keepdims": True, **p, "multiplier": 0.9 / (shape[1] * shape[2])}
    else:
        p = {"pool": (2, 2), "strides": (2, 2), "padding": NONE, "dilation": (1, 1), **p}
        p.setdefault("count_include_pad", True)
    expected = ORACLE[name](p, x, dtype)
    x = np.pad(x, _width(in_halo), constant_values=p["in_zp"])
    if expected.ndim == 4:
        expected = np.pad(expected, _width(out_halo), constant_values=p["out_zp"])
    p |= {"in_halo": in_halo, "out_halo": out_halo}
    call = KernelCall(name, p, (TensorSpec(x.shape, dtype),), TensorSpec(expected.shape, dtype))
    return call, x, expected


def _width(halo: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return ((0, 0), (halo[0], halo[2]), (halo[1], halo[3]), (0, 0))


def verify(cpu: str, name: str, **options: Any) -> None:
    """The rule's kernel computes the oracle's numbers."""
    call, x, expected = make_call(name, **options)
    implementation = x86_pool.rule(call, target_of(cpu))
    assert implementation is not None
    func = implementation.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=target_of(cpu))
    out = tvm.runtime.tensor(np.full(expected.shape, 99, expected.dtype))
    constants = [tvm.runtime.tensor(np.asarray(a)) for a in implementation.args[1:]]
    library["main"](tvm.runtime.tensor(x), *constants, out)
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("shape", [(1, 7, 7, 1280), (2, 8, 8, 100), (1, 1, 1, 64)])
def test_global_mean(cpu: str, keepdims: bool, shape: tuple[int, ...]) -> None:
    verify(cpu, "qmean", shape=shape, keepdims=keepdims)


def test_signed_mean_without_vnni() -> None:
    verify("haswell", "qmean", dtype="int8", in_zp=-3)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("name", ["qavgpool2d", "qmaxpool2d"])
@SOME
@given(data=st.data())
def test_any_pool(cpu: str, name: str, data: st.DataObject) -> None:
    draw = data.draw
    pool, size = [(draw(st.integers(a, b)), draw(st.integers(a, b))) for a, b in ((1, 4), (1, 12))]
    padding = draw(st.sampled_from([NONE, (1, 1, 1, 1), (0, 0, 1, 1)]))
    assume(all(p > max(padding) for p in pool))
    assume(all(size[a] + padding[a] + padding[a + 2] >= pool[a] for a in (0, 1)))
    signed = name == "qmaxpool2d" or cpu == "haswell"
    halo = padding if name == "qavgpool2d" or not any(padding) else NONE
    options: dict[str, Any] = {
        "shape": (draw(st.integers(1, 2)), *size, draw(st.sampled_from([64, 128, 96, 32, 24, 100]))),
        "dtype": draw(st.sampled_from(["uint8", "int8"] if signed else ["uint8"])),
        "pool": pool,
        "strides": draw(st.sampled_from([(1, 1), (2, 2), (3, 2)])),
        "padding": padding,
        "in_halo": draw(st.sampled_from([NONE, halo, (1, 2, 0, 1)])) if halo == padding else NONE,
        "out_halo": draw(st.sampled_from([NONE, (1, 1, 1, 1)])),
        "hi": draw(st.sampled_from([100, 127])),
        "seed": draw(st.integers(0, 9)),
    }
    assume(not (name == "qmaxpool2d" and any(padding) and any(options["in_halo"])))
    width = (size[1] + padding[1] + padding[3] - pool[1]) // options["strides"][1] + 1
    assume(width * options["shape"][3] >= 64)
    verify(cpu, name, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qavgpool2d", {"padding": (1, 1, 1, 1), "count_include_pad": False}),
        ("qmaxpool2d", {"padding": (1, 1, 1, 1), "in_halo": (1, 1, 1, 1)}),
        ("qmean", {"axes": [3]}),
        ("qmaxpool2d", {"shape": (1, 2, 2, 3)}),
    ],
)
def test_other_calls_are_left_alone(name: str, options: dict[str, Any]) -> None:
    call, _, _ = make_call(name, **options)
    assert x86_pool.rule(call, target_of("znver4")) is None
