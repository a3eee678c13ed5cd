"""Every operator read from a file, compiled and run: LiteRT's results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm.ir import assert_structural_equal

from tvm_qplugin.builder import build
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.exporter import export_tflite
from tvm_qplugin.frontend import check_canonical
from tvm_qplugin.simulator import simulate
from tvm_qplugin.tflite.reader import OPERATORS, read_tflite


def test_an_integer_operator(litert: Any, files: Any, operator_case: str) -> None:
    file = files.file_of(litert, operator_case, quantized=True)
    artifact = files.equal(litert, read_tflite(file), file)
    assert all(op.integer for op in artifact.manifest.operators)


def test_a_float_operator(litert: Any, files: Any, float_case: str) -> None:
    file = files.file_of(litert, float_case, quantized=False)
    module = read_tflite(file)
    check_canonical(module)
    arrays = files.inputs_of(module, 1)
    arrays = [np.abs(array) + np.float32(0.5) for array in arrays] if float_case in files.POSITIVE else arrays
    expected = litert.run(file, *arrays).outputs
    again = export_tflite(module, keep_layout=True)
    for got in (build(module).run(*arrays), litert.run(again, *arrays).outputs):
        for one, wanted in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=1e-6 * float(np.abs(wanted).max()))


def test_reading_twice_changes_nothing(litert: Any, files: Any, float_case: str) -> None:
    module = read_tflite(files.file_of(litert, float_case, quantized=False))
    again = read_tflite(export_tflite(module, keep_layout=True))
    third = read_tflite(export_tflite(again, keep_layout=True))
    assert_structural_equal(third["main"], again["main"])


def test_what_is_read_in_float_only(litert: Any, files: Any) -> None:
    with pytest.raises(ModelError, match="ABS that makes out0: it has integers"):
        read_tflite(files.file_of(litert, "abs", quantized=True))


def test_every_operator_has_a_case(files: Any) -> None:
    tested = {case[0] for case in files.CASES.values()} | {"QUANTIZE", "DEQUANTIZE", "RELU_0_TO_1"}
    tested.add("UNIDIRECTIONAL_SEQUENCE_LSTM")
    assert tested == set(OPERATORS)


def test_what_was_read_can_be_exported_and_read_again(litert: Any, files: Any, integer_case: str) -> None:
    module = read_tflite(files.file_of(litert, integer_case, True))
    again = export_tflite(module, keep_layout=True)
    arrays = files.inputs_of(module, 2)
    wanted = simulate(module, *arrays)
    for got in (litert.run(again, *arrays).outputs, simulate(read_tflite(again), *arrays)):
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
