from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.qparams import Array
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
@given(SEEDS, st.sampled_from([(1,), (17,), (2, 3)]), st.integers(1, 70), st.sampled_from([1, 10, 64]))
def test_equals_the_oracle(
    verify: Verify, verify_rule: Verify, seed: int, rows: tuple[int, ...], k: int, n: int
) -> None:
    params = {"lo": 0 if seed % 2 else None, "hi": None}
    arrays = normal(seed, (*rows, k), (n, k), (n,))
    verify("fdense", params, *arrays, dtype="float32", atol=1e-4)
    verify_rule(rule, "fdense", params, *arrays, dtype="float32", atol=1e-4)


def test_weights_of_float16(verify: Verify, verify_rule: Verify) -> None:
    x, *constants = normal(5, (3, 40), (24, 40), (24,))
    halves = [constant.astype("float16") for constant in constants]
    verify("fdense", {"lo": None, "hi": None}, x, *halves, dtype="float32", atol=1e-4)
    verify_rule(rule, "fdense", {"lo": None, "hi": None}, x, *halves, dtype="float32", atol=1e-4)
