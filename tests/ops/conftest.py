"""Compile a kernel under the generic CPU schedule and compare it with the oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm.target import Target

from tvm_qplugin.core.attrs import Implementation, KernelCall, Params, TensorSpec
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array
from tvm_qplugin.kernels import build_kernel, extra_constants, output_shape
from tvm_qplugin.schedules.cpu import UNSCHEDULED, schedule_cpu
from tvm_qplugin.schedules.cpu_blocks import architecture

Verify = Callable[..., None]
Codes = Callable[..., Array]
Rule = Callable[[KernelCall, Target], Implementation | None]

HOST = Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu(), "num-cores": 2})
OLDEST = Target({"kind": "llvm", **({"mcpu": "x86-64"} if architecture(HOST) == "x86_64" else {})})
TARGETS = (HOST, OLDEST)


def _specs(arrays: tuple[Array, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(a.shape, str(a.dtype)) for a in arrays)


def _run(func: tvm.tirx.PrimFunc, target: Target, arrays: list[Array], out: TensorSpec) -> Array:
    library = tvm.compile(func.with_attr("global_symbol", "main"), target=target)
    result = tvm.runtime.tensor(np.full(out.shape, 77, out.dtype))
    library["main"](*[tvm.runtime.tensor(np.array(a, order="C")) for a in arrays], result)
    return result.numpy()


def _strip(array: Array, halo: tuple[int, int, int, int] | None) -> Array:
    if not halo:
        return array
    top, left, bottom, right = halo
    return array[:, top : array.shape[1] - bottom, left : array.shape[2] - right]


def _reference(name: str, params: Params, arrays: tuple[Array, ...], dtype: str) -> Array:
    """The oracle between halos: stripped from the inputs, filled with the zero point around the output."""
    halos = (params.get("in_halo") or params.get("a_halo"), params.get("b_halo"))
    inside = [_strip(a, h) for a, h in zip(arrays, halos, strict=False)]
    result = ORACLE[name](params, *inside, *arrays[2:], dtype)
    if not params.get("out_halo"):
        return result
    top, left, bottom, right = params["out_halo"]
    width = ((0, 0), (top, bottom), (left, right), (0, 0))
    return np.pad(result, width, constant_values=params["out_zp"])


@pytest.fixture(scope="session")
def verify() -> Verify:
    """``verify(name, params, *arrays, dtype=, atol=0)`` for this machine and for the oldest one."""

    def check(name: str, params: Params, *arrays: Array, dtype: str = "int8", atol: float = 0) -> None:
        out = TensorSpec(output_shape(name, params, [a.shape for a in arrays]), dtype)
        func = build_kernel(name, params, _specs(arrays), out)
        expected = _reference(name, params, arrays, dtype)
        constants = extra_constants(name, params, _specs(arrays))
        for target in TARGETS:
            scheduled = schedule_cpu(func, target)
            assert UNSCHEDULED not in scheduled.attrs, scheduled.attrs[UNSCHEDULED]
            result = _run(scheduled, target, [*arrays, *constants], out)
            np.testing.assert_allclose(result, expected, rtol=0, atol=atol, err_msg=str(target))

    return check


@pytest.fixture(scope="session")
def verify_rule() -> Verify:
    """``verify_rule(rule, name, params, *arrays, dtype=, atol=0)``: all arrays but the first constant."""

    def check(
        rule: Rule, name: str, params: Params, *arrays: Array, dtype: str = "int8", atol: float = 0
    ) -> None:
        out = TensorSpec(output_shape(name, params, [a.shape for a in arrays]), dtype)
        call = KernelCall(name, params, _specs(arrays), out, dict(enumerate(arrays[1:], 1)))
        for target in TARGETS:
            made = rule(call, target)
            if made is not None:
                given = [arrays[a] if isinstance(a, int) else a for a in made.args]
                result = _run(made.func, target, given, out)
                expected = _reference(name, params, arrays, dtype)
                np.testing.assert_allclose(result, expected, rtol=0, atol=atol, err_msg=str(target))

    return check


@pytest.fixture(scope="session")
def codes() -> Codes:
    """``codes(seed, shape, dtype="int8")``: random codes, one in eight of them an extreme."""

    def make(seed: int, shape: tuple[int, ...], dtype: str = "int8") -> Array:
        rng, (low, high) = np.random.default_rng(seed), INTEGER_RANGE[dtype]
        array = rng.integers(low, high + 1, shape)
        extreme = rng.choice([low, high], shape)
        return np.where(rng.random(shape) < 0.125, extreme, array).astype(dtype)

    return make
