"""The table of the Edge TPU: rules of older runtimes, and what is published too vaguely."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from tvm_qplugin.targets.edgetpu import EDGETPU
from tvm_qplugin.tflite.check import CheckReport, check
from tvm_qplugin.tflite.file import load


def _models() -> Any:
    spec = importlib.util.spec_from_file_location("tflite_models", Path(__file__).with_name("models.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


m = _models()
IMAGE = m.IMAGE
PASSING = m.PASSING
t, c, op, conv, reduce, pad = m.t, m.c, m.op, m.conv, m.reduce, m.pad
OLD = {
    "dilated depthwise": (
        conv("DEPTHWISE_CONV_2D", dilationHFactor=2, dilationWFactor=2),
        13,
        "no dilation: is dilated by 2x2",
    ),
    "mean along z": (reduce("MEAN", [3]), 13, "along x and y only: works on axis 3 of 4"),
    "pad along z": (pad([[0, 0], [0, 0], [0, 0], [0, 4]]), 13, "pads x and y only: pads axis 3"),
    "squeeze behind": (
        op("SQUEEZE", [t((1, 8, 1, 4))], t((1, 8, 4)), "SqueezeOptions", squeezeDims=[2]),
        13,
        r"leading dimensions: removes axes \[2\]",
    ),
    "conv version": (conv(version=5), 14, "at most 4: has version 5"),
    "expand": (PASSING["EXPAND_DIMS"], 13, ""),
    "quantize": (PASSING["QUANTIZE"], 13, ""),
    "pack": (PASSING["PACK"], 13, ""),
    "prelu": (PASSING["PRELU"], 13, ""),
    "sum": (PASSING["SUM"], 13, ""),
    "transpose conv": (PASSING["TRANSPOSE_CONV"], 13, ""),
    "lstm": (PASSING["UNIDIRECTIONAL_SEQUENCE_LSTM"], 14, ""),
    "max": (PASSING["REDUCE_MAX"], 14, ""),
    "min": (PASSING["REDUCE_MIN"], 14, ""),
    "rsqrt": (PASSING["RSQRT"], 14, ""),
    "squared difference": (PASSING["SQUARED_DIFFERENCE"], 14, ""),
    "transpose": (PASSING["TRANSPOSE"], 14, ""),
}
ANY_RUNTIME = {
    "depthwise": conv("DEPTHWISE_CONV_2D"),
    "mean along x and y": reduce("MEAN", [1, 2]),
    "pad x and y": pad([[0, 0], [1, 1], [1, 1], [0, 0]]),
    "squeeze in front": PASSING["SQUEEZE"],
    "conv": PASSING["CONV_2D"],
}


def report(file: bytes, runtime: int | None = None) -> CheckReport:
    return check(load(file, strict=False), EDGETPU, runtime)


@pytest.mark.parametrize("name", OLD)
def test_rules_of_older_runtimes(litert: Any, name: str) -> None:
    model, needed, why = OLD[name]
    assert report(model(litert)).runtime == needed
    assert report(model(litert), needed).complete
    (finding,) = report(model(litert), needed - 1).findings
    assert (finding.placed, finding.status) == ("cpu", EDGETPU.words.unsupported)
    assert re.search(f"needs runtime {needed}, not {needed - 1}.*{why}", finding.rule)
    assert finding.hint == f"use runtime {needed} or newer"


@pytest.mark.parametrize("name", ANY_RUNTIME)
def test_what_older_runtimes_map(litert: Any, name: str) -> None:
    result = report(ANY_RUNTIME[name](litert), 10)
    assert result.complete and result.runtime == 0


@pytest.mark.parametrize("code", ["SUM", "RSQRT", "SQUARED_DIFFERENCE", "TRANSPOSE", "TRANSPOSE_CONV"])
def test_what_nobody_saw_map_is_said(litert: Any, code: str) -> None:
    (finding,) = report(PASSING[code](litert)).findings
    assert re.search("nobody here saw it map", finding.note)


@pytest.mark.parametrize("code", ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"])
def test_sizes_that_may_be_refused_are_said(litert: Any, code: str) -> None:
    assert re.search("some sizes are refused", report(PASSING[code](litert)).findings[0].note)


def test_large_reshapes_are_doubtful(litert: Any) -> None:
    assert not report(PASSING["RESHAPE"](litert)).findings[0].note
    large = op("RESHAPE", [t((1, 256, 257, 1)), c([1, 65_792])], t((1, 65_792)), "ReshapeOptions")
    (finding,) = report(large(litert)).findings
    assert finding.placed == "mapped"
    assert re.search("may not map .no limit is published.: moves 65792", finding.note)
