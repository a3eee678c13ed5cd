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


def test_transposes_and_rounds_half_to_even(verify: Verify) -> None:
    x = np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1e30, -1e30, 0, 100, 127.5, -128.5]).reshape(1, 3, 2, 2)
    verify("quantize", {"scale": 1.0, "out_zp": 0, "axes": [0, 2, 3, 1], **bounds("int8")}, x)


@QUICK
@given(DTYPES, SEEDS, st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(1e-4, 10))
def test_equals_the_oracle(verify: Verify, dtype: str, seed: int, shape: list[int], scale: float) -> None:
    x = (np.random.default_rng(seed).standard_normal(shape) * 200 * scale).astype("float32")
    params = {
        "scale": float(np.float32(scale)),
        "out_zp": zero_point(dtype, seed),
        **bounds(dtype, seed % 2 == 0),
    }
    verify("quantize", params, x, dtype=dtype)


def test_fills_a_halo(verify: Verify) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 48, 40)).astype("float32")
    params = {"scale": 0.02, "out_zp": 7, "axes": [0, 2, 3, 1], "out_halo": [1, 0, 2, 1], **bounds("uint8")}
    verify("quantize", params, x, dtype="uint8")
