"""Every operator in every scheme: integers where docs/OPERATORS.md says so, compiled equal to the oracle."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax

from tvm_qplugin.builder import compile_module, operators_of
from tvm_qplugin.core.attrs import KERNEL
from tvm_qplugin.core.profile import INT8_KINDS
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.frontend import load
from tvm_qplugin.inspection import describe_module
from tvm_qplugin.kernels import KERNELS
from tvm_qplugin.onnx_import import CONVERTERS
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.lut import UNARY
from tvm_qplugin.passes.nhwc_rules import RULES
from tvm_qplugin.passes.op_kinds import ELEMENTWISE, KINDS
from tvm_qplugin.simulator import Simulator
from tvm_qplugin.targets import find_profile
from tvm_qplugin.tflite.reader import OPERATORS

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))
from _operator_cases import CASES, EVERY, Case, models, module_of  # noqa: E402
from operator_table import SCHEMES, mixed, page, quantized, samples_of, states  # noqa: E402

PAGE = (ROOT / "docs" / "OPERATORS.md").read_text()
MIXED = {"int8 in int16x8": ("int8", "int16x8"), "int16x8 in int8": ("int16x8", "int8")}
VARIANTS = [("host", True), ("x86-64", False), ("host", False), ("x86-64", True)]
NOT_OPERATORS = {"quantize", "dequantize", "TupleGetItem", "astype", "logical_not"}
"""What models have between operators, or on integers and truth values only."""
IMPORTED_ONLY = {
    "QuantizeLinear",
    "DequantizeLinear",
    "QUANTIZE",
    "DEQUANTIZE",
    "Identity",
    "Dropout",
    "Expand",
}
"""What becomes no operator: quantization, and what is folded or left out."""


def listed() -> dict[str, list[str]]:
    """The states that the page gives every operator, by scheme."""
    rows = [line.strip("| \n").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return {row[0]: row[-len(SCHEMES) :] for row in rows[2:]}


def expected(cases: Sequence[Case], scheme: str) -> dict[str, str]:
    rows = listed()
    return {case.name: rows[case.name][SCHEMES.index(scheme)] for case in cases}


def prepared(module: IRModule, cases: Sequence[Case], scheme: str) -> IRModule:
    """In one of SCHEMES or MIXED, or int8 with integer inputs and outputs."""
    if scheme in MIXED:
        return quantized(module, mixed(*MIXED[scheme], cases))
    return quantized(module, "int8", "int8") if scheme == "int8 io" else quantized(module, scheme)


def inputs_of(module: IRModule) -> list[list[Array]]:
    """Random ones as calibrated, some far beyond any range, none but zeros, and none but extremes."""
    (normal,), signs = samples_of(module, 1, seed=1), np.random.default_rng(2)
    wide = [x * np.float32(1000) for x in normal]
    ends = [signs.choice(np.float32([-1e4, 1e4]), x.shape) for x in normal]
    found = [normal, wide, [np.zeros_like(x) for x in normal], ends]
    if str(module["main"].params[0].ty.dtype) == "int8":
        return [[np.clip(np.rint(x * 30), -128, 127).astype("int8") for x in arrays] for arrays in found]
    return found


def owners(module: IRModule, cases: Sequence[Case]) -> list[Case]:
    """The case of every output."""
    count = len(ir.output_vars(module["main"])) // len(cases)
    return [case for case in cases for _ in range(count)]


def wrong(
    module: IRModule, cases: Sequence[Case], table: dict[str, str], target: str, merge: bool
) -> list[str]:
    """The cases of which a compiled result is not the oracle's.

    Integers are exact everywhere, and so is all on the CPU that float parts of the oracle are compiled for.
    On another one sums in float are in another order. Where the target has no kernel for a layer of the
    scheme ``dynamic``, it reads floats as they are: the oracle's have eight bits for the largest of a row.
    """
    executable, lowered = compile_module(module, target, merge=merge)
    machine, oracle, found = relax.VirtualMachine(executable, tvm.cpu()), Simulator(module), []
    kernels = {op.name for op in operators_of(lowered) if op.kernel in ("dconv2d", "ddense")}
    bounds = {case.name: _bound(case, table[case.name], target, kernels) for case in cases}
    for arrays in inputs_of(module):
        results = machine["main"](*[tvm.runtime.tensor(array) for array in arrays])
        for case, result, want in zip(owners(module, cases), results, oracle.run(*arrays), strict=True):
            real = result.numpy()
            if real.dtype != want.dtype or not _near(real, want, bounds[case.name]):
                found.append(f"{case.name}: {int((real != want).sum())} of {real.size} differ")
    return sorted(set(found))


def _bound(case: Case, state: str, target: str, kernels: set[str]) -> float:
    """How far results may be off, as a share of the largest."""
    if state == "int8 weights" and not any(re.search(case.scope, name) for name in kernels):
        return 2e-2
    return 0.0 if target == "host" or state == "integer" else 1e-5


def _near(a: Array, b: Array, share: float) -> bool:
    if share == 0:
        return np.array_equal(a, b, equal_nan=True)
    largest = np.abs(b[np.isfinite(b)], dtype="float64").max(initial=0)
    return np.allclose(a.astype("float64"), b, rtol=share, atol=share * largest, equal_nan=True)


def check(cases: Sequence[Case], module: IRModule, scheme: str, variants: Sequence[tuple[str, bool]]) -> None:
    """The states are those of the page, and all variants compute what the oracle does."""
    made = prepared(module, cases, scheme)
    table = expected(cases, scheme.split()[0])
    if scheme not in MIXED:
        assert states(made, cases) == table
    for target, merge in variants:
        assert wrong(made, cases, table, target, merge) == [], f"{target}, merge={merge}"


@pytest.fixture(scope="module", name="every")
def _every() -> list[tuple[Sequence[Case], IRModule]]:
    return list(models())


Models = list[tuple[Sequence[Case], IRModule]]
ALL_SCHEMES = [*SCHEMES, "int8 io", *MIXED]


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_integer_operators(every: Models, scheme: str) -> None:
    cases, module = every[0]
    check(cases, module, scheme, VARIANTS[:1])


@pytest.mark.parametrize(("scheme", "first"), [(scheme, i % 3) for i, scheme in enumerate(ALL_SCHEMES[2:])])
def test_operators(scheme: str, first: int) -> None:
    """Every third one."""
    cases = CASES[first::3]
    check(cases, load(module_of(cases)), scheme, VARIANTS[:1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_attention_and_cells(every: Models, scheme: str) -> None:
    for cases, module in every[1:]:
        check(cases, module, scheme, VARIANTS[:1])


@pytest.mark.parametrize(("scheme", "first"), [(scheme, i % 6) for i, scheme in enumerate(ALL_SCHEMES)])
def test_portable_kernels(scheme: str, first: int) -> None:
    """Every sixth operator."""
    cases = CASES[first::6]
    check(cases, load(module_of(cases)), scheme, VARIANTS[1:2])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ALL_SCHEMES)
def test_operators_at_length(every: Models, scheme: str) -> None:
    for cases, module in every[: 1 if scheme == "int8 io" else None]:
        check(cases, module, scheme, VARIANTS)


def test_the_page_is_what_the_script_prints() -> None:
    assert page(listed()) == PAGE


def test_every_registered_operator_is_in_the_table() -> None:
    """What quantization, layouts or tables know by Relax's name."""
    block = module_of(CASES)["main"]
    used = {ir.op_name(value).removeprefix("relax.") for _, value in ir.bindings(block)} | {"matmul"}
    registered = {name.removeprefix("relax.") for name in {*KINDS, *ELEMENTWISE}} | set(UNARY) | set(RULES)
    assert registered - NOT_OPERATORS <= used


def test_every_imported_operator_is_in_the_table() -> None:
    named = {name for case in EVERY for name in f"{case.onnx} {case.tflite}".split()}
    assert (set(CONVERTERS) | set(OPERATORS)) - IMPORTED_ONLY <= named


def test_every_kind_and_kernel_is_reached(every: Models) -> None:
    """But for what the report calls by another name, what only .tflite files have, and kernels for floats."""
    kinds: set[str] = set()
    kernels = {"qlstm", "fconv2d", "fdense", "wdense", "wexpand", "dmatmul"}
    for cases, module in every[:2]:
        for scheme in ("int8", "int16x8 in int8"):
            made = prepared(module, cases, scheme)
            entries = describe_module(made, find_profile("host")).operators
            kinds |= {entry.op for entry in entries}
            kernels |= {str(entry.kernel) for entry in entries}
            kernels |= {str((f.attrs or {}).get(KERNEL)) for f in Simulator(made).module.functions.values()}
    assert INT8_KINDS - {"lut", "split_item"} - kinds == set()
    assert set(KERNELS) - kernels == set()
