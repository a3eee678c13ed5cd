"""Calibration without data: statistics are kept and matched, ranges come near to those of samples."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.ir import IRModule, assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin import data_free
from tvm_qplugin.api import prepare, quantize
from tvm_qplugin.builder import build, compile_function
from tvm_qplugin.calibrator import calibrate, float_tensors
from tvm_qplugin.core.errors import CalibrationError, RecipeError
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.data_free import SAMPLES, data_free_table
from tvm_qplugin.frontend import load
from tvm_qplugin.passes.insert_affine import InsertAffine
from tvm_qplugin.passes.note_batch_norm import NORMS, norms_of
from tvm_qplugin.preprocess import Preprocess
from tvm_qplugin.quantizer import UNSEEN

SHAPE = (1, 3, 16, 16)
RANGE = (-1.0, 1.0)


def network() -> IRModule:
    """conv, norm, relu, depthwise, norm, add, mean, dense; the statistics are those of uniform noise."""
    rng = np.random.default_rng(4)
    samples = [rng.uniform(*RANGE, SHAPE).astype("float32") for _ in range(8)]
    statistics: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
    for _ in range(2):  # the first norm has to be right before the second can be
        run = compile_function(load(_network(statistics, stop=len(statistics))))
        seen = np.concatenate([run([x])[0] for x in samples])
        statistics.append((seen.mean((0, 2, 3)), seen.var((0, 2, 3))))
    return _network(statistics)


def _network(statistics: Any, stop: int | None = None) -> IRModule:
    builder, op, rng = relax.BlockBuilder(), relax.op, np.random.default_rng(5)
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))

    def const(value: Any) -> Any:
        return relax.const(np.asarray(value, "float32"))

    def norm(value: Any, index: int, name: str) -> Any:
        mean, var = statistics[index]
        gamma, beta = rng.uniform(0.2, 3, 6), rng.normal(0, 2, 6)
        parts = [const(v) for v in (gamma, beta, mean, var)]
        both = builder.emit(op.nn.batch_norm(value, *parts, axis=1, training=False), f"{name}_norm")
        return builder.emit(relax.TupleGetItem(both, 0), name)

    with builder.function("main", [x]):
        with builder.dataflow():
            a = builder.emit(op.nn.conv2d(x, const(rng.normal(size=(6, 3, 3, 3)))), "a_conv")
            if stop != 0:
                a = builder.emit(op.nn.relu(norm(a, 0, "a")), "r")
                b = builder.emit(
                    op.nn.conv2d(a, const(rng.normal(size=(6, 1, 3, 3))), groups=6, padding=1), "b_conv"
                )
                if stop != 1:
                    s = builder.emit(op.add(norm(b, 1, "b"), a), "s")
                    m = builder.emit(op.mean(s, [2, 3]), "m")
                    a = builder.emit(op.matmul(m, const(rng.normal(size=(6, 4)))), "d")
                else:
                    a = b
            out = builder.emit_output(a)
        builder.emit_func_output(out)
    return builder.get()


@pytest.fixture(scope="module")
def model() -> IRModule:
    return network()


def test_statistics_are_kept_when_asked_for(model: IRModule) -> None:
    rng = np.random.default_rng(5)
    rng.normal(size=(6, 3, 3, 3))
    gamma, beta = rng.uniform(0.2, 3, 6), rng.normal(0, 2, 6)
    known = norms_of(load(model, statistics=True))
    assert list(known) == ["a", "b"]
    np.testing.assert_array_equal(known["a"].std, gamma.astype("float32"))
    np.testing.assert_array_equal(known["a"].mean, beta.astype("float32"))
    assert not norms_of(load(model)) and NORMS not in load(model)["main"].attrs


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            a = R.nn.relu(x)
            b = R.negative(a)
            R.output(b)
        return b


@I.ir_module
class Expected:
    @R.function
    def main(
        x: R.Tensor((1, 2), "float32"),
        a_factor: R.Tensor((2,), "float32"),
        a_offset: R.Tensor((2,), "float32"),
    ) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            a_raw = R.nn.relu(x)
            a_scaled = R.multiply(a_raw, a_factor)
            a = R.add(a_scaled, a_offset)
            b = R.negative(a)
            gv = b
            R.output(gv)
        return gv


def test_tensors_can_be_moved() -> None:
    assert_structural_equal(tvm.transform.Sequential([InsertAffine(("a",))])(Before), Expected)


def test_ranges_come_near_those_of_samples(model: IRModule) -> None:
    """Nearer than those of noise that is not matched; both are a tenth of what the model is for."""
    module = load(model, statistics=True)
    names = float_tensors(module)
    table = data_free_table(module, names, (RANGE[0] / 10, RANGE[1] / 10), model_hash="m")
    rng = np.random.default_rng(77)
    data = [rng.uniform(*RANGE, SHAPE).astype("float32") for _ in range(16)]
    real, unmatched = (
        calibrate(load(model), data, names=names),
        calibrate(load(model), [x / 10 for x in data], names=names),
    )
    assert table.samples == SAMPLES and {r.observer for r in table.ranges.values()} == {"data-free"}

    def apart(found: Any, name: str) -> float:
        a, b = found.ranges[name], real.ranges[name]
        return (abs(a.low - b.low) + abs(a.high - b.high)) / (b.high - b.low)

    distances = [[apart(found, name) for name in ("a", "r", "b", "s")] for found in (table, unmatched)]
    assert all(near < far for near, far in zip(*distances, strict=True)), distances
    assert sum(distances[0]) < 0.7 * sum(distances[1]), distances


def test_moments_are_matched(model: IRModule, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(model, statistics=True)
    seen: dict[str, list[Any]] = {"fitted": []}
    original = data_free._fitted
    monkeypatch.setattr(
        data_free, "_fitted", lambda *a: seen.setdefault("fitted", []).extend(original(*a)) or seen["fitted"]
    )
    data_free_table(module, ["x"], RANGE, model_hash="m")
    affine = tvm.transform.Sequential([InsertAffine(("a", "b"))])(module)
    from tvm_qplugin.passes.insert_observers import InsertObservers

    run = compile_function(tvm.transform.Sequential([InsertObservers(("a", "b"))])(affine))
    values = [run([*arrays, *seen["fitted"]])[-2:] for arrays in data_free._noise(module, *RANGE)]
    for index, wanted in enumerate(norms_of(module).values()):
        rows = np.concatenate([v[index].reshape(-1, 6) for v in values]).astype("float64")
        np.testing.assert_allclose(rows.mean(0), wanted.mean, atol=0.01)
        np.testing.assert_allclose(rows.std(0), wanted.std, rtol=0.01)


def test_the_whole_way(model: IRModule) -> None:
    found = quantize(model, calibration="data-free", input_range=RANGE)
    attrs = found["main"].attrs
    assert "without data" in str(attrs[UNSEEN]) and NORMS not in attrs
    assert json.loads(str(attrs["qplugin.io"]))
    rng = np.random.default_rng(8)
    run, artifact = compile_function(load(model)), build(found)
    for _ in range(4):
        x = rng.uniform(*RANGE, SHAPE).astype("float32")
        wanted = run([x])[0]
        assert np.abs(artifact.run(x)[0] - wanted).max() < 0.08 * np.abs(wanted).max()


def test_a_table_fits_a_model_loaded_with_statistics(model: IRModule) -> None:
    data = [np.zeros(SHAPE, "float32"), np.ones(SHAPE, "float32")]
    table = calibrate(prepare(model), data)
    kept = prepare(model, statistics=True)
    assert NORMS not in quantize(kept, calibration=table)["main"].attrs


def test_errors(model: IRModule) -> None:
    with pytest.raises(CalibrationError, match="no batch norms with statistics are left"):
        quantize(load(model), calibration="data-free", input_range=RANGE)
    for wrong in (None, (1.0, 1.0)):
        with pytest.raises(CalibrationError, match="the range of the inputs has to be given"):
            quantize(model, calibration="data-free", input_range=wrong)
    with pytest.raises(RecipeError, match="needs samples, and data-free has none"):
        quantize(model, calibration="data-free", input_range=RANGE, recipe=Recipe(correct_bias=True))
    with pytest.raises(RecipeError, match="needs samples, and data-free has none"):
        quantize(model, calibration="data-free", input_range=RANGE, recipe=Recipe(smooth=True))
    with pytest.raises(RecipeError, match="needs samples, and data-free has none"):
        quantize(model, calibration="data-free", input_range=RANGE, accuracy="best")
    with pytest.raises(CalibrationError, match="a str is not a set of samples"):
        quantize(model, calibration="images")


@pytest.mark.parametrize(
    ("text", "wanted"), [("raw", (0, 255)), ("unit", (0, 1)), ("tf", (-1, 1)), ("imagenet", (-2.1179, 2.64))]
)
def test_bounds_of_pixels(text: str, wanted: tuple[float, float]) -> None:
    assert Preprocess.parse(text).bounds() == pytest.approx(wanted, abs=1e-4)
