"""What a device would make of a ``.tflite`` file, operator by operator, and why: a prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from tvm_qplugin.core.device_rules import DeviceRules, Limit, Op, OpRule
from tvm_qplugin.core.errors import ModelError, TargetError
from tvm_qplugin.tflite.file import TfliteModel, TfliteOperator, TfliteTensor

IO = {"QUANTIZE": "input", "DEQUANTIZE": "output"}


@dataclass(frozen=True)
class Finding:
    """One operator: where it runs, in the words of the device's compiler, and the rule that decided.

    ``hint`` is what would change it, ``note`` what the tables are too vague about. ``cut_off``: nothing
    is wrong with the operator itself, it only comes after one that does not map.
    """

    index: int
    operator: str
    tensor: str
    shape: tuple[int, ...]
    placed: Literal["mapped", "cpu"]
    status: str
    rule: str
    hint: str = ""
    note: str = ""
    runtime: int = 0
    cut_off: bool = False


@dataclass(frozen=True)
class CheckReport:
    """The prediction for a whole file.

    ``cut`` is the index of the operator after which nothing maps (None: there is none), ``partitions``
    the number of runs of mapped operators, ``runtime`` the version that the mapped operators need (0:
    any). ``streamed_bytes`` of the parameters do not fit on the chip and are read at every inference.
    ``failure``: why the compiler may refuse the whole model; "" if nothing is known.
    """

    device: str
    prediction: str
    source: str
    findings: tuple[Finding, ...]
    cut: int | None
    runtime: int
    parameter_bytes: int
    on_chip_bytes: int | None
    float_io: tuple[str, ...]
    failure: str = ""
    versioned: str = "runtime"

    @property
    def mapped(self) -> int:
        """How many operators map."""
        return sum(finding.placed == "mapped" for finding in self.findings)

    @property
    def complete(self) -> bool:
        """Whether every operator maps."""
        return self.mapped == len(self.findings)

    @property
    def partitions(self) -> int:
        """How often the model enters the device."""
        placed = ["cpu", *(finding.placed for finding in self.findings)]
        return sum(a == "cpu" and b == "mapped" for a, b in pairwise(placed))

    @property
    def streamed_bytes(self) -> int:
        """Parameters that do not fit on the chip."""
        return max(0, self.parameter_bytes - self.on_chip_bytes) if self.on_chip_bytes is not None else 0


def check(model: TfliteModel, rules: DeviceRules, runtime: int | None = None) -> CheckReport:
    """Predict what the device runs; ``runtime`` is its runtime version (None: the newest known).

    Raises TargetError for a runtime version that the table does not know, ModelError for a file whose
    shapes contradict each other.
    """
    version = _known(rules, runtime)
    findings: list[Finding] = []
    cut: int | None = None
    for index, operator in enumerate(model.operators):
        finding = _finding(model, rules, version, index, operator)
        if cut is not None:
            finding = _after(finding, rules, findings[cut])
        elif finding.placed == "cpu" and rules.one_subgraph and not _converts_io(model, operator):
            cut = index
        findings.append(finding)
    mapped = [model.operators[f.index] for f in findings if f.placed == "mapped"]
    return CheckReport(
        rules.title,
        rules.prediction,
        rules.source,
        tuple(findings),
        cut,
        max((f.runtime for f in findings if f.placed == "mapped"), default=0),
        _parameter_bytes(model, mapped),
        rules.on_chip_bytes,
        _float_io(model) if rules.one_subgraph else (),
        _failure(model, rules, mapped),
        rules.versioned,
    )


def _known(rules: DeviceRules, runtime: int | None) -> int:
    low, high = rules.runtimes
    if runtime is not None and not low <= runtime <= high:
        known = f"expected {low} to {high}" if high else "it has no runtime versions: leave the option out"
        raise TargetError(f"{rules.versioned} {runtime} of {rules.title} is unknown; {known}")
    return high if runtime is None else runtime


def _finding(
    model: TfliteModel, rules: DeviceRules, runtime: int, index: int, operator: TfliteOperator
) -> Finding:
    op, row = _view(model, operator), rules.row(operator.name)
    name, shape = (op.outputs[0].name, op.outputs[0].shape) if op.outputs else ("", ())
    base = Finding(index, operator.name, name, shape, "cpu", rules.words.unsupported, "")
    if row is None or operator.custom:
        kind = "custom operator" if operator.custom else "operator"
        hint = rules.rewrites.get(operator.name, rules.default_rewrite)
        return replace(base, rule=f"no row for the {kind} {operator.name}", hint=hint)
    broken = _broken(op, (*rules.everywhere, *row.limits))
    if broken is not None:
        limit, how = broken
        status = rules.words.dtype if limit.dtype else rules.words.limited
        hint = rules.rewrites.get(operator.name, limit.hint) if limit.dtype else limit.hint
        return replace(base, status=status, rule=f"{limit.text}: {how}", hint=hint)
    return _mapped(base, rules, row, op, runtime)


def _mapped(base: Finding, rules: DeviceRules, row: OpRule, op: Op, runtime: int) -> Finding:
    needed, why = row.runtime, ""
    for limit, version in (*rules.older, *row.older):
        how = _how(limit, op) if version > needed else None
        if how is not None:
            needed, why = version, f" ({limit.text}: {how})"
    if needed > runtime:
        rule = f"needs {rules.versioned} {needed}, not {runtime}{why}"
        hint = f"use {rules.versioned} {needed} or newer"
        return replace(base, status=rules.words.unsupported, rule=rule, hint=hint)
    vague = _how(row.caution, op) if row.caution else None
    note = f"{row.caution.text}: {vague}" if row.caution and vague else ""
    rule = "; ".join(limit.text for limit in row.limits) or "no limit"
    return replace(base, placed="mapped", status=rules.words.mapped, rule=rule, note=note, runtime=needed)


def _after(finding: Finding, rules: DeviceRules, cut: Finding) -> Finding:
    """An operator behind the cut: it would map alone, or has its own reason not to."""
    if finding.placed == "cpu":
        return finding
    where = f"operator {cut.index} ({cut.operator})"
    rule = f"comes after {where}, which does not map"
    hint = f"make {where} map"
    status = rules.words.after_cut
    return replace(finding, placed="cpu", status=status, rule=rule, hint=hint, note="", cut_off=True)


def _broken(op: Op, limits: Iterable[Limit]) -> tuple[Limit, str] | None:
    for limit in limits:
        how = _how(limit, op)
        if how is not None:
            return limit, how
    return None


def _how(limit: Limit, op: Op) -> str | None:
    """How a limit is broken. Shapes and options of a damaged file may contradict each other: ModelError."""
    try:
        return limit.broken(op)
    except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        made = op.outputs[0].name if op.outputs else "nothing"
        raise ModelError(
            f"{op.name} that makes {made}: its shapes or options are wrong ({error}); the file is damaged: "
            "export it again"
        ) from None


def _view(model: TfliteModel, operator: TfliteOperator) -> Op:
    inputs = tuple(None if i < 0 else model.tensors[i] for i in operator.inputs)
    outputs = tuple(model.tensors[i] for i in operator.outputs)
    return Op(operator.name, operator.options, inputs, outputs, operator.version)


def _converts_io(model: TfliteModel, operator: TfliteOperator) -> bool:
    """QUANTIZE right behind a float input, DEQUANTIZE right before an output: they cut nothing."""
    side = IO.get(operator.name)
    ends = {"input": (operator.inputs, model.inputs), "output": (operator.outputs, model.outputs)}
    return side is not None and set(ends[side][0]) <= set(ends[side][1])


def _parameter_bytes(model: TfliteModel, mapped: Iterable[TfliteOperator]) -> int:
    used = {index for operator in mapped for index in operator.inputs if index >= 0}
    return sum(model.tensors[index].nbytes for index in used if _is_constant(model.tensors[index]))


def _is_constant(tensor: TfliteTensor) -> bool:
    return tensor.data is not None or tensor.sparse


def _float_io(model: TfliteModel) -> tuple[str, ...]:
    ends = (*model.inputs, *model.outputs)
    return tuple(model.tensors[i].name for i in ends if "float" in model.tensors[i].dtype)


def _failure(model: TfliteModel, rules: DeviceRules, mapped: Iterable[TfliteOperator]) -> str:
    if not rules.words.activations or rules.on_chip_bytes is None:
        return ""
    for operator in mapped:
        for tensor in _view(model, operator).activations:
            size = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
            if size > rules.on_chip_bytes:
                return f"{rules.words.activations} ({tensor.name} alone takes {size / 2**20:.1f} MiB)"
    return ""
