"""The schemes weight_int8 and weight_int4 from the command line and Python to a running artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

import tvm_qplugin as qp
from tvm_qplugin.cli import app
from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.errors import ModelError, RecipeError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import stored_arguments
from tvm_qplugin.simulator import simulate
from tvm_qplugin.stage import load_module

SCHEMES = {"weight_int8": 40.0, "weight_int4": 18.0}
"""What each keeps of the signal at least, in dB."""


def model() -> onnx.ModelProto:
    """Rows of a table, looked up; two dense layers; a product of two tensors."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.normal(size=shape) / 8).astype("float32"), name)

    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w1"], ["wide"]),
        helper.make_node("Add", ["wide", "b1"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w2"], ["narrow"]),
        helper.make_node("Transpose", ["narrow"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["narrow", "turned"], ["scores"]),
    ]
    weights = [weight("table", 50, 72), weight("w1", 72, 96), weight("b1", 96), weight("w2", 96, 40)]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [1, 6])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [1, 6, 6])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("model") / "layers.onnx"
    onnx.save(model(), file)
    return file


IDS = np.array([[3, 1, 4, 1, 5, 49]], "int64")


def run(*arguments: Any) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def distance(wanted: Array, found: Array) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("target", ["host", "x86-64-v3", "x86-64"])
def test_built_as_simulated_and_near_float(path: Path, scheme: str, target: str) -> None:
    module = qp.load(path)
    quantized = qp.quantize(module, recipe=scheme, target=target)
    artifact = qp.build(quantized, target=target)
    (found,), (simulated,) = artifact.run(IDS), simulate(quantized, IDS)
    np.testing.assert_allclose(found, simulated, rtol=0, atol=1e-5 * np.abs(simulated).max())
    assert distance(qp.build(module, target=target).run(IDS)[0], found) > SCHEMES[scheme]
    kernels = [op.kernel for op in artifact.manifest.operators if op.op == "dense"]
    assert kernels == ["wdense", "wdense"]
    float_bytes = 4 * (72 * 96 + 96 * 40)
    assert artifact.manifest.sizes["weights"] < float_bytes * (0.28 if scheme == "weight_int8" else 0.15)


def test_embeddings_are_int8(path: Path) -> None:
    quantized = qp.quantize(qp.load(path), recipe="weight_int4")
    values = [value for _, value in ir.bindings(quantized["main"])]
    (codes, _) = (value.args[0] for value in values if ir.op_name(value) == "relax.take")
    assert ir.spec_of(codes) == TensorSpec((50, 72), "int8")


@pytest.mark.parametrize("group", [None, 16])
def test_commands(path: Path, tmp_path: Path, group: int | None) -> None:
    stage, artifact = tmp_path / "quantized", tmp_path / "artifact"
    more = [] if group is None else ["--group", group]
    made = run("quantize", path, "--recipe", "weight_int4", *more, "-o", stage)
    assert made["recipe"]["group"] == group and made["samples"] == 0
    assert made["next"].startswith("tvm-qplugin build")
    stored = stored_arguments(load_module(stage)).values()
    assert {kept.grouped.group for kept in stored if kept.grouped} == {group or 32}
    shown = {op["name"]: op for op in run("inspect", stage)["operators"]}
    built = run("build", stage, "-o", artifact)
    assert built["weight_bytes"] == sum(op["weight_bytes"] for op in shown.values() if op["op"] == "dense")
    np.savez(tmp_path / "ids.npz", ids=IDS)
    assert run("run", artifact, "--input", tmp_path / "ids.npz")["outputs"]


def test_a_file_for_litert_is_refused_by_name(path: Path, tmp_path: Path) -> None:
    quantized = qp.quantize(qp.load(path), recipe="weight_int4")
    with pytest.raises(ModelError, match=r"2 dense layers .* weight_int8 or weight_int4 .* scheme dynamic"):
        qp.export_tflite(quantized)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--recipe", "weight_int4", "--group", "-3"), "greater than or equal to 0"),
        (("--recipe", "fp16", "--group", "32"), "use it with scheme weight_int8 or weight_int4"),
    ],
)
def test_groups_that_are_refused(path: Path, tmp_path: Path, options: Any, message: str) -> None:
    result = CliRunner().invoke(app, ["quantize", str(path), *options, "-o", str(tmp_path / "o")])
    assert result.exit_code != 0 and message in " ".join(result.output.split())


def test_integers_at_the_ends_are_refused(path: Path) -> None:
    with pytest.raises(RecipeError, match="scheme weight_int8 computes in float"):
        qp.quantize(qp.load(path), recipe="weight_int8", io="int8")
