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


COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@QUICK
@given(DTYPES, SEEDS, st.sampled_from(COORDINATES), st.integers(1, 15), st.sampled_from([3, 21, 32]))
def test_bilinear(
    verify: Verify, codes: Codes, dtype: str, seed: int, coordinate: str, height: int, channels: int
) -> None:
    params = {"size": [height, 9], "method": "linear", "coordinate": coordinate, "rounding": "floor"}
    verify("qresize2d", params, codes(seed, (1, 5, 4, channels), dtype), dtype=dtype)


@QUICK
@given(DTYPES, SEEDS, st.sampled_from(COORDINATES), st.sampled_from(ROUNDINGS), st.integers(1, 15))
def test_nearest(
    verify: Verify, codes: Codes, dtype: str, seed: int, coordinate: str, rounding: str, height: int
) -> None:
    params = {"size": [height, 9], "method": "nearest", "coordinate": coordinate, "rounding": rounding}
    verify("qresize2d", params, codes(seed, (1, 5, 4, 21), dtype), dtype=dtype)


def test_extreme_codes(verify: Verify) -> None:
    q = np.where(np.indices((1, 6, 6, 16)).sum(0) % 2, 255, 0).astype("uint8")
    params = {"size": [13, 17], "method": "linear", "coordinate": "half_pixel", "rounding": "floor"}
    verify("qresize2d", params, q, dtype="uint8")
