"""The kernel whose speed is the peak: its sums, its instructions, and what is said where there is none."""

import numpy as np
import pytest
import tvm

from tvm_qplugin import peak
from tvm_qplugin.schedules.x86_isa import TABLE, Isa, supports
from tvm_qplugin.targets import find_profile, tvm_target

CPUS = {
    "vnni512": "icelake-server",
    "avxvnni256": "alderlake",
    "avx2": "haswell",
    "avx2_pairs": "haswell",
    "f32_512": "icelake-server",
    "f32_256": "haswell",
    "i16_512": "icelake-server",
    "i16_256": "alderlake",
    "i16_avx2": "haswell",
}
MNEMONICS = {
    "vnni512": "vpdpbusd",
    "avxvnni256": "vpdpbusd",
    "avx2": "vpmaddwd",
    "avx2_pairs": "vpmaddubsw",
    "f32_512": "vfmadd",
    "f32_256": "vfmadd",
    "i16_512": "vpdpwssd",
    "i16_256": "vpdpwssd",
    "i16_avx2": "vpmaddwd",
}


def expected(isa: Isa, steps: int) -> np.ndarray:
    left, right, start, _ = (array.astype("int64") for array in peak.operands(isa))
    a = left.reshape(peak.ROWS, -1, 1, isa.lanes, isa.depth)
    b = right.reshape(1, 1, peak.VECTORS, isa.lanes, isa.depth)
    rows = [(t + n) % peak.ROWS for t in range(steps) for n in range(max(isa.chain, 1))]
    return start + (a * b).sum(-1)[rows].sum(0).reshape(-1)


@pytest.mark.parametrize(
    "name", [n for n, i in TABLE.items() if supports(i, tvm_target(find_profile("host")))]
)
def test_every_step_adds_its_products(name):
    isa, steps = TABLE[name], 7
    function = tvm.compile(
        tvm.IRModule({"peak": peak.peak_kernel(isa, steps)}), tvm_target(find_profile("host"))
    )
    arrays = [tvm.runtime.tensor(array) for array in peak.operands(isa)]
    function["peak"](*arrays)
    np.testing.assert_array_equal(arrays[-1].numpy(), expected(isa, steps))


@pytest.mark.parametrize("name", TABLE)
def test_the_loop_holds_its_accumulators_in_registers(name):
    isa = TABLE[name]
    target = tvm.target.Target({"kind": "llvm", "mcpu": CPUS[name]})
    library = tvm.compile(tvm.IRModule({"peak": peak.peak_kernel(isa, 100)}), target)
    lines = library.mod.inspect_source("asm").splitlines() if hasattr(library, "mod") else []
    count = sum(MNEMONICS[name] in line for line in lines)
    tile = isa.registers - isa.scratch - peak.VECTORS - 2
    assert count >= tile // 2 * 2
    assert not [line for line in lines if MNEMONICS[name] in line and "(%rsp)" in line]


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", "int16"])
def test_a_peak_or_a_reason(dtype):
    found = peak.peak_of(dtype)
    assert peak.peak_of(dtype) is found
    if peak.host_isa(dtype) is None:
        assert found.gmacs is None and "no instruction" in str(found.reason)
    else:
        assert found.gmacs is not None and found.gmacs > 0 and found.reason is None
        assert found.to_json()["instruction"] in peak.INSTRUCTIONS.values()


def test_no_instruction_is_a_reason(monkeypatch):
    monkeypatch.setattr(peak, "host_isa", lambda dtype: None)
    peak.peak_of.cache_clear()
    assert (
        peak.peak_of("float32").reason
        == "this CPU has no instruction for float32 whose peak could be measured"
    )
    peak.peak_of.cache_clear()


def test_other_types_have_no_peak():
    assert peak.peak_of("int32") == peak.Peak(None, None, "the peak of int32 is not measured")


def test_every_instruction_set_has_a_name():
    assert set(peak.INSTRUCTIONS) == set(TABLE)
