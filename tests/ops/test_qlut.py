from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.cpu_lut import rule

Verify = Callable[..., None]
Codes = Callable[..., Array]
QUICK = settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
DTYPES = st.sampled_from(["int8", "uint8"])
SEEDS = st.integers(0, 2**16)


@QUICK
@given(DTYPES, DTYPES, SEEDS, st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_equals_the_oracle(
    verify: Verify, verify_rule: Verify, codes: Codes, source: str, dtype: str, seed: int, shape: list[int]
) -> None:
    q, table = codes(seed, shape, source), codes(seed + 1, (256,), dtype)
    verify("qlut", {}, q, table, dtype=dtype)
    verify_rule(rule, "qlut", {}, q, table, dtype=dtype)


def test_every_code_by_permutation(verify_rule: Verify, codes: Codes) -> None:
    q = np.arange(-128, 128).astype("int8")
    verify_rule(rule, "qlut", {}, q, codes(0, (256,), "uint8"), dtype="uint8")
    verify_rule(rule, "qlut", {}, q.view("uint8"), codes(0, (256,), "int8"))
