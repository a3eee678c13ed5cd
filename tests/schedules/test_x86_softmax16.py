"""Generated x86 softmax of int16 against the oracle, exactly."""

from __future__ import annotations

from functools import partial
from typing import Any

import instruction_sets
import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import runnable

from tvm_qplugin.core import oracle16
from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.interpolated import softmax_tables
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.x86_softmax16 import rule

TARGETS: dict[str, tuple[dict[str, Any], str]] = {"avx512": ({"mcpu": "icelake-server"}, "avx512_vnni")}
LOW, HIGH = -32768, 32767
every_isa = pytest.mark.parametrize("isa", runnable(TARGETS))
target_of = partial(instruction_sets.target_of, TARGETS)


def call_of(shape: tuple[int, ...], scale: float, axis: int = -1, hi: int = HIGH) -> KernelCall:
    tables = softmax_tables()
    params = {
        "axis": axis % len(shape), "multiplier": oracle16.softmax_multiplier(scale),
        "out_zp": 0, "lo": 0, "hi": hi,
    }  # fmt: skip
    specs = TensorSpec(shape, "int16"), *(TensorSpec(table.shape, "int16") for table in tables)
    return KernelCall("qsoftmax16", params, specs, TensorSpec(shape, "int16"), dict(enumerate(tables, 1)))


def check(isa: str, x: Array, scale: float, hi: int = HIGH) -> None:
    call, target = call_of(x.shape, scale, hi=hi), target_of(isa)
    expected = oracle16.qsoftmax16(call.params, x, *softmax_tables(), "int16")
    made = rule(call, target)
    assert made is not None and made.args[0] == 0
    func = made.func.with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target=target)
    tensors = [tvm.runtime.tensor(a) for a in (x, np.asarray(made.args[1]), np.full_like(x, 99))]
    library["main"](*tensors)
    np.testing.assert_array_equal(tensors[-1].numpy(), expected)


@every_isa
@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(1, 5), max_size=2), st.integers(32, 260), st.floats(2.0**-16, 2.0**-6),
    st.sampled_from([1, 40, 3000, 32767]), st.integers(0, 99),
)  # fmt: skip
def test_any_row_equals_the_oracle(
    isa: str, lead: list[int], width: int, scale: float, spread: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    check(isa, rng.integers(-spread - 1, spread + 1, (*lead, width)).astype("int16"), scale)


@every_isa
@pytest.mark.parametrize("scale", [2.0**-16, 10 / 65535, 0.001, 0.3, 2.0])
def test_every_distance(isa: str, scale: float) -> None:
    """From nothing to the whole range, in rows whose sums have all numbers of bits."""
    codes = np.arange(LOW, HIGH + 1).astype("int16").reshape(64, 1024)
    codes[:, 5] = HIGH
    check(isa, codes, scale)


@every_isa
@pytest.mark.parametrize("code", [LOW, 0, HIGH])
@pytest.mark.parametrize("width", [32, 33, 63, 65536])
def test_equal_elements(isa: str, code: int, width: int) -> None:
    check(isa, np.full((2, width), code, "int16"), 0.001)


@every_isa
def test_clamped(isa: str) -> None:
    x = np.random.default_rng(0).integers(LOW, HIGH + 1, (3, 50)).astype("int16")
    check(isa, x, 0.0005, hi=100)


@pytest.mark.parametrize(
    ("shape", "axis", "mcpu"),
    [((4, 31), -1, "icelake-server"), ((64, 64), 0, "icelake-server"), ((4, 64), -1, "haswell")],
)
def test_others_are_left_to_the_portable_kernel(shape: tuple[int, ...], axis: int, mcpu: str) -> None:
    assert rule(call_of(shape, 0.001, axis), tvm.target.Target({"kind": "llvm", "mcpu": mcpu})) is None
