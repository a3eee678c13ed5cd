from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.qparams import Array, add_params

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


def params_of(dtype: str, seed: int, s_a: float, s_b: float) -> dict[str, int]:
    a_mul, b_mul, shift = add_params(s_a, s_b, 0.05)
    zero_points = {f"{name}_zp": zero_point(dtype, seed + i) for i, name in enumerate(("a", "b", "out"))}
    return {"a_mul": a_mul, "b_mul": b_mul, "shift": shift, **zero_points, **bounds(dtype, seed % 2 == 0)}


@QUICK
@given(DTYPES, SEEDS, st.floats(1e-3, 10), st.floats(1e-3, 10), st.booleans())
def test_equals_the_oracle(
    verify: Verify, codes: Codes, dtype: str, seed: int, s_a: float, s_b: float, subtract: bool
) -> None:
    params = params_of(dtype, seed, s_a, s_b)
    params["b_mul"] *= -1 if subtract else 1
    verify(
        "qadd", params, codes(seed, (1, 5, 7, 24), dtype), codes(seed + 1, (1, 5, 7, 24), dtype), dtype=dtype
    )


@pytest.mark.parametrize("other", [(24,), (1, 1, 1, 24), (5, 1, 1), (1, 5, 7, 1), ()])
def test_broadcasts(verify: Verify, codes: Codes, other: tuple[int, ...]) -> None:
    verify("qadd", params_of("int8", 3, 0.1, 0.2), codes(0, (1, 5, 7, 24)), codes(1, other))
    if other:
        verify("qadd", params_of("int8", 3, 0.1, 0.2), codes(1, other), codes(0, (1, 5, 7, 24)))


def test_tiny_scales_do_not_overflow(verify: Verify, codes: Codes) -> None:
    params = params_of("int8", 0, 1e-5, 1e-6)
    assert params["shift"] > 31
    verify("qadd", params, codes(0, (3, 50)), codes(1, (3, 50)))


def test_reads_and_fills_halos(verify: Verify, codes: Codes) -> None:
    halos = {"a_halo": [1, 1, 1, 1], "b_halo": [0, 2, 1, 0], "out_halo": [1, 0, 0, 2]}
    a, b = codes(0, (1, 16, 16, 24), "uint8"), codes(1, (1, 15, 16, 24), "uint8")
    verify("qadd", {**params_of("uint8", 1, 0.1, 0.2), **halos}, a, b, dtype="uint8")


def test_large_tensors_run_in_parallel(verify: Verify, codes: Codes) -> None:
    a, b = codes(0, (1, 56, 56, 24), "uint8"), codes(1, (1, 56, 56, 24), "uint8")
    verify("qadd", params_of("uint8", 2, 0.03, 0.02), a, b, dtype="uint8")
