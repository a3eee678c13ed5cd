from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.qparams import Array

Verify = Callable[..., None]
Codes = Callable[..., Array]
QUICK = settings(
    max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
DTYPES = st.sampled_from(["int8", "uint8"])
SEEDS = st.integers(0, 2**16)


def bounds(dtype: str, narrow: bool = False) -> dict[str, int]:
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    return {"lo": low + 40 * narrow, "hi": high - 30 * narrow}


@QUICK
@given(DTYPES, SEEDS, st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_equals_the_oracle(verify: Verify, codes: Codes, dtype: str, seed: int, shape: list[int]) -> None:
    verify("qclamp", bounds(dtype, True), codes(seed, shape, dtype), dtype=dtype)
