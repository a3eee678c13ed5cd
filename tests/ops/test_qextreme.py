from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tvm_qplugin.core.oracle import qextreme
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array

Verify = Callable[..., None]
Codes = Callable[..., Array]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("other", [(2, 5, 7, 24), (1, 1, 1, 24), (2, 1, 7, 1), (24,), ()])
def test_equals_the_oracle(
    verify: Verify, codes: Codes, dtype: str, largest: bool, other: tuple[int, ...]
) -> None:
    low, high = INTEGER_RANGE[dtype]
    for lo, hi in ((low, high), (low + 60, high - 60)):
        params = {"lo": lo, "hi": hi, "out_zp": 0, "largest": largest}
        verify("qextreme", params, codes(1, (2, 5, 7, 24), dtype), codes(2, other, dtype), dtype=dtype)


def test_in_numbers() -> None:
    a, b = np.array([-128, 5, 127], "int8"), np.array([[0], [100]], "int8")
    bounds = {"lo": -128, "hi": 120}
    assert qextreme({**bounds, "largest": True}, a, b, "int8").tolist() == [[0, 5, 120], [100, 100, 120]]
    assert qextreme({**bounds, "largest": False}, a, b, "int8").tolist() == [[-128, 0, 0], [-128, 5, 100]]
