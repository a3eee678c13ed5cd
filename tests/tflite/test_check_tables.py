"""Every row and every limit of every table: a model that keeps it, and one that breaks it and says how."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_qplugin.core.device_rules import DeviceRules, Limit, OpRule
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.targets.devices import DEVICES, find_device
from tvm_qplugin.tflite.check import Finding, check
from tvm_qplugin.tflite.file import TfliteModel, TfliteTensor, load


def _models() -> Any:
    spec = importlib.util.spec_from_file_location("tflite_models", Path(__file__).with_name("models.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


m = _models()
Break = Callable[[TfliteModel], TfliteModel]
OUTPUT = -1
GRID, PER_CHANNEL = QuantParams.of(0.5), QuantParams.of([0.1, 0.2, 0.3, 0.4], axis=0)
MODELS: dict[str, Any] = {**m.PASSING, **m.OTHERS}
PLAIN = {(device, "CONV_2D"): m.conv() for device in ("litert-hexagon", "ethos-u")}
"""Models where that of the Edge TPU breaks a rule of another device."""


def slot(index: int, **changed: Any) -> Break:
    """One tensor of the operator with other properties; ``index`` counts its inputs."""

    def edit(model: TfliteModel) -> TfliteModel:
        (op,) = model.operators
        return _edited(model, {op.outputs[0] if index == OUTPUT else op.inputs[index]}, lambda _t: changed)

    return edit


def activations(change: Callable[[TfliteTensor], dict[str, Any]]) -> Break:
    """Every tensor that is computed with other properties."""

    def edit(model: TfliteModel) -> TfliteModel:
        computed = {i for i, tensor in enumerate(model.tensors) if tensor.data is None}
        return _edited(model, computed, change)

    return edit


def _edited(
    model: TfliteModel, chosen: set[int], change: Callable[[TfliteTensor], dict[str, Any]]
) -> TfliteModel:
    tensors = [replace(x, **change(x)) if i in chosen else x for i, x in enumerate(model.tensors)]
    return replace(model, tensors=tuple(tensors))


def options(**changed: Any) -> Break:
    """The operator with other options."""

    def edit(model: TfliteModel) -> TfliteModel:
        (op,) = model.operators
        if not set(changed) & set(op.options):
            raise KeyError(f"{op.name} has no such option")
        return replace(model, operators=(replace(op, options={**op.options, **changed}),))

    return edit


def version(number: int) -> Break:
    return lambda model: replace(model, operators=(replace(model.operators[0], version=number),))


def both(*edits: Break) -> Break:
    def edit(model: TfliteModel) -> TfliteModel:
        for each in edits:
            model = each(model)
        return model

    return edit


def shaped(shape: tuple[int, ...], index: int = 0) -> Break:
    return slot(index, shape=shape)


def stored(index: int, values: Any, dtype: str = "int32", **more: Any) -> Break:
    array = np.asarray(values, dtype)
    return slot(index, data=array, shape=array.shape, dtype=dtype, **more)


def one_more_input(model: TfliteModel) -> TfliteModel:
    (op,) = model.operators
    return replace(model, operators=(replace(op, inputs=(*op.inputs, op.inputs[0])),))


def typed(dtype: str) -> Break:
    return activations(lambda _t: {"dtype": dtype})


def ranked(rank: int, first: int) -> Break:
    def change(tensor: TfliteTensor) -> dict[str, Any]:
        return {
            "shape": (first, *(1,) * (rank - 1 - len(tensor.shape[1 - rank :])), *tensor.shape[1 - rank :])
        }

    return activations(change)


ZEROS = np.zeros((1, 8, 8, 4))
BREAKS: list[tuple[str, Break]] = [
    *((rf"\w+ is {dtype}", typed(dtype)) for dtype in ("int16", "int32", "uint8", "float32", "bool")),
    (r"\w+ has an open size: .*", activations(lambda _t: {"unknown": (1,)})),
    (r"\w+ has shape \[2,.*\]", ranked(4, 2)),
    (r"\w+ has batch 2", activations(lambda x: {"shape": (2, *x.shape[1:])})),
    (r"\w+ has batch 2", ranked(4, 2)),
    (r"\w+ has 5 dimensions", ranked(5, 1)),
    (r"\w+ has 5 dimensions", both(ranked(5, 1), stored(1, [4]))),
    (r"\w+ has 5 dimensions", activations(lambda _t: {"shape": (1, 1, 8, 8, 4)})),
    *((r"\w+ is computed", slot(i, data=None, dtype="int8", quant=GRID)) for i in range(4)),
    (r"\w+ is int16", slot(1, dtype="int16")),
    (r"\w+ has 4 scales", slot(1, quant=PER_CHANNEL)),
    (r"\w+ has a scale per channel", slot(OUTPUT, quant=PER_CHANNEL)),
    (r"\w+ has another scale or zero point than the output", slot(0, quant=QuantParams.of(0.25))),
    *((rf"has version {number}", version(number)) for number in (4, 5, 6)),
    # options
    (r"has RELU6 fused", options(fused_activation_function="RELU6")),
    (r"has SIGN_BIT fused", options(fused_activation_function="SIGN_BIT")),
    (r"dilation_h_factor is 3, dilation_w_factor is \d", options(dilation_h_factor=3)),
    (r"dilation_h_factor is 3", options(dilation_h_factor=3)),
    (r"is dilated by 2x2", options(dilation_h_factor=2, dilation_w_factor=2)),
    (r"is dilated and strided", options(stride_h=2, stride_w=2, dilation_h_factor=2, dilation_w_factor=2)),
    (r"weights_format is SHUFFLED4X16INT8", options(weights_format="SHUFFLED4X16INT8")),
    (r"stride_h is 4", options(stride_h=4)),
    (r"strides are 4x4", options(stride_h=4, stride_w=4, dilation_h_factor=2, dilation_w_factor=2)),
    (
        r"depth_multiplier is 2 on 4 channels|has depth_multiplier 2 on 4 channels",
        options(depth_multiplier=2),
    ),
    (r"ellipsis_mask is 1", options(ellipsis_mask=1)),
    (r"new_axis_mask is 1", options(new_axis_mask=1)),
    (r"shrink_axis_mask is 1", options(shrink_axis_mask=1)),
    (r"beta is 2.0", options(beta=2.0)),
    (r"block_size is 1", options(block_size=1)),
    (r"keep_num_dims is True", options(keep_num_dims=True)),
    (r"mode is 1", options(mode=1)),
    (r"has both", options(align_corners=True, half_pixel_centers=True)),
    (r"has a window of 9x2", options(filter_height=9, padding="SAME")),
    (r"has a window of 257x2", options(filter_height=257)),
    (r"removes axes \[2\]", both(shaped((1, 8, 1, 4)), options(squeeze_dims=(2,)))),
    (r"works on axis 0 of 3", options(axis=0)),
    # constants
    *((rf"works on axis {axis} of \d", stored(i, [axis])) for i in (0, 1) for axis in (0, 1, 3)),
    (r"works on axis 3 of 4", both(shaped((1, 8, 8, 4)), stored(1, [3]))),
    (r"works along axis 1", stored(1, [1])),
    (r"pads axis 0 by \[1, 1\]", stored(1, [[1, 1], [0, 0], [0, 0], [0, 0]])),
    (r"pads axis 3 by \[0, 4\]", stored(1, [[0, 0], [0, 0], [0, 0], [0, 4]])),
    (r"paddings have shape \[2, 2\]", stored(1, [[0, 0], [0, 0]])),
    (r"strides are \[1, 2, 2, 1\]", stored(3, [1, 2, 2, 1])),
    (r"resizes to \[66, 66\]", stored(1, [66, 66])),
    (r"\w+ is not all zeros", stored(1, ZEROS + 1, "int8")),
    (r"joins 3 tensors, 1 of them constant", both(stored(1, ZEROS, "int8"), one_more_input)),
    (r"\w+ sums to 8890000", stored(1, np.full((1, 1, 1, 70_000), 127), "int8")),
    (r"\w+ sums to 8890000", stored(1, np.full((1, 70_000, 1, 1), 127), "int8")),
    (r"has a kernel of 65x1", shaped((4, 65, 1, 4), 1)),
    (r"alpha has shape \[8, 8, 4\]", shaped((8, 8, 4), 1)),
    # shapes
    (r"reduces 5 channels", both(shaped((1, 8, 8, 5)), stored(1, [3]))),
    (r"reduces 256x128", shaped((1, 256, 128, 3))),
    (r"reduces \[4096, 4\]", shaped((1, 4096, 4, 3))),
    (r"reduces the depth of \[1, 8, 8, 4\]", both(shaped((1, 8, 8, 4)), stored(1, [3]))),
    (r"\w+ has shape \[3,4\]", shaped((3, 4), OUTPUT)),
    (r"\w+ has shape \[2,8000\]", shaped((2, 8000))),
    (r"\w+ has 16001 elements", shaped((1, 16_001))),
    (r"has 65536 rows", shaped((65_536, 2))),
    (r"\w+ has 2 dimensions", activations(lambda _t: {"shape": (8, 4)})),
    (r"input has 2 dimensions", shaped((8, 4))),
    (r"depth is 128", shaped((1, 8, 8, 128))),
    (r"scales \[8, 8\] to \[24, 24\]", both(shaped((1, 8, 8, 4)), shaped((1, 24, 24, 4), OUTPUT))),
    (r"multiplies \[1, 8, 1, 4\] by \[1, 1, 8, 4\]", both(shaped((1, 8, 1, 4)), shaped((1, 1, 8, 4), 1))),
]
"""What is said, and the change to a model that makes it be said."""

ROWS = [(name, row.name) for name in DEVICES for row in DEVICES[name].rows]


def passing(litert: Any, device: str, operator: str) -> TfliteModel:
    make = PLAIN.get((device, operator), MODELS[operator])
    return load(make(litert), strict=False)


def find(model: TfliteModel, rules: DeviceRules, runtime: int | None = None) -> Finding:
    (finding,) = check(model, rules, runtime).findings
    return finding


def broken(model: TfliteModel, rules: DeviceRules, runtime: int | None = None) -> dict[str, Finding]:
    """By every change that applies: what is found, where the words are those that are expected."""
    found = {}
    for words, change in BREAKS:
        try:
            changed = change(model)
        except (IndexError, KeyError):  # it has no such tensor or option
            continue
        finding = find(changed, rules, runtime)
        for rule in _rules(finding):
            text, _, how = rule.partition(": ")
            if re.fullmatch(words, how):
                found[text] = finding
    return found


def _rules(finding: Finding) -> list[str]:
    """The limit that decided, alone or behind the version that it needs."""
    match = re.fullmatch(r"needs \w+ \d+, not \d+ \((.*)\)", finding.rule)
    return [match[1] if match else finding.rule]


@pytest.mark.parametrize(("device", "operator"), ROWS, ids=[" ".join(row) for row in ROWS])
def test_a_row(litert: Any, device: str, operator: str) -> None:
    rules = find_device(device)
    row, model = rules.row(operator), passing(litert, device, operator)
    assert row is not None
    kept = find(model, rules)
    assert (kept.placed, kept.status) == ("mapped", rules.words.mapped), kept
    assert kept.rule == ("; ".join(limit.text for limit in row.limits) or "no limit")
    said = broken(model, rules)
    for limit in (*rules.everywhere, *row.limits):
        _told(limit, said, row, rules)
    _older(model, rules, row)


def _told(limit: Limit, said: dict[str, Finding], row: OpRule, rules: DeviceRules) -> None:
    """The limit has been broken, with the words of the device and the remedy of the table."""
    if row.name in limit.text.split(", ")[0].split() + limit.text.split(", ")[1:]:  # it exempts this row
        assert limit.text not in said
        return
    assert limit.text in said, f"{row.name}: no model breaks the limit {limit.text!r}"
    finding = said[limit.text]
    assert finding.placed == "cpu"
    assert finding.status == (rules.words.dtype if limit.dtype else rules.words.limited)
    assert finding.hint == (rules.rewrites.get(row.name, limit.hint) if limit.dtype else limit.hint)


def _older(model: TfliteModel, rules: DeviceRules, row: OpRule) -> None:
    """Versions: of the row, and of the limits of old versions."""
    if row.runtime:
        finding = find(model, rules, row.runtime - 1)
        assert finding.rule.startswith(f"needs {rules.versioned} {row.runtime}, not {row.runtime - 1}")
        assert finding.hint == f"use {rules.versioned} {row.runtime} or newer"
    for limit, needed in (*rules.older, *row.older):
        if needed > row.runtime:
            said = broken(model, rules, needed - 1)
            assert limit.text in said, f"{row.name}: no model breaks the limit {limit.text!r} of {needed}"
            assert said[limit.text].status == rules.words.unsupported


@pytest.mark.parametrize("device", list(DEVICES))
def test_rewrites(litert: Any, device: str) -> None:
    """What the table offers instead of an operator without a row."""
    rules, model = find_device(device), passing(litert, device, "RELU")
    for operator, rewrite in rules.rewrites.items():
        if rules.row(operator) is None:
            renamed = replace(model, operators=(replace(model.operators[0], name=operator),))
            finding = find(renamed, rules)
            assert (finding.placed, finding.hint) == ("cpu", rewrite)
            assert finding.rule == f"no row for the operator {operator}"
    unknown = replace(model, operators=(replace(model.operators[0], name="FFT"),))
    assert find(unknown, rules).hint == rules.default_rewrite


@pytest.mark.parametrize("device", list(DEVICES))
def test_cautions(litert: Any, device: str) -> None:
    """Vague limits are notes on operators that map: one model with the note for each."""
    rules = find_device(device)
    for row in rules.rows:
        if row.caution is not None:
            model = passing(litert, device, row.name)
            large = both(shaped((1, 256, 257, 1)), shaped((1, 65_792), OUTPUT))(model)
            notes = [find(each, rules).note for each in (model, large)]
            assert any(note.startswith(f"{row.caution.text}: ") for note in notes), row.name
