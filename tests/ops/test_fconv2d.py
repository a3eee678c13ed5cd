from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import te

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels.arith import single
from tvm_qplugin.schedules.cpu_conv import rule

Verify = Callable[..., None]
QUICK = settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
SEEDS = st.integers(0, 2**16)


def normal(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype("float32") for shape in shapes]


@QUICK
@given(SEEDS, st.sampled_from([(1, 5, 32), (1, 8, 21), (8, 8, 8), (2, 4, 6)]), st.booleans())
def test_equals_the_oracle(
    verify: Verify, verify_rule: Verify, seed: int, sizes: tuple[int, int, int], relu: bool
) -> None:
    groups, c, o = sizes
    window = {
        "strides": [1 + seed % 2, 1],
        "padding": [1, 0, 2, 1],
        "dilation": [1, 1 + seed % 2],
        "groups": groups,
    }
    params = {**window, "lo": 0 if relu else None, "hi": 6 if relu else None}
    arrays = normal(seed, (1, 9, 11, c), (o, 3, 3, c // groups), (o,))
    verify("fconv2d", params, *arrays, dtype="float32", atol=1e-4)
    verify_rule(rule, "fconv2d", params, *arrays, dtype="float32", atol=1e-4)


@pytest.mark.parametrize("groups", [1, 8])
def test_weights_of_float16(verify: Verify, verify_rule: Verify, groups: int) -> None:
    """Widened in hardware or by moving bits: the smallest and the largest value, and both zeros."""
    params = {"strides": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": groups}
    x, weight, bias = normal(groups, (1, 5, 6, 8), (8, 3, 3, 8 // groups), (8,))
    weight.flat[:6] = [2.0**-24, -(2.0**-24), -0.0, 0.0, 65504, -6.1e-5]
    halves = weight.astype("float16"), bias.astype("float16")
    params |= {"lo": None, "hi": None}
    verify("fconv2d", params, x, *halves, dtype="float32", atol=0.05)
    verify_rule(rule, "fconv2d", params, x, *halves, dtype="float32", atol=0.05)


def test_moved_bits_are_those_of_the_conversion() -> None:
    """Every finite float16 there is."""
    halves = np.arange(2**16, dtype="uint16").view("float16")
    halves = halves[np.isfinite(halves)]
    source = te.placeholder(halves.shape, "float16")
    moved = te.compute(halves.shape, lambda i: single(source[i], native=False))
    func = te.create_prim_func([source, moved]).with_attr("global_symbol", "main")
    found = tvm.runtime.tensor(np.zeros(halves.shape, "float32"))
    tvm.compile(func, target="llvm")["main"](tvm.runtime.tensor(halves), found)
    assert (found.numpy().view("uint32") == halves.astype("float32").view("uint32")).all()
