"""Print which operators are computed in integers, by scheme: ``docs/OPERATORS.md``.

python scripts/operator_table.py > docs/OPERATORS.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from _operator_cases import EVERY, Case, models
from tvm import IRModule

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.recipe import Recipe, Rule, find_recipe
from tvm_qplugin.inspection import describe_module
from tvm_qplugin.onnx_import import supported_operators
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import scheme_of, stored_arguments
from tvm_qplugin.quantizer import quantize_module
from tvm_qplugin.targets import find_profile

SCHEMES = ("int8", "int16x8", "dynamic", "fp16")
STORED = {"int8": "int8 weights", "float16": "float16 constants"}
HEAD = """# Operators

What is computed in integers under which scheme. `scripts/operator_table.py` writes this page; the tests hold
it true, compile every row and compare it with the oracle, bit for bit. In a recipe that mixes int8 and
int16x8 an operator is what its own scheme says; one that only moves data has the scheme of what it reads.
What runs in float reads and writes floats, between integers that are converted around it. Layers with int8
weights under `dynamic` quantize their input at run time where the CPU has VNNI, and compute in float
elsewhere.

"""
TAIL = """
Further ONNX operators that are imported, as those above, in float, or as constants: """


def samples_of(module: IRModule, count: int, seed: int = 0) -> list[list[Array]]:
    """Normal random inputs."""
    values = np.random.default_rng(seed)
    shapes = [ir.spec_of(param).shape for param in module["main"].params]
    return [[values.normal(size=shape).astype("float32") for shape in shapes] for _ in range(count)]


def mixed(scheme: str, around: str, cases: Sequence[Case]) -> Recipe:
    """The cases in one scheme, and what is around them in another."""
    scopes = "|".join(case.scope for case in cases)
    return Recipe(f"{scheme} in {around}", around, rules=(Rule(scopes, scheme=scheme),))


def quantized(module: IRModule, recipe: str | Recipe, io: str = "float") -> IRModule:
    """The module in a scheme, calibrated with random samples."""
    needed = samples_of(module, 3) if find_recipe(recipe).integer else None
    return quantize_module(module, recipe=recipe, calibration=needed, io=io)


def states(module: IRModule, cases: Sequence[Case]) -> dict[str, str]:
    """What becomes of each case: "integer", "float: why", or how its constants are stored."""
    operators = describe_module(module, find_profile("host")).operators
    small, found = list(_stored(module)) if scheme_of(module) else [], {}
    for case in cases:
        kept = [STORED[dtype] for name, dtype in small if re.search(case.scope, name)]
        own = [op for op in operators if re.search(case.scope, op.name)]
        reasons = [_reason(str(op.reason)) for op in own if not op.integer]
        found[case.name] = (kept or reasons or (["integer"] if own else ["float"]))[0]
    return found


def _stored(module: IRModule) -> Iterator[tuple[str, str]]:
    """The names of what reads constants that are stored small, and their dtypes."""
    for (name, _), item in stored_arguments(module).items():
        yield name, item.array.dtype.name
    for var, value in ir.bindings(module["main"]):
        for array in map(ir.const_value, getattr(value, "args", ())):
            if array is not None and array.dtype.name in STORED:
                yield var.name, array.dtype.name


def _reason(text: str) -> str:
    return "float" if "(scheme " in text else f"float: {text.replace('relax.', '')}"


def table() -> dict[str, list[str]]:
    """The state in every scheme, by operator."""
    rows: dict[str, list[str]] = {}
    for cases, module in models():
        found = [states(quantized(module, scheme), cases) for scheme in SCHEMES]
        rows |= {case.name: [state[case.name] for state in found] for case in cases}
    return rows


def page(rows: Mapping[str, Sequence[str]]) -> str:
    """The text of ``docs/OPERATORS.md``."""
    lines = [["Operator", "ONNX", "`.tflite`", *SCHEMES], ["---"] * (3 + len(SCHEMES))]
    lines += [[case.name, case.onnx, case.tflite, *rows[case.name]] for case in EVERY]
    rest = sorted(supported_operators() - {name for case in EVERY for name in case.onnx.split()})
    return HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines) + TAIL + ", ".join(rest) + ".\n"


if __name__ == "__main__":
    print(page(table()), end="")
