from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
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


def window(dtype: str, seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    kernel = [int(k) for k in rng.integers(1, 4, 2)]
    padding = [int(rng.integers(0, kernel[i % 2])) for i in range(4)]
    strides = [int(s) for s in rng.integers(1, 3, 2)]
    zero_points = {"in_zp": zero_point(dtype, seed), "out_zp": zero_point(dtype, seed)}
    return {
        "pool": kernel,
        "padding": padding,
        "strides": strides,
        **zero_points,
        **bounds(dtype, seed % 2 == 0),
    }


@QUICK
@given(DTYPES, SEEDS, st.sampled_from([1, 5, 24, 32, 96]), st.booleans())
def test_equals_the_oracle(
    verify: Verify, codes: Codes, dtype: str, seed: int, channels: int, count_include_pad: bool
) -> None:
    params = {**window(dtype, seed), "count_include_pad": count_include_pad}
    verify("qavgpool2d", params, codes(seed, (1, 8, 9, channels), dtype), dtype=dtype)


def test_reads_and_fills_halos(verify: Verify, codes: Codes) -> None:
    halos = {
        "in_halo": [1, 1, 1, 1],
        "out_halo": [0, 1, 1, 0],
        "padding": [1, 0, 0, 1],
        "count_include_pad": 0,
    }
    params = {**window("uint8", 1), "pool": [3, 3], **halos}
    verify("qavgpool2d", params, codes(0, (1, 20, 21, 32), "uint8"), dtype="uint8")


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("pool", [(2, 2), (4, 3), (16, 16), (96, 64)])
def test_ties_turn_away_from_zero(verify: Verify, dtype: str, pool: tuple[int, int]) -> None:
    height, width = pool
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    q = np.repeat(np.arange(low, high, dtype=dtype)[None, None, None], height * width, 0)
    q = q.reshape(1, height, width, -1)
    q[:, : height // 2] += 1
    params = {"pool": pool, "padding": [0] * 4, "strides": [1, 1], "in_zp": low, "out_zp": low}
    verify("qavgpool2d", {**params, "count_include_pad": False, "lo": low, "hi": high}, q, dtype=dtype)
