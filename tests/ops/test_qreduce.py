"""Sums, maxima and minima along axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array

Verify = Callable[..., None]
Codes = Callable[..., Array]
AXES = [([3], False), ([1, 2], True), ([0, 2], False), ([0, 1, 2, 3], True)]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("axes", "keepdims"), AXES)
def test_extremes(
    verify: Verify, codes: Codes, dtype: str, largest: bool, axes: list[int], keepdims: bool
) -> None:
    low, high = INTEGER_RANGE[dtype]
    for lo, hi in ((low, high), (low + 60, high - 60)):
        params = {"lo": lo, "hi": hi, "axes": axes, "keepdims": keepdims, "largest": largest}
        verify("qreduce", params, codes(3, (2, 5, 7, 24), dtype), dtype=dtype)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("ratio", [0.0123, 0.25, 3.7])
@pytest.mark.parametrize(("axes", "keepdims"), AXES)
def test_sums(
    verify: Verify, codes: Codes, dtype: str, ratio: float, axes: list[int], keepdims: bool
) -> None:
    low, high = INTEGER_RANGE[dtype]
    zero = 0 if dtype == "int16" else low + 100
    params = {"lo": low, "hi": high, "axes": axes, "keepdims": keepdims, "in_zp": zero, "out_zp": zero}
    name = "qsum16" if dtype == "int16" else "qsum"
    verify(name, {**params, "multiplier": ratio}, codes(4, (2, 5, 7, 24), dtype), dtype=dtype)


def test_in_numbers() -> None:
    x = np.array([[-8, 3, 7], [100, -128, 127]], "int8")
    params = {"lo": -128, "hi": 127, "axes": [1], "keepdims": False}
    assert ORACLE["qreduce"]({**params, "largest": True}, x, "int8").tolist() == [7, 127]
    assert ORACLE["qreduce"]({**params, "largest": False}, x, "int8").tolist() == [-8, -128]
    grids = {"in_zp": 1, "out_zp": -2, "multiplier": 0.5}
    assert ORACLE["qsum"]({**params, **grids}, x, "int8").tolist() == [-2, 46]  # -0.5 and 48, half to even
    halves = {**params, "lo": -32768, "hi": 32767, "multiplier": 0.25}
    assert ORACLE["qsum16"](halves, x.astype("int16"), "int16").tolist() == [1, 25]  # 0.5 and 24.75
