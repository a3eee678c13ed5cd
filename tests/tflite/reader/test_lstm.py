"""UNIDIRECTIONAL_SEQUENCE_LSTM: integer and float files against LiteRT, and what is refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tvm.ir import assert_structural_equal

from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.exporter import export_tflite
from tvm_qplugin.frontend import load
from tvm_qplugin.passes import ir
from tvm_qplugin.simulator import simulate
from tvm_qplugin.tflite.reader import read_tflite

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch": {"batch": 3},
    "wide": {"steps": 4, "inputs": 33, "cells": 40, "gain": 0.5},
    "one": {"steps": 1, "inputs": 1, "cells": 1},
    "clipped": {"cell_clip": 0.5, "gain": 2.0},
    "clip beyond the codes": {"cell_clip": 10.0, "gain": 2.0},
    "saturated": {"gain": 8.0},
    "zero point": {"out_zp": -20, "batch": 2},
    "narrow output": {"out_scale": 1 / 500},
    **{f"cell 2**{e}": {"cell_exponent": e, "gain": 2.0} for e in range(-15, -8)},
}


@pytest.fixture(scope="module")
def lstms() -> ModuleType:
    """The module ``lstm.py`` one folder up: files with random weights."""
    spec = importlib.util.spec_from_file_location("tflite_lstm", Path(__file__).parent.parent / "lstm.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def codes(case: Any, seed: int) -> Array:
    shape = (case.batch, case.steps, case.inputs)
    return np.random.default_rng(seed).integers(-128, 128, shape).astype("int8")


def reals(case: Any, seed: int) -> Array:
    shape = (case.batch, case.steps, case.inputs)
    return np.random.default_rng(seed).uniform(-2, 2, shape).astype("float32")


@pytest.mark.parametrize("name", CASES)
def test_integers(litert: Any, lstms: Any, name: str) -> None:
    case = lstms.Lstm(**CASES[name])
    file = lstms.file_of(litert, case)
    module = load(file)
    artifact = build(module)
    assert [(op.op, op.kernel, op.integer) for op in artifact.manifest.operators] == [("lstm", "qlstm", True)]
    for seed in range(3):
        x = codes(case, seed)
        (wanted,) = litert.run(file, x).outputs
        np.testing.assert_array_equal(artifact.run(x)[0], wanted, strict=True)
        np.testing.assert_array_equal(simulate(module, x)[0], wanted, strict=True)


def test_importing_twice_changes_nothing(litert: Any, lstms: Any) -> None:
    case = lstms.Lstm()
    module = load(lstms.file_of(litert, case))
    again = load(module)
    assert_structural_equal(again["main"].body, module["main"].body, map_free_vars=True)
    np.testing.assert_array_equal(build(again).run(codes(case, 0)), build(module).run(codes(case, 0)))


def test_every_call_starts_anew(litert: Any, lstms: Any) -> None:
    case = lstms.Lstm()
    artifact, x = build(load(lstms.file_of(litert, case))), codes(case, 0)
    np.testing.assert_array_equal(artifact.run(x)[0], artifact.run(x)[0], strict=True)


def test_the_manifest(litert: Any, lstms: Any) -> None:
    case = lstms.Lstm(out_zp=3)
    manifest = build(load(lstms.file_of(litert, case))).manifest
    (operator,) = manifest.operators
    assert (operator.shape, operator.weight_bytes) == ((1, 7, 6), 4 * 6 * (5 + 6))
    assert operator.macs == 7 * operator.weight_bytes
    assert manifest.tensors["y"] == {"scale": 1 / 128, "zero_point": 3, "dtype": "int8", "axis": None}


@pytest.mark.parametrize("name", ["plain", "batch", "one", "clipped", "saturated"])
def test_floats(litert: Any, lstms: Any, name: str) -> None:
    case = lstms.Lstm(quantized=False, **CASES[name])
    file = lstms.file_of(litert, case)
    artifact = build(load(file))
    for seed in range(2):
        x = reals(case, seed)
        (wanted,) = litert.run(file, x).outputs
        np.testing.assert_allclose(artifact.run(x)[0], wanted, rtol=0, atol=1e-6)


def test_gates_have_names(litert: Any, lstms: Any) -> None:
    main = load(lstms.file_of(litert, lstms.Lstm(quantized=False)))["main"]
    made = {var.name: ir.op_name(value).removeprefix("relax.") for var, value in ir.bindings(main)}
    assert "y_t0_forget" not in made
    for step in range(1, 7):
        gates = [made[f"y_t{step}_{gate}"] for gate in ("input", "forget", "cell", "output")]
        assert gates == ["sigmoid", "sigmoid", "tanh", "sigmoid"]


def test_a_float_file_can_be_quantized(litert: Any, lstms: Any) -> None:
    case = lstms.Lstm(quantized=False)
    module = load(lstms.file_of(litert, case))
    samples = [(reals(case, seed),) for seed in range(8)]
    artifact = build(quantize(module, calibration=samples))
    assert all(op.integer for op in artifact.manifest.operators)
    (got,), (wanted,) = artifact.run(*samples[0]), build(module).run(*samples[0])
    np.testing.assert_allclose(got, wanted, atol=0.05)


@pytest.mark.parametrize("name", ["plain", "batch", "clipped", "zero point", "cell 2**-15"])
def test_files_written_again(litert: Any, lstms: Any, name: str) -> None:
    case = lstms.Lstm(**CASES[name])
    file = lstms.file_of(litert, case)
    again = export_tflite(load(file))
    for seed in range(3):
        x = codes(case, seed)
        wanted = litert.run(file, x).outputs
        np.testing.assert_array_equal(litert.run(again, x).outputs, wanted, strict=True)
        np.testing.assert_array_equal(build(load(again)).run(x), wanted, strict=True)


@pytest.mark.parametrize(
    ("slots", "options", "text"),
    [
        ({9: (6,), 10: (6,), 11: (6,)}, {}, "it has peephole connections; expected the plain cell"),
        ({16: (6, 6)}, {}, "it has a projection"),
        ({20: (6,), 21: (6,), 22: (6,), 23: (6,)}, {}, "it has layer normalization"),
        ({1: None, 5: None, 12: None}, {}, "it has a coupled input and forget gate"),
        ({}, {"timeMajor": True}, "it has time as the first axis"),
        ({}, {"fusedActivationFunction": 1}, "it has the activation RELU"),
        ({18: (1, 6), 19: (1, 6)}, {}, "it has initial states that are no variables"),
        ({10: (6,)}, {"timeMajor": True}, "it has peephole connections, time as the first axis;"),
    ],
)
def test_other_cells_are_refused(
    litert: Any, lstms: Any, slots: dict[int, Any], options: dict[str, Any], text: str
) -> None:
    extra = {
        slot: None if shape is None else litert.constant(np.ones(shape), "float32")
        for slot, shape in slots.items()
    }
    file = lstms.file_of(litert, lstms.Lstm(quantized=False), extra, **options)
    with pytest.raises(ModelError, match=f"UNIDIRECTIONAL_SEQUENCE_LSTM that makes y: {text}"):
        read_tflite(file)


@pytest.mark.parametrize(
    ("slot", "tensor", "text"),
    [
        (2, ("int8", 0.1, 3, (6, 5)), "zero point 0"),
        (6, ("int8", None, 0, (6, 6)), "one scale each"),
        (3, ("float32", None, 0, (6, 5)), "its input weights are float32/int8, expected int8"),
        (13, ("int16", 0.1, 0, (6,)), "its biases are int16/int32, expected int32"),
        (8, ("int8", 0.1, 0, (6, 5)), "have shapes .* for input .1, 7, 5. and 6 cells expected"),
        (15, ("int32", 0.1, 0, (7,)), "the file is damaged, export it again"),
    ],
)
def test_other_constants_are_refused(litert: Any, lstms: Any, slot: int, tensor: Any, text: str) -> None:
    dtype, scale, zero, shape = tensor
    extra = {slot: litert.constant(np.ones(shape), dtype, scale, zero_point=zero)}
    with pytest.raises(ModelError, match=text):
        read_tflite(lstms.file_of(litert, lstms.Lstm(), extra))


@pytest.mark.parametrize(
    ("slot", "scale", "dtype", "text"),
    [
        (18, 0.02, "int8", "differ in their parameters"),
        (19, 2.0**-16, "int16", "expected int16 with a power of 2 from 2..-15 to 2..-9"),
        (19, 0.001, "int16", "its cell state is int16 with scale"),
        (19, 2.0**-12, "int8", "its cell state is int8"),
    ],
)
def test_other_states_are_refused(
    litert: Any, lstms: Any, slot: int, scale: float, dtype: str, text: str
) -> None:
    state = litert.Tensor((1, 6), dtype, scale, variable=True)
    with pytest.raises(ModelError, match=text):
        read_tflite(lstms.file_of(litert, lstms.Lstm(), {slot: state}))


def test_weights_of_a_hybrid_file_are_refused(litert: Any, lstms: Any) -> None:
    extra = {slot: litert.constant(np.ones((6, 5)), "int8", 0.1) for slot in range(1, 5)}
    with pytest.raises(ModelError, match="its input weights are int8, expected float32"):
        read_tflite(lstms.file_of(litert, lstms.Lstm(quantized=False), extra))


def test_variables_of_other_operators_are_refused_by_name(litert: Any, lstms: Any) -> None:
    file = lstms.file_of(litert, lstms.Lstm(quantized=False), code="BIDIRECTIONAL_SEQUENCE_LSTM")
    text = (
        r"\(hidden\) is a variable .* of BIDIRECTIONAL_SEQUENCE_LSTM; expected none but the states of one UNI"
    )
    with pytest.raises(ModelError, match=text):
        read_tflite(file)


@pytest.mark.parametrize("kind", ["int8", "float"])
def test_a_trained_model(litert: Any, shared_data: Path, kind: str) -> None:
    file = (shared_data / "models" / "tflite" / f"mnist_lstm_{kind}.tflite").read_bytes()
    artifact = build(load(file))
    images = np.load(shared_data / "data" / "mnist_dev.npz")["x"][:50, None]
    if kind == "int8":
        assert all(op.integer for op in artifact.manifest.operators)
    for image in images:
        x = (image.astype("int32") - 128).astype("int8") if kind == "int8" else image.astype("float32") / 255
        (got,), (wanted,) = artifact.run(x), litert.run(file, x).outputs
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0 if kind == "int8" else 1e-6)
