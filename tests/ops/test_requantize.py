from __future__ import annotations

from collections.abc import Callable

import numpy as np
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
@given(DTYPES, DTYPES, SEEDS, st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 2**15))
def test_equals_the_oracle(
    verify: Verify, codes: Codes, source: str, dtype: str, seed: int, shape: list[int], factor: int
) -> None:
    params = {
        "multiplier": factor,
        "in_zp": zero_point(source, seed),
        "out_zp": zero_point(dtype, seed + 1),
        **bounds(dtype, seed % 2 == 0),
    }
    verify("requantize", params, codes(seed, shape, source), dtype=dtype)


def test_every_code(verify: Verify) -> None:
    q = np.arange(-128, 128).astype("int8")
    verify("requantize", {"multiplier": 128, "in_zp": 0, "out_zp": 1, **bounds("int8")}, q)
