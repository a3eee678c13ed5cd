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


def bounds(dtype: str, narrow: bool = False) -> dict[str, int]:
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    return {"lo": low + 40 * narrow, "hi": high - 30 * narrow}


def zero_point(dtype: str, seed: int) -> int:
    low = -128 if dtype == "int8" else 0
    return low + seed * 37 % 256


@QUICK
@given(DTYPES, SEEDS, st.sampled_from([(1, 5, 7, 24), (1, 1, 1, 24), (24,), (5, 7, 1)]), st.floats(1e-4, 1))
def test_equals_the_oracle(
    verify: Verify, codes: Codes, dtype: str, seed: int, other: tuple[int, ...], factor: float
) -> None:
    zero_points = {f"{name}_zp": zero_point(dtype, seed + i) for i, name in enumerate(("a", "b", "out"))}
    params = {"multiplier": factor, **zero_points, **bounds(dtype, seed % 2 == 0)}
    verify("qmul", params, codes(seed, (1, 5, 7, 24), dtype), codes(seed + 1, other, dtype), dtype=dtype)
