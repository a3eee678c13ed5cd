"""``accuracy="best"``: what is kept helps, everything is told, and Ctrl-C keeps the best so far."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin import best
from tvm_qplugin.api import quantize
from tvm_qplugin.best import STEPS, Split, Step, attempts_of
from tvm_qplugin.builder import SOURCE, build, compile_function
from tvm_qplugin.calibrator import calibrate
from tvm_qplugin.core.errors import CalibrationError, RecipeError
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.judge import FLAT_DB, Judge, Score, decisive
from tvm_qplugin.quantizer import quantize_module
from tvm_qplugin.recovery import recover
from tvm_qplugin.simulator import Simulator

RNG = np.random.default_rng(7)
SHAPE = (1, 8, 8, 3)
SAMPLES = [RNG.normal(0.4, 1, SHAPE).astype("float32") for _ in range(48)]


def network(softmax: bool = True) -> IRModule:
    """Depthwise and pointwise layers whose weights int8 hits hard: few large values."""
    builder, op, rng = relax.BlockBuilder(), relax.op, np.random.default_rng(2)
    layout = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}

    def conv(value: Any, *shape: int, **fields: Any) -> Any:
        weight = rng.normal(size=shape) * np.where(rng.random(shape) < 0.06, 30, 1)
        weight = relax.const((0.1 * weight).astype("float32"))
        value = builder.emit(op.nn.conv2d(value, weight, **layout, **fields))
        return builder.emit(
            op.nn.relu(op.add(value, relax.const(rng.normal(size=shape[0]).astype("float32"))))
        )

    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            a = conv(x, 8, 3, 3, 3, padding=[1] * 4)
            b = conv(conv(a, 8, 3, 3, 1, padding=[1] * 4, groups=8), 12, 1, 1, 8)
            c = conv(conv(b, 12, 3, 3, 1, padding=[1] * 4, groups=12), 16, 1, 1, 12)
            head = relax.const(rng.normal(0, 0.2, (16, 6)).astype("float32"))
            logits = builder.emit(op.matmul(builder.emit(op.mean(c, [1, 2])), head), "logits")
            out = builder.emit_output(op.nn.softmax(logits) if softmax else logits)
        builder.emit_func_output(out)
    return builder.get()


@pytest.fixture(scope="module")
def module() -> IRModule:
    return network()


@pytest.fixture(scope="module")
def found(module: IRModule) -> IRModule:
    return quantize(module, calibration=iter(SAMPLES), accuracy="best")


def error(module: IRModule, quantized: IRModule) -> float:
    """Of the logits, on samples that nobody has seen."""
    rng = np.random.default_rng(99)
    fresh = [[rng.normal(0.4, 1, SHAPE).astype("float32")] for _ in range(40)]
    return -Judge(module, fresh).score(quantized).sqnr_db


def test_it_is_better_on_new_samples(module: IRModule, found: IRModule) -> None:
    assert error(module, found) < error(module, quantize(module, calibration=SAMPLES)) - 0.3


def test_everything_is_told(found: IRModule) -> None:
    told = attempts_of(found)
    assert told is not None and told["held_back"] == 12 and not told["stopped"]
    attempts = told["attempts"]
    tried = [step.name for step in STEPS if step.name != "smooth"]  # there is no norm to smooth
    assert [a["step"] for a in attempts[:6]] == ["plain", *tried]
    assert all(a["step"] != "smooth" for a in attempts)
    assert attempts[0]["kept"] and any(a["kept"] for a in attempts[1:])
    kept = [a for a in attempts if a["kept"]]
    assert all(0 <= a["agreement"] <= 1 and a["seconds"] > 0 for a in attempts)
    assert kept[-1]["sqnr_db"] > kept[0]["sqnr_db"]
    source = json.loads(str(found["main"].attrs[SOURCE]))
    assert source["recipe"] == told["recipe"] and Recipe.from_json(told["recipe"]).recovers


def test_the_recipe_gives_the_module_again(module: IRModule, found: IRModule) -> None:
    told = attempts_of(found)
    assert told is not None
    kept = [s for i, s in enumerate(SAMPLES) if i % 4 != 3]
    again = quantize(module, recipe=told["recipe"], calibration=kept)
    tvm.ir.assert_structural_equal(again["main"].body, found["main"].body)


def test_kernels_and_oracle_agree(found: IRModule) -> None:
    artifact, oracle = build(found), Simulator(found)
    for sample in SAMPLES[:3]:
        np.testing.assert_array_equal(artifact.run(sample)[0], oracle.run(sample)[0])


def _spoiling(*args: Any, **options: Any) -> IRModule:
    """Biases that are those of the right ones no more."""
    from tvm_qplugin.layer_walk import LayerWalk
    from tvm_qplugin.passes.correct_bias import CorrectBias

    result = recover(*args, **options)
    layers = LayerWalk(result, []).layers.values()
    shifts = {layer.name: np.full(layer.bias.shape, 3000, "int64") for layer in layers}
    return tvm.transform.Sequential([CorrectBias(shifts)])(result)


def test_what_hurts_is_not_kept(module: IRModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_qplugin.recovery.recover", _spoiling)
    monkeypatch.setattr(best, "STEPS", (STEPS[0],))
    told = quantize(module, calibration=SAMPLES, accuracy="best")
    plain = quantize(module, calibration=[s for i, s in enumerate(SAMPLES) if i % 4 != 3])
    tvm.ir.assert_structural_equal(told["main"].body, plain["main"].body)
    search = attempts_of(told)
    assert search is not None and [a["kept"] for a in search["attempts"]] == [True, False]


def _interrupt(*_args: Any, **_options: Any) -> IRModule:
    raise KeyboardInterrupt


def test_stopped(
    module: IRModule, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tvm_qplugin.recovery.recover", _interrupt)
    told = attempts_of(quantize(module, calibration=SAMPLES, accuracy="best"))
    assert told is not None and told["stopped"] and [a["step"] for a in told["attempts"]] == ["plain"]
    assert "stopped: the best so far is kept" in capsys.readouterr().err


def test_stopped_before_there_is_one(module: IRModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "converted", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize(module, calibration=SAMPLES, accuracy="best")


def test_a_step_that_cannot_be_taken(module: IRModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "STEPS", (Step("odd", "an observer that is none", {"observer": "odd"}),))
    told = attempts_of(quantize(module, calibration=SAMPLES, accuracy="best"))
    assert told is not None and "'odd' is unknown" in told["attempts"][1]["error"]


def test_progress_is_said(module: IRModule, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(best, "STEPS", (STEPS[1],))
    quantize(module, calibration=SAMPLES, accuracy="best", progress=True)
    said = [line for line in capsys.readouterr().err.splitlines() if not line.endswith("...")]
    assert [line.split()[0] for line in said] == ["plain", "least-mse"]
    assert all("agreement" in line and "SQNR" in line for line in said)


def test_errors(module: IRModule) -> None:
    with pytest.raises(CalibrationError, match="holds back every 4th sample"):
        quantize(module, calibration=SAMPLES[:3], accuracy="best")
    with pytest.raises(CalibrationError, match="holds back every 4th sample"):
        quantize_module(module, calibration=calibrate(module, SAMPLES), accuracy="best")
    with pytest.raises(RecipeError, match="'best' or None was expected"):
        quantize(module, calibration=SAMPLES, accuracy="good")
    with pytest.raises(RecipeError, match="recipe 'fp16' computes in float"):
        quantize(module, recipe="fp16", accuracy="best")


def test_every_fourth_is_held_back(module: IRModule) -> None:
    split = Split.of(module)
    assert [split.offer(np.float32(i)) for i in range(8)] == [False, False, False, True] * 2
    assert split.held.samples == [3, 7] and split.kept.samples == [0, 1, 2, 4, 5, 6]


def test_a_softmax_is_judged_by_its_input(module: IRModule) -> None:
    assert decisive(module) == ["logits"] == decisive(network(softmax=False))
    assert decisive(quantize(module, calibration=SAMPLES)) == ["logits_dq"]
    arrays = [[sample] for sample in SAMPLES[:4]]
    logits = compile_function(network(softmax=False))
    score = Judge(module, arrays).score(network(softmax=False))
    assert score == Score((1.0,) * 4, (FLAT_DB,) * 4)
    for sample, wanted in zip(arrays, Judge(module, arrays).wanted, strict=True):
        np.testing.assert_array_equal(logits(sample)[0], wanted[0])


def test_scores() -> None:
    base = Score((1.0, 1.0, 0.0, 1.0), (20.0, 21.0, 22.0, 23.0))
    assert base.agreement == 0.75 and base.sqnr_db == 21.5
    assert not base.better_than(base)
    louder = Score(base.same, (21.0, 21.5, 23.0, 23.1))
    assert louder.better_than(base) and not base.better_than(louder)
    assert not Score((0.0,) * 4, (20.1, 20.9, 22.2, 22.9)).better_than(base)
    assert Score((), (5.0, 6.0)).agreement is None
    assert Score((), (5.0, 6.0)).better_than(Score((), (4.0, 5.5)))


def test_the_scheme_dynamic_takes_the_steps_that_need_no_ranges(module: IRModule) -> None:
    found = quantize(module, recipe="dynamic", calibration=SAMPLES, accuracy="best")
    told = attempts_of(found)
    assert told is not None
    steps = [attempt["step"] for attempt in told["attempts"]]
    assert steps[:4] == ["plain", "correct-bias", "equalize", "adaptive-rounding"]
    assert told["attempts"][0]["why"] == "what the others are compared with"
    assert all("points" in attempt["why"] for attempt in told["attempts"][1:])
    kept = [s for i, s in enumerate(SAMPLES) if i % 4 != 3]
    again = quantize(module, recipe=told["recipe"], calibration=kept)
    tvm.ir.assert_structural_equal(again["main"].body, found["main"].body)
    with pytest.raises(CalibrationError, match="samples"):
        quantize(module, recipe="dynamic", accuracy="best")
