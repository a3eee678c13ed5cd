"""Generated x86 products of two activations against the oracle, to the bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import instruction_sets
import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.fixed_point import quantize_multiplier, reduced_factors
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.x86_matmul import MOST_FLOATS, MOST_MAGNITUDE, MOST_WORDS, rule

TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "avx2": ({"mcpu": "haswell"}, "avx2"),
    "avxvnni256": ({"mcpu": "x86-64-v3", "mattr": ["+avxvnni"]}, "avx_vnni"),
    "vnni512": ({"mcpu": "icelake-server"}, "avx512_vnni"),
}
SCORES: dict[str, Any] = {"out_zp": 0, "lo": -32768, "hi": 32767, "multiplier": quantize_multiplier(0.05)}
BYTES: dict[str, Any] = {"out_zp": 9, "lo": 3, "hi": 250, "multiplier": quantize_multiplier(0.002)}
LARGER = {**BYTES, "multiplier": quantize_multiplier(1.7)}
TINY = {**BYTES, "multiplier": quantize_multiplier(2.0**-28)}
LOW, HIGH = -32768, 32767

target_of = partial(instruction_sets.target_of, TARGETS)
every_isa = pytest.mark.parametrize("isa", TARGETS)
Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def runs(name: str) -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and TARGETS[name][1] in info.read_text().split()


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


@every_isa
@pytest.mark.parametrize(
    ("a", "b", "zero_points", "params", "dtype"),
    [
        ((12, 64, 32), (12, 32, 64), (131, 128), SCORES, "int16"),
        ((1, 3, 7, 33), (1, 3, 33, 21), (0, 255), BYTES, "uint8"),
        ((5, 70), (70, 17), (255, 7), LARGER, "uint8"),
        ((40, 66, 64), (40, 64, 32), (100, 90), BYTES, "uint8"),
        ((3, 9000), (9000, 18), (0, 0), TINY, "uint8"),
        ((2, 40_000), (40_000, 16), (0, 0), SCORES, "int16"),
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


SHAPES: list[Shapes] = [
    ((12, 64, 64), (12, 64, 32)),
    ((3, 7, 33), (3, 33, 16)),
    ((5, 256), (256, 48)),
    ((2, 50, 50), (2, 50, 64)),
    ((2, 9, 64), (2, 64, 197)),
    ((4, MOST_WORDS), (MOST_WORDS, 17)),
    ((4, MOST_WORDS + 1), (MOST_WORDS + 1, 17)),
    ((1, 2, 5, 1201), (1, 2, 1201, 33)),
    ((3, 4, 384), (3, 384, 64)),
]


def word_params(depth: int, factor: float = 2e-5) -> dict[str, Any]:
    factors, shift = reduced_factors(factor / np.sqrt(depth))
    return {"out_zp": 0, "lo": -30000, "hi": 32767, "factor": int(factors), "shift": int(shift)}


@every_isa
@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_words(isa: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(LOW, HIGH + 1, shape).astype("int16") for shape in (a, b)]
    arrays[0][..., 0, :], arrays[1][..., 0] = LOW, LOW
    arrays[0][..., -1, :], arrays[1][..., 1] = LOW, HIGH
    check(isa, "qmatmul16", word_params(a[-1]), arrays, "int16")


@every_isa
@pytest.mark.parametrize("depth", [MOST_WORDS, 1023, 1024, 5000])
def test_sums_of_extreme_words(isa: str, depth: int) -> None:
    """All pairs of values whose low or high parts are largest, in rows and columns of nothing else."""
    values = np.array([LOW, HIGH, -1, 0, 127, 128, -128, -129, 255, -32640, -32641, 32639, 32640], "int16")
    a = np.repeat(values[:, None], depth, 1)
    check(isa, "qmatmul16", word_params(depth, 1e-5), [a, np.ascontiguousarray(a.T)], "int16")


@every_isa
@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize(("depth", "columns"), [(384, 64), (67, 21), (2000, 16), (3, 5)])
def test_rows_of_moderate_words(isa: str, depth: int, columns: int, beyond: int) -> None:
    """Magnitudes of a row up to the largest sum of which products stay in int32, or one more."""
    rng = np.random.default_rng(depth)
    a = rng.integers(-5, 6, (2, 9, depth)).astype("int16")
    a[:, 0], a[:, 1] = 0, 0
    a[:, 0, -2:], a[:, 1, :2] = (LOW, LOW + 1 - beyond), (HIGH, LOW)
    b = rng.integers(LOW, HIGH + 1, (2, depth, columns)).astype("int16")
    b[..., 0], b[..., 1], b[..., -1] = LOW, HIGH, -1
    assert np.abs(a.astype("int64")).sum(-1).max() == MOST_MAGNITUDE + beyond
    for factor in (2.0**-16, 1.3 * 2.0**-15):
        check(isa, "qmatmul16", word_params(1, factor), [a, b], "int16")


@every_isa
@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(["qmatmul", "qmatmul16", "dmatmul"]), st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 3), st.integers(4, 20), st.integers(1, 70), st.integers(1, 70), st.integers(0, 99),
)  # fmt: skip
def test_any_product_equals_the_oracle(
    isa: str, name: str, lead: list[int], many: int, rows: int, depth: int, columns: int, seed: int
) -> None:
    """Also of ``many`` first operands with one second."""
    rng = np.random.default_rng(seed)
    shapes = (*lead, many, rows, depth), (*lead, 1, depth, columns)
    if name == "dmatmul":
        floats = [np.asarray(rng.normal(size=shape), "float32") for shape in shapes]
        check(isa, name, {}, floats, "float32")
    elif name == "qmatmul16":
        words = [rng.integers(LOW, HIGH + 1, shape).astype("int16") for shape in shapes]
        check(isa, name, word_params(depth), words, "int16")
    else:
        codes = [rng.integers(0, 256, shape).astype("uint8") for shape in shapes]
        zeros = {"a_zp": int(rng.integers(256)), "b_zp": int(rng.integers(256))}
        check(isa, name, {**BYTES, **zeros}, codes, "uint8")


@every_isa
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((12, 64, 64), (12, 64, 32)),
        ((1, 3, 7, 33), (1, 3, 33, 21)),
        ((9, 5), (5, 16)),
        ((4, 3), (3, 5)),
        ((1, 9000), (9000, 18)),
    ],
)
def test_floats(isa: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    arrays = [np.asarray(rng.normal(size=shape) * 3 + 1, "float32") for shape in (a, b)]
    arrays[0][..., 0, :], arrays[1][..., -1] = 0, 0
    check(isa, "dmatmul", {}, arrays, "float32")


@pytest.mark.parametrize(
    ("name", "a", "b", "dtype", "mcpu"),
    [
        ("qmatmul", (1, 8, 32), (2, 32, 16), "uint8", "icelake-server"),
        ("qmatmul", (2, 1, 8, 32), (1, 3, 32, 16), "uint8", "icelake-server"),
        ("qmatmul", (12, 1, 32), (12, 32, 16), "uint8", "icelake-server"),
        ("qmatmul16", (12, 3, 32), (12, 32, 16), "int16", "icelake-server"),
        ("qmatmul16", (12, 1, 32), (12, 32, 16), "int16", "haswell"),
        ("qmatmul", (8, 32), (32, 16), "int8", "icelake-server"),
        ("qmatmul", (8, 32), (32, 16), "uint8", "x86-64"),
        ("dmatmul", (8, MOST_FLOATS + 1), (MOST_FLOATS + 1, 16), "float32", "icelake-server"),
    ],
)
def test_others_are_left_to_the_portable_kernel(
    name: str, a: tuple[int, ...], b: tuple[int, ...], dtype: str, mcpu: str
) -> None:
    arrays = [np.zeros(shape, dtype) for shape in (a, b)]
    params = {**BYTES, "a_zp": 0, "b_zp": 0}
    out = TensorSpec((*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1]), dtype)
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu})
    assert rule(call_of(name, params, arrays, out), target) is None
