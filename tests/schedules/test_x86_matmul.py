"""Generated x86 products of two activations against the oracle, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.fixed_point import quantize_multiplier, reduced_factors
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.x86_matmul import rule

TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "avxvnni256": ({"mcpu": "x86-64-v3", "mattr": ["+avxvnni"]}, "avx_vnni"),
    "vnni512": ({"mcpu": "icelake-server"}, "avx512_vnni"),
}
AVX2: tuple[dict[str, Any], str] = ({"mcpu": "haswell"}, "avx2")
SCORES: dict[str, Any] = {"out_zp": 0, "lo": -32768, "hi": 32767, "multiplier": quantize_multiplier(0.05)}
BYTES: dict[str, Any] = {"out_zp": 9, "lo": 3, "hi": 250, "multiplier": quantize_multiplier(0.002)}
LARGER = {**BYTES, "multiplier": quantize_multiplier(1.7)}


def target_of(name: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "num-cores": 2, **TARGETS.get(name, AVX2)[0]})


def runs(name: str) -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and TARGETS.get(name, AVX2)[1] in info.read_text().split()


def call_of(name: str, params: dict[str, Any], arrays: list[Array], out: TensorSpec) -> KernelCall:
    return KernelCall(name, params, tuple(TensorSpec(a.shape, str(a.dtype)) for a in arrays), out)


def check(isa: str, name: str, params: dict[str, Any], arrays: list[Array], dtype: str) -> None:
    """Every instruction set is generated and compiled; those that this CPU has are run."""
    target, expected = target_of(isa), ORACLE[name](params, *arrays, dtype)
    made = rule(call_of(name, params, arrays, TensorSpec(expected.shape, dtype)), target)
    assert made is not None and made.args == (0, 1)
    library = tvm.compile(made.func.with_attr("global_symbol", "main"), target=target)
    if runs(isa):
        result = tvm.runtime.tensor(np.full(expected.shape, 77, dtype))
        library["main"](*map(tvm.runtime.tensor, arrays), result)
        np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize(
    ("a", "b", "zero_points", "params", "dtype"),
    [
        ((12, 64, 32), (12, 32, 64), (131, 128), SCORES, "int16"),
        ((1, 3, 7, 33), (1, 3, 33, 21), (0, 255), BYTES, "uint8"),
        ((5, 70), (70, 17), (255, 7), LARGER, "uint8"),
        ((40, 66, 64), (40, 64, 32), (100, 90), BYTES, "uint8"),
    ],
)
def test_integers(
    isa: str,
    a: tuple[int, ...],
    b: tuple[int, ...],
    zero_points: tuple[int, int],
    params: dict[str, Any],
    dtype: str,
) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, shape).astype("uint8") for shape in (a, b)]
    arrays[0][..., 0, :], arrays[1][..., 0] = 255, 255
    check(isa, "qmatmul", {**params, "a_zp": zero_points[0], "b_zp": zero_points[1]}, arrays, dtype)


@pytest.mark.parametrize("isa", [*TARGETS, "avx2"])
@pytest.mark.parametrize(
    ("a", "b"), [((12, 64, 64), (12, 64, 32)), ((3, 7, 33), (3, 33, 16)), ((5, 256), (256, 48))]
)
def test_words(isa: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-32768, 32768, shape).astype("int16") for shape in (a, b)]
    arrays[0][..., 0, :], arrays[1][..., 0] = -32768, -32768
    arrays[0][..., 1, :], arrays[1][..., 1] = -32768, 32767
    factor, shift = reduced_factors(2e-5 / np.sqrt(a[-1]))
    params = {"out_zp": 0, "lo": -30000, "hi": 32767, "factor": int(factor), "shift": int(shift)}
    check(isa, "qmatmul16", params, arrays, "int16")


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize(
    ("a", "b"), [((12, 64, 64), (12, 64, 32)), ((1, 3, 7, 33), (1, 3, 33, 21)), ((9, 5), (5, 16))]
)
def test_floats(isa: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    arrays = [np.asarray(rng.normal(size=shape) * 3 + 1, "float32") for shape in (a, b)]
    arrays[0][..., 0, :], arrays[1][..., -1] = 0, 0
    check(isa, "dmatmul", {}, arrays, "float32")


@pytest.mark.parametrize(
    ("a", "b", "dtype", "mcpu"),
    [
        ((2, 8, 32), (1, 32, 16), "uint8", "icelake-server"),
        ((8, 32), (32, 15), "uint8", "icelake-server"),
        ((8, 3), (3, 16), "uint8", "icelake-server"),
        ((8, 32), (32, 16), "int8", "icelake-server"),
        ((8, 32), (32, 16), "uint8", "haswell"),
    ],
)
def test_others_are_left_to_the_portable_kernel(
    a: tuple[int, ...], b: tuple[int, ...], dtype: str, mcpu: str
) -> None:
    arrays = [np.zeros(shape, dtype) for shape in (a, b)]
    params = {**BYTES, "a_zp": 0, "b_zp": 0}
    out = TensorSpec((*a[:-1], b[-1]), dtype)
    assert (
        rule(call_of("qmatmul", params, arrays, out), tvm.target.Target({"kind": "llvm", "mcpu": mcpu}))
        is None
    )
