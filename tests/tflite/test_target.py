"""The targets that run ``.tflite`` files: rewrites, defaults, tables, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tvm.ir import IRModule, assert_structural_equal
from typer.testing import CliRunner

import tvm_qplugin as qp
from tvm_qplugin import cli, demo
from tvm_qplugin.core.errors import CalibrationError, ModelError, RecipeError, TargetError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir
from tvm_qplugin.pipeline import rewritten
from tvm_qplugin.simulator import simulate
from tvm_qplugin.targets import find_profile
from tvm_qplugin.targets.devices import find_device
from tvm_qplugin.tflite.check import CheckReport, check
from tvm_qplugin.tflite.file import load

SHAPE = (1, 3, 12, 12)
NODE = helper.make_node


def model(batch: int | str = 1) -> onnx.ModelProto:
    """Everything that the Edge TPU needs rewritten."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype("float32")

    weights = {
        "w": normal(8, 3, 3, 3),
        "v": normal(8, 8, 3, 3),
        "d": normal(8, 10),
        "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
        **{
            "from": np.array([0, 0]),
            "to": np.array([10, 10]),
            "axes": np.array([2, 3]),
            "by": np.array([2, 2]),
        },
    }
    nodes = [
        NODE("Pad", ["x", "pads"], ["padded"]),
        NODE("Conv", ["padded", "w"], ["a"], strides=[1, 1]),
        NODE("LeakyRelu", ["a"], ["b"], alpha=0.1),
        NODE("Conv", ["b", "v"], ["c"], dilations=[2, 1], pads=[2, 1, 2, 1]),
        NODE("HardSwish", ["c"], ["e"]),
        NODE("Slice", ["e", "from", "to", "axes", "by"], ["f"]),
        NODE("GlobalAveragePool", ["f"], ["g"]),
        NODE("Flatten", ["g"], ["h"]),
        NODE("MatMul", ["h", "d"], ["i"]),
        NODE("Softmax", ["i"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "everything",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (batch, *SHAPE[1:]))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(count: int = 4) -> list[Array]:
    return [np.random.default_rng(i).normal(size=SHAPE).astype("float32") for i in range(count)]


def report(module: IRModule, target: str) -> CheckReport:
    return check(load(qp.export_tflite(module, target=target), strict=False), find_device(target))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(model(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_everything_maps_to_the_edgetpu(litert: Any, path: Path) -> None:
    module = qp.quantize(path, target="edgetpu", calibration=samples())
    found = report(module, "edgetpu")
    assert found.complete and not found.float_io, [(f.operator, f.rule) for f in found.findings]
    codes = {finding.operator for finding in found.findings}
    assert "PRELU" in codes and "MAX_POOL_2D" in codes
    assert not codes & {"LEAKY_RELU", "HARD_SWISH", "QUANTIZE", "PADV2"}
    for target in ("host", "ethos-u"):
        unmapped = report(qp.quantize(path, target=target, calibration=samples(), io="int8"), "ethos-u")
        assert "LEAKY_RELU" in {finding.operator for finding in unmapped.findings}


def test_the_file_computes_what_the_module_does(litert: Any, path: Path) -> None:
    module = qp.quantize(path, target="edgetpu", calibration=samples())
    x = np.random.default_rng(5).integers(-128, 128, SHAPE).astype("int8")
    got = litert.run(qp.export_tflite(module, target="edgetpu"), x.transpose(0, 2, 3, 1)).outputs[0]
    np.testing.assert_array_equal(got, simulate(module, x)[0])


def test_rewriting_is_near_the_original(litert: Any, path: Path) -> None:
    """The gate of hard swish is coarser; everything else is within a step."""
    x = samples(9)[8]
    plain, rewrite = (
        simulate(qp.quantize(path, target=target, calibration=samples(), io="float"), x)[0]
        for target in ("host", "edgetpu")
    )
    assert np.abs(plain - rewrite).max() <= 4 / 256


@pytest.mark.parametrize("target", ["edgetpu", "ethos-u"])
def test_twice_is_once(target: str, path: Path) -> None:
    profile = find_profile(target)
    once = qp.prepare(path, target=target)
    assert_structural_equal(rewritten(once, profile), once)
    module = rewritten(qp.quantize(once, target=target, calibration=samples()), profile)
    assert_structural_equal(rewritten(module, profile), module)


def test_tables_are_of_the_rewritten_module(path: Path) -> None:
    table = qp.calibrate(qp.prepare(path, target="edgetpu"), samples())
    module = qp.quantize(path, target="edgetpu", calibration=table)
    assert_structural_equal(module, qp.quantize(path, target="edgetpu", calibration=samples()))
    with pytest.raises(CalibrationError, match="belongs to another model"):
        qp.quantize(path, target="edgetpu", calibration=qp.calibrate(qp.load(path), samples()))


def test_defaults_are_the_targets_and_the_user_prevails(path: Path) -> None:
    def dtypes(**options: Any) -> list[str]:
        main = ir.main_function(qp.quantize(path, target="edgetpu", calibration=samples(), **options))
        return [ir.spec_of(end).dtype for end in (*main.params, *ir.output_vars(main))]

    assert dtypes() == ["int8", "int8"]
    assert dtypes(io="float") == ["float32", "float32"] and dtypes(io="uint8") == ["uint8", "uint8"]
    per_channel = qp.quantize(path, target="edgetpu", recipe="int8", calibration=samples())
    with pytest.raises(ModelError, match="scale for every output"):
        qp.export_tflite(per_channel, target="edgetpu")


@pytest.mark.parametrize("batch", [6, "N"])
def test_a_batch_becomes_one(litert: Any, tmp_path: Path, batch: int | str) -> None:
    onnx.save(model(batch), tmp_path / "many.onnx")
    module = qp.quantize(tmp_path / "many.onnx", target="edgetpu", calibration=samples())
    assert report(module, "edgetpu").complete
    assert ir.spec_of(ir.main_function(module).params[0]).shape == SHAPE
    onnx.save(model(), tmp_path / "one.onnx")
    alone = qp.quantize(tmp_path / "one.onnx", target="edgetpu", calibration=samples())
    x = np.random.default_rng(2).integers(-128, 128, SHAPE).astype("int8")
    np.testing.assert_array_equal(simulate(module, x)[0], simulate(alone, x)[0])


def test_a_quantized_model_is_rewritten_too(litert: Any, path: Path) -> None:
    """A QDQ module of another target, and a file of another converter: values stay, hard swish goes."""
    given = qp.quantize(path, calibration=samples(), recipe="edgetpu")
    data = qp.export_tflite(given, io="uint8")
    for source in (given, qp.load(data)):
        module = qp.quantize(source, target="edgetpu")
        codes = [finding.operator for finding in report(module, "edgetpu").findings]
        assert "HARD_SWISH" not in codes and codes.count("MUL") == 2


@pytest.mark.parametrize("target", ["edgetpu", "ethos-u"])
def test_nothing_is_compiled(target: str) -> None:
    module = qp.load(demo.model_path())
    with pytest.raises(TargetError, match=f"export_tflite.*{target}.*tvm-qplugin export QUANTIZED --target"):
        qp.build(module, target=target)


@pytest.mark.parametrize("recipe", ["fp16", "dynamic"])
def test_integers_are_needed(path: Path, recipe: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe '{recipe}' computes in float, and edgetpu runs integers"):
        qp.quantize(path, recipe=recipe, target="edgetpu")


def test_cpus_take_no_file() -> None:
    module = qp.quantize(demo.model_path(), calibration=demo.calibration()[:2])
    with pytest.raises(TargetError, match=r"target 'host' runs model.so.*one of edgetpu, ethos-u"):
        qp.export_tflite(module, target="host")


def call(*args: object) -> Any:
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert result.exit_code in (0, 1), result.output
    return result


def test_the_commands(litert: Any, path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.concatenate(samples()))
    table, stage, file = tmp_path / "table.json", tmp_path / "stage", tmp_path / "model.tflite"
    data = ("--calibration", tmp_path / "data.npz")
    assert call("calibrate", path, *data, "--target", "edgetpu", "-o", table).exit_code == 0
    made = call("quantize", path, "--table", table, "--target", "edgetpu", "-o", stage, "--json")
    assert json.loads(made.stdout)["next"] == (
        f"tvm-qplugin export {stage} --target edgetpu -o model.tflite"
    ), made.output
    assert json.loads(made.stdout)["recipe"]["name"] == "edgetpu"
    exported = json.loads(call("export", stage, "--target", "edgetpu", "-o", file, "--json").stdout)
    assert {end["dtype"] for end in (*exported["inputs"], *exported["outputs"])} == {"int8"}
    for source in (path, stage, file):
        assert call("check", source, "--strict").exit_code == 0
    refused = call("build", stage, "--target", "edgetpu", "-o", tmp_path / "artifact")
    assert refused.exit_code == 1 and "tvm-qplugin export" in refused.stderr
    other = call("calibrate", path, *data, "-o", tmp_path / "host.json")
    assert other.exit_code == 0
    wrong = call(
        "quantize", path, "--table", tmp_path / "host.json", "--target", "edgetpu", "-o", tmp_path / "q"
    )
    assert wrong.exit_code == 1 and "belongs to another model" in wrong.stderr
    planned = json.loads(call("inspect", path, "--target", "edgetpu", "--json").stdout)
    assert "prelu" in {op["op"] for op in planned["operators"]}


def test_float_models_are_checked_with_made_up_ranges(litert: Any, path: Path) -> None:
    shown = call("check", path)
    assert shown.exit_code == 0 and "its ranges are made up" in shown.stdout
    data = json.loads(call("check", path, "--json").stdout)
    assert data["ranges_made_up"] and data["complete"] and data["total"] > 9
    assert json.loads(call("check", path, "--json").stdout) == data
    for target in ("ethos-u", "litert-gpu", "litert-hexagon"):
        assert json.loads(call("check", path, "--target", target, "--json").stdout)["ranges_made_up"]


QUICK = "tiny_kws_dscnn tiny_ad_autoencoder tiny_resnet8_cifar10 resnet20_cifar10 fastestdet_coco_352".split()
SLOW = (
    "tiny_vww_mobilenetv1_025_96 mobilenet_v1_0.25_224 mobilenet_v1_0.75_224 mobilenet_v2_1.0_224 "
    "resnet56_cifar10 deeplabv3_mnv2_dm05_257"
)
MODELS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW.split())]


@pytest.mark.parametrize("name", MODELS)
def test_real_models_map(litert: Any, shared_data: Path, name: str) -> None:
    """All of every model, but for a softmax of each pixel and what follows it."""
    data = json.loads(call("check", shared_data / "models" / f"{name}.onnx", "--json").stdout)
    reasons = {
        (op["operator"], op["rule"].split(":")[0]) for op in data["operators"] if op["placed"] == "cpu"
    }
    own = {reason for reason in reasons if not reason[1].startswith("comes after")}
    if name.startswith("fastestdet"):
        assert own == {("SOFTMAX", "input is 1-D with at most 16000 elements")}
        assert data["total"] - data["mapped"] <= 4
    else:
        assert data["complete"] and not data["float_io"], reasons


def test_models_without_the_layers_of_its_recipe_are_quantized(tmp_path: Path) -> None:
    """The Edge TPU's recipe has a rule for dense layers; a scope that matches nothing is still an error."""
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), "float32"), "w")
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in [("x", SHAPE), ("y", (1, 4, 10, 10))]
    ]
    graph = helper.make_graph([NODE("Conv", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(2, *SHAPE[1:])).astype("float32"))
    source = ["quantize", str(tmp_path / "m.onnx"), "--target", "edgetpu"]
    given = [*source, "--calibration", str(tmp_path / "x.npy")]
    made = CliRunner().invoke(cli.app, [*given, "-o", str(tmp_path / "q")])
    assert made.exit_code == 0, made.stderr
    wrong = CliRunner().invoke(cli.app, [*given, "--float", "zz", "-o", str(tmp_path / "r")])
    assert wrong.exit_code == 1 and "'zz' matches no layer" in wrong.stderr
