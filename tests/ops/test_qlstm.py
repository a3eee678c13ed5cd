from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tvm_qplugin.core.qparams import Array

Verify = Callable[..., None]
Codes = Callable[..., Array]


def params_of(exponent: int = -12, clip: float = 0.0, zero: int = 0, gain: float = 1.0) -> dict[str, Any]:
    return {
        "in_scale": 0.03,
        "in_zp": -11,
        "out_scale": 1 / 120,
        "out_zp": zero,
        "input_scales": [gain * scale for scale in (0.011, 0.007, 0.013, 0.009)],
        "recurrent_scales": [gain * scale for scale in (0.008, 0.006, 0.01, 0.005)],
        "cell_exponent": exponent,
        "cell_clip": clip,
    }


def constants(codes: Codes, inputs: int, cells: int) -> tuple[Array, Array, Array]:
    bias = np.random.default_rng(3).integers(-3000, 3000, (4, cells)).astype("int32")
    return codes(1, (4, cells, inputs)), codes(2, (4, cells, cells)), bias


@pytest.mark.parametrize(
    ("shape", "cells"), [((1, 1, 1), 1), ((1, 9, 5), 7), ((3, 4, 16), 8), ((2, 6, 1), 33)]
)
def test_sizes(verify: Verify, codes: Codes, shape: tuple[int, ...], cells: int) -> None:
    verify("qlstm", params_of(clip=4.0), codes(0, shape), *constants(codes, shape[2], cells))


@pytest.mark.parametrize("exponent", range(-15, -8))
def test_scales_of_the_cell_state(verify: Verify, codes: Codes, exponent: int) -> None:
    params = params_of(exponent, gain=2.0 ** (exponent + 13))
    verify("qlstm", params, codes(0, (1, 12, 6)), *constants(codes, 6, 10))


@pytest.mark.parametrize("clip", [0.0, 0.3, 7.9, 10.0])
def test_clips_of_the_cell_state(verify: Verify, codes: Codes, clip: float) -> None:
    verify("qlstm", params_of(clip=clip, gain=3.0), codes(0, (1, 20, 4)), *constants(codes, 4, 9))


@pytest.mark.parametrize("zero", [-128, -20, 90])
def test_zero_points_of_the_hidden_state(verify: Verify, codes: Codes, zero: int) -> None:
    verify("qlstm", params_of(zero=zero), codes(0, (1, 8, 4)), *constants(codes, 4, 9))
