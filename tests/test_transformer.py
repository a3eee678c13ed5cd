"""A small BERT as ``scripts/minilm.py`` writes it: float as onnxruntime, quantized near it, reasons shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tvm

from tvm_qplugin import best
from tvm_qplugin.api import quantize
from tvm_qplugin.best import attempts_of
from tvm_qplugin.builder import build, compile_function
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.frontend import load
from tvm_qplugin.passes import ir

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
import minilm

Array = np.ndarray[Any, Any]
LENGTH, WIDTH, INNER, WORDS = 8, 32, 64, 100
SCORES = "attention scores stay in float"


@pytest.fixture(name="model")
def _model(monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    for name, value in {"LAYERS": 2, "HEADS": 4, "WIDTH": WIDTH}.items():
        monkeypatch.setattr(minilm, name, value)
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "embeddings.position_embeddings.weight": (LENGTH, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in (0, 1):
        base = f"encoder.layer.{layer}"
        dense = {f"attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        dense |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (INNER, WIDTH)}
        dense |= {"output.dense": (WIDTH, INNER)}
        for name, shape in dense.items():
            shapes |= {f"{base}.{name}.weight": shape, f"{base}.{name}.bias": shape[:1]}
        norms += [f"{base}.attention.output.LayerNorm", f"{base}.output.LayerNorm"]
    weights = {name: rng.normal(size=shape) / np.sqrt(shape[-1]) for name, shape in shapes.items()}
    for name in norms:
        weights |= {f"{name}.weight": rng.uniform(0.5, 2, WIDTH), f"{name}.bias": rng.normal(size=WIDTH) / 4}
    return minilm.build({name: value.astype("float32") for name, value in weights.items()}, LENGTH)


def sentences(count: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    masks = [(np.arange(LENGTH) < rng.integers(3, LENGTH + 1)).astype("int64")[None] for _ in range(count)]
    return [{"ids": rng.integers(0, WORDS, (1, LENGTH)) * mask, "mask": mask} for mask in masks]


def exact(model: onnx.ModelProto) -> list[Array]:
    session = ort.InferenceSession(model.SerializeToString())
    return [session.run(None, sample)[0] for sample in sentences(30)]


def test_float(model: onnx.ModelProto) -> None:
    run = compile_function(load(model))
    for sample, wanted in zip(sentences(30), exact(model), strict=True):
        np.testing.assert_allclose(run(list(sample.values()))[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "least"),
    [
        (Recipe("int8"), 22),
        (Recipe("smooth", smooth=True), 22),
        (Recipe("int16x8", "int16x8"), 32),
        (Recipe("dynamic", "dynamic"), 32),
        (Recipe("dynamic smooth", "dynamic", smooth=True), 32),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_quantized(model: onnx.ModelProto, recipe: Recipe, least: float) -> None:
    artifact = build(quantize(load(model), recipe=recipe, calibration=sentences(30)))
    wanted = exact(model)
    found = [artifact.run(*sample.values())[0] for sample in sentences(30)]
    noise = np.square(np.subtract(wanted, found)).sum()
    assert 10 * np.log10(np.square(wanted).sum() / noise) > least
    reasons = {op.name: op.reason for op in artifact.manifest.operators if not op.integer}
    assert not {"l0_scores", "l0_mixed", "l1_scores", "l1_mixed"} & set(reasons)


def test_smoothing_changes_the_weights_of_dynamic_layers(model: onnx.ModelProto) -> None:
    plain, smoothed = (
        quantize(load(model), recipe=Recipe("mine", "dynamic", smooth=smooth), calibration=sentences(8))
        for smooth in (False, True)
    )
    with pytest.raises(ValueError, match="StructuralEqual"):
        tvm.ir.assert_structural_equal(plain["main"].body, smoothed["main"].body)


def test_smoothing_is_among_what_best_tries(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "STEPS", [step for step in best.STEPS if step.name == "smooth"])
    module, samples = load(model), sentences(30)
    found = quantize(module, calibration=samples, accuracy="best")
    told = attempts_of(found)
    assert told is not None and [a["step"] for a in told["attempts"]][:2] == ["plain", "smooth"]
    assert all(not a["error"] for a in told["attempts"])
    kept = [sample for i, sample in enumerate(samples) if i % 4 != 3]
    again = quantize(module, recipe=told["recipe"], calibration=kept)
    tvm.ir.assert_structural_equal(again["main"].body, found["main"].body)


def test_what_is_integer(model: onnx.ModelProto) -> None:
    artifact = build(quantize(load(model), calibration=sentences(30)))
    integer = {op.name for op in artifact.manifest.operators if op.integer}
    reasons = {op.name: op.reason for op in artifact.manifest.operators if not op.integer}
    assert {"l0_query", "l0_attended", "l1_wide", "l1_gelu", "l1_narrow"} <= integer
    assert {"l0_scores", "l0_mixed"} <= integer
    assert reasons["l0_sum"] == "it lies between float operators"
    assert all(SCORES in reasons[name] for name in ("l0_scaled", "l0_masked", "l0_weights"))
    assert "layer_norm has no integer kernel: squares of a row" in reasons["l0_out"]


def test_norms_of_old_opsets(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Written as means and a root, as exporters did before opset 17, they are read as norms again."""

    def norm(g: minilm.Graph, x: str, source: str, name: str) -> str:
        mean = g.add("ReduceMean", [x], f"{name}_mean", axes=[-1])
        centred = g.add("Sub", [x, mean], f"{name}_centred")
        square = g.add("Pow", [centred, g.constant("two", np.float32(2))], f"{name}_square")
        variance = g.add("ReduceMean", [square], f"{name}_variance", axes=[-1])
        shifted = g.add(
            "Add", [variance, g.constant("epsilon", np.float32(minilm.EPSILON))], f"{name}_shifted"
        )
        normal = g.add("Div", [centred, g.add("Sqrt", [shifted], f"{name}_root")], f"{name}_normal")
        scaled = g.add("Mul", [normal, g.weight(f"{source}.weight")], f"{name}_scaled")
        return g.add("Add", [scaled, g.weight(f"{source}.bias")], name)

    monkeypatch.setattr(minilm.Graph, "norm", norm)
    model = request.getfixturevalue("model")
    found = load(model)
    names = [ir.op_name(value) for _, value in ir.bindings(found["main"])]
    assert names.count("relax.nn.layer_norm") == 5 and names.count("relax.mean") == 0
    run = compile_function(found)
    for sample, wanted in zip(sentences(30), exact(model), strict=True):
        np.testing.assert_allclose(run(list(sample.values()))[0], wanted, rtol=1e-4, atol=1e-5)
