from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.fixed_point import quantize_multiplier
from tvm_qplugin.core.oracle import qprelu
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array

Verify = Callable[..., None]
Codes = Callable[..., Array]
QUICK = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
RATIOS = st.floats(2.0**-12, 100) | st.sampled_from([0.25, 0.5, 1.0, 2.0, 64.0])


@QUICK
@given(st.sampled_from(["int8", "uint8", "int16"]), st.integers(0, 2**16), RATIOS, RATIOS, st.booleans())
def test_equals_the_oracle(
    verify: Verify, codes: Codes, dtype: str, seed: int, ratio: float, slope: float, single: bool
) -> None:
    low, high = INTEGER_RANGE[dtype]
    narrow = dtype != "int16"
    params = {
        "in_zp": (low + seed % 256) * narrow,
        "alpha_zp": seed % 11 - 5,
        "out_zp": (low + seed * 7 % 256) * narrow,
        "positive": list(quantize_multiplier(ratio)),
        "negative": list(quantize_multiplier(slope)),
        "lo": low + 20 * single,
        "hi": high,
    }
    x, alpha = codes(seed, (1, 5, 7, 24), dtype), codes(seed + 1, (1 if single else 24,))
    verify("qprelu", params, x, alpha, dtype=dtype)


@pytest.mark.parametrize(("alpha", "wanted"), [(64, [-50, -25, 0, 100]), (-64, [50, 25, 0, 100])])
def test_in_numbers(alpha: int, wanted: list[int]) -> None:
    one = list(quantize_multiplier(1.0))
    params = {"in_zp": 0, "alpha_zp": 0, "out_zp": 0, "positive": one, "lo": -128, "hi": 127}
    x = np.array([-100, -50, 0, 100], "int8").reshape(4, 1)
    got = qprelu(
        {**params, "negative": list(quantize_multiplier(1 / 128))}, x, np.array([alpha], "int8"), "int8"
    )
    np.testing.assert_array_equal(got[:, 0], wanted)
