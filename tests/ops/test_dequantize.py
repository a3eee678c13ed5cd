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


def zero_point(dtype: str, seed: int) -> int:
    low = -128 if dtype == "int8" else 0
    return low + seed * 37 % 256


@QUICK
@given(DTYPES, SEEDS, st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(1e-4, 10))
def test_equals_the_oracle(
    verify: Verify, codes: Codes, dtype: str, seed: int, shape: list[int], scale: float
) -> None:
    params = {"scale": scale, "in_zp": zero_point(dtype, seed)}
    verify("dequantize", params, codes(seed, shape, dtype), dtype="float32")


def test_transposes(verify: Verify, codes: Codes) -> None:
    params = {"scale": 0.1, "in_zp": 3, "axes": [0, 3, 1, 2]}
    verify("dequantize", params, codes(0, (1, 33, 40, 21), "uint8"), dtype="float32")
