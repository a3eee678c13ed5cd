"""Which calls with halos x86 has kernels for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.schedules import x86_halo

TARGET = tvm.target.Target({"kind": "llvm", "mcpu": "icelake-server"})
OLD = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"})
ONE = [1, 1, 1, 1]


def conv(columns: int = 16, groups: int = 1, **halos: list[int]) -> KernelCall:
    """A 3 x 3 convolution of 32 channels whose halos are one row and column wide."""
    weight = np.ones((32, 3, 3, 32 // groups), "int8")
    constants = {1: weight, 2: np.zeros(32, "int32"), 3: np.ones(32, "float32")}
    params = {
        "strides": [1, 1], "padding": ONE, "dilation": [1, 1], "groups": groups, "in_zp": 3, "out_zp": 5,
        "lo": 0, "hi": 255, **halos,
    }  # fmt: skip
    grown = [2 * (side in halos) for side in ("in_halo", "out_halo")]
    x, y = (TensorSpec((1, 16 + more, columns + more, 32), "uint8") for more in grown)
    specs = tuple(TensorSpec(a.shape, str(a.dtype)) for a in constants.values())
    return KernelCall("qconv2d", params, (x, *specs), y, constants)


def elementwise(name: str, operands: int, **params: Any) -> KernelCall:
    inside, outside = (TensorSpec((1, size, size, 64), "uint8") for size in (16, 18))
    params = {"out_halo": ONE, "out_zp": 0, "lo": 0, "hi": 255, **params}
    return KernelCall(name, params, (inside,) * operands, outside)


SERVED = {
    "convolution that reads": conv(in_halo=ONE),
    "convolution that writes": conv(out_halo=ONE),
    "narrow convolution that reads": conv(7, in_halo=ONE),
    "depthwise": conv(7, 32, in_halo=ONE, out_halo=ONE),
    "addition": elementwise("qadd", 2, a_zp=0, a_mul=2**20, b_zp=0, b_mul=2**20, shift=20),
}
REFUSED = {
    "narrow convolution that writes": conv(7, out_halo=ONE),
    "clamp": elementwise("qclamp", 1),
    "multiplication": elementwise("qmul", 2, a_zp=0, b_zp=0, multiplier=0.1),
}


@pytest.mark.parametrize("case", SERVED)
def test_served(case: str) -> None:
    assert x86_halo.serves(SERVED[case], TARGET)
    assert not x86_halo.serves(SERVED[case], OLD)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    assert not x86_halo.serves(REFUSED[case], TARGET)
