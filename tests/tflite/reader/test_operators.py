"""Every operator read from a file, compiled and run: LiteRT's results."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_qplugin.builder import build
from tvm_qplugin.exporter import export_tflite
from tvm_qplugin.frontend import check_canonical
from tvm_qplugin.simulator import simulate
from tvm_qplugin.tflite.reader import OPERATORS, read_tflite


def test_an_integer_operator(litert: Any, files: Any, operator_case: str) -> None:
    file = files.file_of(litert, operator_case, quantized=True)
    artifact = files.equal(litert, read_tflite(file), file)
    assert all(op.integer for op in artifact.manifest.operators) != (operator_case in files.IN_FLOAT)


def test_a_float_operator(litert: Any, files: Any, operator_case: str) -> None:
    file = files.file_of(litert, operator_case, quantized=False)
    module = read_tflite(file)
    check_canonical(module)
    arrays = files.inputs_of(module, 1)
    for got, wanted in zip(build(module).run(*arrays), litert.run(file, *arrays).outputs, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))


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
