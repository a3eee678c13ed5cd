"""The models that the project is measured on go the whole way; the measuring commands measure right."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tvm_qplugin import frontend
from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build, compile_function
from tvm_qplugin.samples import fit_sample, inputs_of
from tvm_qplugin.simulator import Simulator

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.append(str(SCRIPTS))
import _metrics  # noqa: E402
import _rows  # noqa: E402
import real_models  # noqa: E402
from real_models import MODELS  # noqa: E402

HEAVY = {"mobilenet_v2_1.0_224", "resnet56_cifar10", "deeplabv3_mnv2_dm05_257", "fastestdet_coco_352"}
HEAVY |= {"kws_lstm_m", "kws_crnn_m"}


def by_weight(names):
    return [pytest.param(n, marks=[pytest.mark.slow] if n in HEAVY else []) for n in names]


@pytest.mark.parametrize("name", by_weight(MODELS))
def test_whole_way_equals_oracle(shared_data, name):
    model = MODELS[name]
    quantized = quantize(model.path, calibration=model.calibration, limit=2)
    artifact = build(quantized)
    islands = {op.name: op.reason for op in artifact.manifest.operators if not op.integer}
    assert set(islands) <= set(model.islands), islands
    sample, _ = next(model.evaluation())
    arrays = fit_sample(0, sample, inputs_of(quantized))
    wanted, found = Simulator(quantized).run(*arrays), artifact.run(*arrays)
    assert len(wanted) == len(found)
    for expected, actual in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(actual, expected)
        assert np.ptp(actual) > 0


@pytest.mark.parametrize("name", ["tiny_kws_dscnn", "resnet20_cifar10"])
def test_accuracy_stays_near_float(shared_data, name):
    model = MODELS[name]
    run = compile_function(frontend.load(model.path))
    artifact = build(quantize(model.path, calibration=model.calibration, limit=50))
    both = _metrics.Comparison(_metrics.METRICS[model.metric])
    for sample, target in model.evaluation(100):
        given = sample.reshape(artifact.manifest.inputs[0].shape)
        both.add(run([given])[0], artifact.run(given)[0], target)
    assert both.samples == 100
    assert both.float_metric.value() > 85
    assert both.drop() <= 3
    assert both.agreement() >= 95
    assert both.sqnr() > 15


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_float_metric_is_the_known_one(shared_data, name):
    model = MODELS[name]
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    metric = _metrics.METRICS[model.metric].make()
    for sample, target in model.evaluation():
        metric.add(session.run(None, {given.name: sample.reshape(given.shape)})[0], target)
    assert metric.value() == pytest.approx(model.reference.float_metric, abs=model.reference.tolerance)


def test_calibration_and_evaluation_are_disjoint(shared_data):
    for model in MODELS.values():
        calibration, dev = model.calibration, model.dev
        if calibration.path == dev.path:
            assert calibration.step == dev.step > 1 and calibration.skip is not dev.skip
        first = next(iter(calibration))
        assert all(
            not np.array_equal(first, sample) for sample in islice(dev, 200) if sample.shape == first.shape
        )


def test_table_names_models_by_their_beginning():
    assert [m.name for m in real_models.chosen(["resnet"])] == ["resnet20_cifar10", "resnet56_cifar10"]
    assert len(real_models.chosen([])) == 14
    with pytest.raises(SystemExit, match=r"no model 'alexnet'; the models are: mobilenet_v1"):
        real_models.chosen(["alexnet"])


def test_absent_data_is_a_clear_message(monkeypatch, tmp_path):
    monkeypatch.setenv("QPLUGIN_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"not found:\n.*tiny_kws_dscnn\.onnx(.|\n)*set QPLUGIN_DATA"):
        real_models.require_data([MODELS["tiny_kws_dscnn"]])
    monkeypatch.setenv("QPLUGIN_DATA", "")
    with pytest.raises(SystemExit, match="QPLUGIN_DATA is empty"):
        real_models.data_root()


def test_mean_iou_of_known_masks():
    metric = _metrics.MeanIou()
    scores = np.zeros((1, 3, 2, 2), "float32")
    scores[0, [0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]] = 1
    metric.add(scores, np.array([[0, 1], [1, 255]], "uint8"))
    assert metric.value() == 1.0
    metric.add(scores, np.array([[1, 1], [1, 255]], "uint8"))
    assert metric.value() == pytest.approx((1 / 2 + 4 / 5) / 2)


def fastestdet_output(cells):
    """Output with one confident detection a cell: (row, column, width, height, class, objectness)."""
    out = np.zeros((1, 85, 22, 22), "float32")
    for row, column, width, height, label, objectness in cells:
        out[0, 0, row, column] = objectness
        out[0, 3, row, column] = np.log(width / (1 - width))
        out[0, 4, row, column] = np.log(height / (1 - height))
        out[0, 5 + label, row, column] = 1
    return out


def test_fastestdet_boxes():
    found = _metrics.decode_fastestdet(fastestdet_output([(11, 5, 0.25, 0.5, 7, 0.9)]), 440, 220)
    assert found.classes.tolist() == [7]
    assert found.scores == pytest.approx([0.9**0.6])
    assert found.boxes[0] == pytest.approx([100 - 55, 110 - 55, 100 + 55, 110 + 55], rel=1e-5)


def test_suppression_keeps_the_best_of_each_class():
    cells = [(10, 10, 0.4, 0.4, 3, 0.8), (10, 11, 0.4, 0.4, 3, 0.9), (11, 10, 0.4, 0.4, 4, 0.7)]
    found = _metrics.suppress(_metrics.decode_fastestdet(fastestdet_output(cells), 352, 352))
    assert found.classes.tolist() == [3, 4]
    assert found.scores[0] == pytest.approx(0.9**0.6)


def test_average_precision():
    right = (11, 11, 0.5, 0.5, 0, 0.9)
    truth = [0, 88, 88, 176, 176, 0]
    metric = _metrics.AveragePrecision50()
    metric.add(fastestdet_output([right]), {"width": 352, "height": 352, "boxes": [truth]})
    assert metric.value() == 1.0
    # a second object that is not found halves the recall; a crowd is neither wanted nor wrong
    crowd = [1, 88, 88, 176, 176, 1]
    metric.add(
        fastestdet_output([(11, 11, 0.2, 0.2, 1, 0.9)]),
        {"width": 352, "height": 352, "boxes": [[0, 0, 0, 40, 40, 0], crowd]},
    )
    assert metric.value() == pytest.approx(51 / 101)
    wrong = (11, 11, 0.5, 0.5, 0, 0.95)
    metric.add(fastestdet_output([wrong]), {"width": 352, "height": 352, "boxes": []})
    assert metric.value() == pytest.approx(51 / 101 / 2)


def test_comparison_counts_agreement_and_noise():
    both = _metrics.Comparison(_metrics.METRICS["top1"])
    both.add(np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]]), 1)
    both.add(np.array([[3.0, 4.0]]), np.array([[4.0, 3.5]]), 1)
    assert (both.float_metric.value(), both.int8_metric.value(), both.drop()) == (100, 50, 50)
    assert both.agreement() == 50
    assert both.sqnr() == pytest.approx(10 * np.log10(50 / 1.5))


GOOD = _rows.Row(
    "mobilenet_v2_1.0_224",
    _rows.Options(),
    samples=650,
    float_metric=79.54,
    int8_metric=78.92,
    drop=0.62,
    exact_samples=50,
    compared=50050,
    peak_bytes=10**9,
    artifact_bytes=3_800_000,
    weight_bytes=3_471_040,
    float_bytes=13_972_923,
)


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"differing": 1}, ["equals the oracle"]),
        ({"drop": 0.71}, ["drop"]),
        ({"int8_metric": 78.5}, ["onnxruntime's int8"]),
        ({"float_metric": 79.0}, ["float metric"]),
        ({"artifact_bytes": 3_871_041}, ["size beside weights"]),
        ({"artifact_bytes": 4_200_000}, ["size beside weights", "size / float ONNX"]),
        ({"islands": {"x": "conv2d: because"}}, ["unnamed float islands"]),
        ({"quantize_seconds": 91.0}, ["calibrate + quantize + build"]),
        ({"error": "ModelError: no"}, ["runs"]),
    ],
)
def test_limits(change, missed):
    row = replace(GOOD, **change)
    assert [check.name for check in row.checks() if not check.held] == missed
    assert ("MISSED" in _rows.cells(row)[-1] or "FAIL" in _rows.cells(row)[-1]) is bool(missed)


def test_recipes_may_have_drops_of_their_own():
    cell = replace(GOOD, model="mnist_lstm", float_metric=97.4, float_bytes=0, drop=0.15)
    held = {
        recipe: all(check.held for check in replace(cell, options=_rows.Options(recipe=recipe)).checks())
        for recipe in ("int8", "dynamic", "int16x8")
    }
    assert held == {"int8": True, "dynamic": True, "int16x8": False}


def test_limits_of_schemes_and_of_winning_accuracy_back():
    def missed(drop: float, agreement: float, **options) -> list[str]:
        row = replace(GOOD, drop=drop, agreement=agreement, options=_rows.Options(**options))
        return [check.name for check in row.checks() if not check.held and "size" not in check.name]

    assert missed(0.3, 96.0, accuracy="best") == []
    assert missed(0.31, 95.9, accuracy="best") == ["agreement with float", "drop"]
    assert missed(0.29, 90.0, recipe="dynamic") == [] and missed(0.16, 99.0, recipe="int16x8") == ["drop"]
    assert missed(0.04, 99.0, recipe="fp16") == ["drop"]


def test_layers_too_small_to_store_small_are_no_islands():
    row = replace(GOOD, islands={"c": "conv2d: its weight has 648 elements, fewer than 1024"})
    assert all(check.held for check in row.checks())


def test_rows_are_kept_and_used_under_equal_options(tmp_path):
    path = tmp_path / "rows.json"
    _rows.Kept(path, fresh=False).add(GOOD)
    kept = _rows.Kept(path, fresh=False)
    assert kept.find(GOOD.model, GOOD.options) == GOOD
    assert kept.find(GOOD.model, _rows.Options(samples=5)) is None
    assert _rows.Kept(path, fresh=True).find(GOOD.model, GOOD.options) is None
    kept.add(replace(GOOD, error="died"))
    assert _rows.Kept(path, fresh=False).find(GOOD.model, GOOD.options) is None


def run_script(*arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_accuracy_command(shared_data, tmp_path):
    path = tmp_path / "rows.json"
    few = ("--samples", 40, "--exact", 1, "--calibration", 20, "--json", path, "--markdown")
    done = run_script(SCRIPTS / "accuracy.py", "tiny_kws", *few)
    row = json.loads(path.read_text())["tiny_kws_dscnn"]
    assert (row["samples"], row["differing"], row["exact_samples"], row["error"]) == (40, 0, 1, "")
    assert row["calibrated"] == 20
    assert "| tiny_kws_dscnn | top-1 % | 40 |" in done.stdout
    assert done.returncode == ("limits missed" in done.stdout), done.stderr
