"""Generated x86 average pools that do not count the padding, against the oracle, exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels import output_shape
from tvm_qplugin.schedules import x86_average

FLAGS = {"znver4": "avx512_vnni", "haswell": "fma"}
SOME = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


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
    shape: tuple[int, int, int, int] = (1, 9, 9, 40),
    pool: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    clamp: tuple[int, int] = (0, 255),
    extreme: bool = False,
    seed: int = 0,
) -> tuple[KernelCall, Array]:
    """A call and its input; ``extreme``: only 0 and 255."""
    params = {
        "pool": list(pool), "strides": list(strides), "padding": list(padding), "count_include_pad": False,
        "in_zp": 3, "out_zp": 3, "lo": clamp[0], "hi": clamp[1],
    }  # fmt: skip
    x = np.random.default_rng(seed).integers(0, 256, shape)
    x = np.where(x > 127, 255, 0) if extreme else x
    out = TensorSpec(output_shape("qavgpool2d", params, [shape]), "uint8")
    return KernelCall("qavgpool2d", params, (TensorSpec(shape, "uint8"),), out), x.astype("uint8")


def verify(cpu: str, **options: Any) -> None:
    """The rule's kernel computes the oracle's numbers."""
    call, x = make_call(**options)
    implementation = x86_average.rule(call, target_of(cpu))
    assert implementation is not None and implementation.args == (0,)
    func = implementation.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=target_of(cpu))
    out = tvm.runtime.tensor(np.full(call.out.shape, 99, "uint8"))
    library["main"](tvm.runtime.tensor(x), out)
    np.testing.assert_array_equal(out.numpy(), ORACLE["qavgpool2d"](call.params, x, "uint8"))


@pytest.mark.parametrize("cpu", CPUS)
@SOME
@given(data=st.data())
def test_any_pool(cpu: str, data: st.DataObject) -> None:
    pool = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = data.draw(st.tuples(*[st.integers(0, pool[i % 2] - 1) for i in range(4)]))
    size = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 20)))
    assume(any(padding) and all(size[i] + padding[i] + padding[i + 2] >= pool[i] for i in (0, 1)))
    codes = st.integers(0, 255)
    verify(
        cpu,
        shape=(data.draw(st.integers(1, 2)), *size, data.draw(st.integers(1, 70))),
        pool=pool,
        strides=data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=padding,
        clamp=data.draw(st.sampled_from([(0, 255), tuple(sorted((data.draw(codes), data.draw(codes))))])),
        extreme=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 99)),
    )


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("shape", [(1, 35, 35, 192), (1, 17, 17, 768), (1, 8, 8, 1280)])
def test_pools_of_inception(cpu: str, shape: tuple[int, int, int, int]) -> None:
    verify(cpu, shape=shape)


@pytest.mark.parametrize("n", range(2, x86_average.MAX_TAPS + 1))
def test_division_is_exact(n: int) -> None:
    multiplier, shift = x86_average.divisor(n)
    sums = np.arange(255 * n + n // 2 + 1)
    np.testing.assert_array_equal((sums * multiplier >> 16) >> shift, sums // n)


def test_other_calls_are_left_alone() -> None:
    call, _ = make_call()
    target = target_of("haswell")

    def without(**changes: Any) -> KernelCall:
        return replace(call, params={**call.params, **changes})

    signed = replace(call, args=(TensorSpec(call.args[0].shape, "int8"),))
    calls = [
        without(count_include_pad=True), without(padding=[0, 0, 0, 0]), without(in_halo=[1, 0, 0, 0]),
        without(out_halo=[1, 0, 0, 0]), without(pool=[6, 6]), signed, replace(call, name="qmaxpool2d"),
    ]  # fmt: skip
    assert x86_average.rule(call, target) is not None
    assert not any(x86_average.rule(c, target) for c in calls)
    assert x86_average.rule(call, target_of("x86-64")) is None
