from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.qparams import INTEGER_RANGE, Array

Verify = Callable[..., None]
Codes = Callable[..., Array]
QUICK = settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
DTYPES = st.sampled_from(["int8", "uint8"])
SEEDS = st.integers(0, 2**16)


def table(beta: float) -> Array:
    return np.exp(-(255 - np.arange(256)) * beta).astype("float32")


def params_of(dtype: str, axis: int) -> dict[str, float]:
    low, high = INTEGER_RANGE[dtype]
    return {"axis": axis, "out_scale": 1 / 256, "out_zp": low, "lo": low, "hi": high}


@QUICK
@given(DTYPES, SEEDS, st.sampled_from([((33,), 0), ((2, 33), -1), ((2, 5, 7), 1), ((1, 3, 4, 21), 3)]))
def test_equals_the_oracle(
    verify: Verify, codes: Codes, dtype: str, seed: int, shape: tuple[tuple[int, ...], int]
) -> None:
    q = codes(seed, shape[0], dtype)
    verify("qsoftmax", params_of(dtype, shape[1]), q, table(0.01 + seed % 7 * 0.05), dtype=dtype)


def test_a_thousand_classes(verify: Verify, codes: Codes) -> None:
    verify("qsoftmax", params_of("int8", -1), codes(0, (1, 1001)), table(0.07))


def test_equal_codes(verify: Verify) -> None:
    verify("qsoftmax", params_of("uint8", -1), np.full((1, 10), 255, "uint8"), table(0.1), dtype="uint8")
