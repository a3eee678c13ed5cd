from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tvm_qplugin.core.fixed_point import quantize_multiplier, reduced_factors
from tvm_qplugin.core.qparams import Array

Verify = Callable[..., None]
Codes = Callable[..., Array]
SHAPES = [((5, 7), (7, 3)), ((2, 1, 4, 9), (3, 9, 17)), ((1, 12, 9, 33), (1, 12, 33, 20))]


def real(k: int, width: float) -> float:
    """A multiplier by which a few of the results of random codes saturate."""
    return 2.0 * width / (width * width * np.sqrt(k))


@pytest.mark.parametrize(
    ("a", "b", "dtype", "out", "zero_points"),
    [
        (*SHAPES[0], "int8", "int8", (3, 0)),
        (*SHAPES[1], "uint8", "uint8", (-128, 127)),
        (*SHAPES[2], "uint8", "int16", (0, -7)),
    ],
)
def test_equals_the_oracle(
    verify: Verify,
    codes: Codes,
    a: tuple[int, ...],
    b: tuple[int, ...],
    dtype: str,
    out: str,
    zero_points: tuple[int, int],
) -> None:
    shift = 128 * (dtype == "uint8")
    low, high, zero = {"int8": (-128, 100, 5), "uint8": (9, 255, 120), "int16": (-32768, 32767, 0)}[out]
    params = {
        "a_zp": zero_points[0] + shift,
        "b_zp": zero_points[1] + shift,
        "out_zp": zero,
        "lo": low,
        "hi": high,
        "multiplier": quantize_multiplier(real(a[-1], 100) * (256 if out == "int16" else 1)),
    }
    verify("qmatmul", params, codes(1, a, dtype), codes(2, b, dtype), dtype=out)


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_equals_the_oracle_in_int16(
    verify: Verify, codes: Codes, a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    factor, shift = reduced_factors(real(a[-1], 25000))
    params = {"out_zp": 0, "lo": -30000, "hi": 32767, "factor": int(factor), "shift": int(shift)}
    verify("qmatmul16", params, codes(3, a, "int16"), codes(4, b, "int16"), dtype="int16")


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_floats_quantized_at_run_time(verify: Verify, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    x, y = (np.asarray(rng.normal(size=shape) * 3 + 1, "float32") for shape in (a, b))
    x[..., 0, :], y[..., -1] = 0, 0
    verify("dmatmul", {}, x, y, dtype="float32")
