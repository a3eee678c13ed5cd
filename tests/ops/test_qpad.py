from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.qparams import Array

Verify = Callable[..., None]
Codes = Callable[..., Array]
QUICK = settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
DTYPES = st.sampled_from(["int8", "uint8"])
SEEDS = st.integers(0, 2**16)


@QUICK
@given(
    DTYPES,
    SEEDS,
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=4),
)
def test_equals_the_oracle(
    verify: Verify, codes: Codes, dtype: str, seed: int, axes: list[tuple[int, int, int]]
) -> None:
    params = {"pad_width": [n for before, _, after in axes for n in (before, after)], "value": 11}
    verify("qpad", params, codes(seed, tuple(extent for _, extent, _ in axes), dtype), dtype=dtype)


def test_large_borders(verify: Verify, codes: Codes) -> None:
    params = {"pad_width": [0, 0, 1, 2, 3, 0, 0, 0], "value": -7}
    verify("qpad", params, codes(0, (1, 30, 31, 24)))
    verify("qpad", {"pad_width": [0, 0, 1, 0, 0, 1, 2, 3], "value": -7}, codes(0, (1, 30, 31, 24)))
