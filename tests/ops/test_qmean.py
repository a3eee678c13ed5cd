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
@given(DTYPES, SEEDS, st.sampled_from([[1, 2], [-1], [0], [1], [1, 3], [0, 1, 2]]), st.booleans())
def test_equals_the_oracle(
    verify: Verify, codes: Codes, dtype: str, seed: int, axes: list[int], keepdims: bool
) -> None:
    params = {
        "axes": axes,
        "keepdims": keepdims,
        "multiplier": 0.03,
        "in_zp": zero_point(dtype, seed),
        "out_zp": zero_point(dtype, seed + 1),
        **bounds(dtype, seed % 2 == 0),
    }
    channels = (32, 21)[seed % 2]
    verify("qmean", params, codes(seed, (2, 7, 6, channels), dtype), dtype=dtype)


def test_global_average(verify: Verify, codes: Codes) -> None:
    params = {
        "axes": [1, 2],
        "keepdims": True,
        "multiplier": 0.02,
        "in_zp": 3,
        "out_zp": 4,
        **bounds("uint8"),
    }
    verify("qmean", params, codes(0, (1, 7, 7, 1280), "uint8"), dtype="uint8")
