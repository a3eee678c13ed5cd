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
