"""Accuracy, agreement and SQNR, on artifacts whose outputs are known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tvm_qplugin.core.errors import CalibrationError, InputError
from tvm_qplugin.core.manifest import TensorInfo
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.evaluate import Predictor, evaluate, to_real, to_wire

PARAMS = QuantParams.of(0.5, 1)


def fake(function, dtype: str = "float32") -> Any:
    """Something that runs like an artifact with one input and one output of 3 numbers."""
    qparams = None if dtype == "float32" else PARAMS.to_json()
    info = TensorInfo("x", (1, 3), dtype, qparams)
    manifest = SimpleNamespace(inputs=(info,), outputs=(TensorInfo("y", (1, 3), dtype, qparams),))
    return SimpleNamespace(manifest=manifest, run=lambda x: [function(x)])


IDENTITY = fake(lambda x: x)
SAMPLES = np.float32([[3, 1, 0], [0, 2, 1], [0, 1, 4], [5, 0, 0]])
LABELS = [0, 1, 2, 1]


def test_accuracy_of_labelled_samples():
    found = evaluate(IDENTITY, zip(SAMPLES, LABELS, strict=True))
    assert (found.samples, found.accuracy, found.agreement, found.sqnr_db) == (4, 0.75, None, None)


def test_offset_and_limit():
    pairs = [(x, y - 1) for x, y in zip(SAMPLES, LABELS, strict=True)]
    assert evaluate(IDENTITY, pairs, labels_offset=1, limit=3).accuracy == 1.0


def test_against_a_reference():
    noisy = fake(lambda x: x + np.float32([[0, 0, 2.5]]))
    found = evaluate(noisy, zip(SAMPLES, LABELS, strict=True), reference=IDENTITY)
    assert found.agreement == 0.75 and found.reference_accuracy == 0.75 and found.accuracy == 0.5
    expected = 10 * np.log10(np.square(SAMPLES).sum() / (4 * 2.5**2))
    assert found.sqnr_db == pytest.approx(expected)


def test_equal_outputs_have_no_noise():
    found = evaluate(IDENTITY, SAMPLES, labelled=False, reference=IDENTITY)
    assert found.accuracy is None and found.agreement == 1.0 and found.sqnr_db is None


def test_integer_ends_are_bridged():
    seen = []
    model = fake(lambda q: seen.append(q) or q, "int8")
    output = Predictor(model)(0, SAMPLES[0])
    assert seen[0].dtype == "int8" and (seen[0] == PARAMS.quantize(SAMPLES[:1])).all()
    assert (output == SAMPLES[:1]).all()


def test_wire_leaves_what_is_integer_already():
    info = TensorInfo("x", (1, 3), "int8", PARAMS.to_json())
    q = np.int8([[1, 2, 3]])
    assert to_wire(info, q) is q
    assert (to_real(info, q) == [[0, 0.5, 1]]).all()


def test_each_sample_moves_the_bar():
    moved = []
    evaluate(IDENTITY, zip(SAMPLES, LABELS, strict=True), advance=lambda: moved.append(1))
    assert len(moved) == 4


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([], "no samples"),
        ([(SAMPLES[0], 3)], "label 3 with offset 0 is not one of the 3 classes"),
        ([(SAMPLES[0], -1)], "label -1"),
        ([(SAMPLES[0], 0), (SAMPLES[0][:2], 0)], "sample 1"),
        ([(SAMPLES[0] * np.nan, 0)], "finite"),
    ],
)
def test_data_that_does_not_fit(samples, said):
    with pytest.raises(CalibrationError, match=said):
        evaluate(IDENTITY, samples)


def test_a_reference_of_another_model():
    other = fake(lambda x: np.zeros((1, 5), "float32"))
    with pytest.raises(InputError, match="same model"):
        evaluate(IDENTITY, SAMPLES, labelled=False, reference=other)
