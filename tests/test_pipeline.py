"""The pipelines by name, as TVM finds them, and what wrong options and inputs say."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from onnx import helper, numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build, compile_function
from tvm_qplugin.calibrator import model_hash
from tvm_qplugin.core.calibration import CalibrationTable, TensorRange
from tvm_qplugin.core.errors import (
    CalibrationError,
    ModelError,
    QPluginError,
    RecipeError,
    TargetError,
)
from tvm_qplugin.frontend import load
from tvm_qplugin.pipeline import is_quantized
from tvm_qplugin.simulator import simulate

RNG = np.random.default_rng(0)
SHAPE = (1, 3, 8, 8)
SAMPLES = [RNG.normal(size=SHAPE).astype("float32") for _ in range(3)]

AUTOLOAD = """
import sys
import numpy as np, tvm
from tvm import relax
from tvm.script import ir as I, relax as R

@I.ir_module
class Mod:
    @R.function
    def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 3), "float32"):
        with R.dataflow():
            q = R.quantize(x, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
            a = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
            b = R.nn.relu(a)
            r = R.quantize(b, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
            y = R.dequantize(r, R.const(0.5, "float32"), R.const(1, "int8"))
            R.output(y)
        return y

assert "tvm_qplugin.pipeline" not in sys.modules
executable = relax.build(Mod, tvm.target.Target({"kind": "llvm"}), relax_pipeline="qplugin.int8")
x = np.float32([[-1, 0, 0.3], [0.6, 1, 100]])
y = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()
assert y.tolist() == [[0, 0, 0.5], [0.5, 1, 63]], y
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = {"w": RNG.normal(size=(4, 3, 3, 3)), "b": RNG.normal(size=4), "g": RNG.normal(size=(4, 5))}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "g"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 5))],
        [numpy_helper.from_array(value.astype("float32"), name) for name, value in weights.items()],
    )
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_tvm_finds_the_pipeline_by_itself(tmp_path: Path):
    (tmp_path / "user.py").write_text(AUTOLOAD)
    command = [sys.executable, str(tmp_path / "user.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("io", ["float", "int8", "uint8"])
def test_a_module_imported_by_tvm_itself(model: Path, io: str):
    module = from_onnx(onnx.load(model), keep_params_in_input=False)
    pipeline = relax.get_pipeline("qplugin.int8", calibration=SAMPLES, io=io)
    executable = relax.build(module, tvm.target.Target({"kind": "llvm"}), relax_pipeline=pipeline)
    given = SAMPLES[0] if io == "float" else RNG.integers(0, 100, SHAPE).astype(io)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    real = machine["main"](tvm.runtime.tensor(given)).numpy()
    wanted = simulate(quantize(model, calibration=SAMPLES, io=io), given)[0]
    np.testing.assert_array_equal(real, wanted)


def test_the_float_pipeline(model: Path):
    module = load(model)
    pipeline = relax.get_pipeline("qplugin.float")
    executable = relax.build(module, tvm.target.Target({"kind": "llvm"}), relax_pipeline=pipeline)
    real = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(SAMPLES[0])).numpy()
    np.testing.assert_allclose(real, compile_function(module)([SAMPLES[0]])[0], atol=1e-5)


def test_a_table_can_be_used_again(model: Path):
    module = load(model)
    quantized = quantize(model, calibration=SAMPLES)
    assert is_quantized(quantized) and not is_quantized(module)
    seen: dict[str, tuple[float, float]] = {}

    def hook(name: str, value: Any) -> None:
        low, high = seen.get(name, (0.0, 0.0))
        seen[name] = (min(low, float(value.min())), max(high, float(value.max())))

    quantize(model, calibration=SAMPLES, hooks=[hook])
    ranges = {name: TensorRange(low, high, "min_max", 3) for name, (low, high) in seen.items()}
    table = CalibrationTable(model_hash(module), 3, ranges)
    again = quantize(model, calibration=table)
    np.testing.assert_array_equal(simulate(again, SAMPLES[1])[0], simulate(quantized, SAMPLES[1])[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipe": "int7"}, RecipeError, "neither one of int8"),
        ({"recipe": "float"}, RecipeError, "quantizes nothing"),
        ({"recipe": {"rules": [{"op": "conv9d"}]}}, RecipeError, "no kind of operator; use one of"),
        ({"recipe": {"rules": [{"op": 5}]}}, RecipeError, "op 5: text was expected"),
        ({"recipe": {"rules": [{"scope": "["}]}}, RecipeError, "not a regular expression"),
        ({"recipe": {"scheme": "int3"}}, RecipeError, "use one of int8, int16x8, fp16, dynamic, weight_int8"),
        ({"target": "vax"}, TargetError, "target 'vax' is unknown; use one of edgetpu"),
        ({"io": "int4"}, RecipeError, "expected one of float, int8, uint8"),
        ({"observer": "median"}, CalibrationError, "use one of .*min_max"),
        ({"calibration": None}, CalibrationError, "pass calibration=samples"),
        ({"calibration": []}, CalibrationError, "the calibration set is empty"),
        ({"calibration": CalibrationTable("other", 1, {})}, CalibrationError, "belongs to another model"),
        ({"calibration": [np.zeros((3, 2), "float32")]}, CalibrationError, "sample 0, input 'x': shape"),
        ({"calibration": [np.full(SHAPE, np.nan, "float32")]}, CalibrationError, "holds nan"),
        ({"limit": 0}, CalibrationError, "at least 1 sample"),
        ({"batch": -2}, ModelError, "batch -2"),
        ({"input_layout": "HWC"}, ModelError, "expected 'NCHW' or 'NHWC'"),
    ],
)
def test_wrong_options(model: Path, options: dict[str, Any], error: type[QPluginError], message: str):
    with pytest.raises(error, match=message):
        quantize(model, **{"calibration": SAMPLES, **options})


def test_a_table_without_all_ranges(model: Path):
    table = CalibrationTable(model_hash(load(model)), 1, {})
    with pytest.raises(CalibrationError, match="has no range for"):
        quantize(model, calibration=table)


def test_errors_keep_their_class_inside_relax_build(model: Path):
    with pytest.raises(CalibrationError, match="no calibration data was given"):
        relax.build(load(model), tvm.target.Target({"kind": "llvm"}), relax_pipeline="qplugin.int8")


def test_what_is_no_cpu(model: Path):
    quantized = quantize(model, calibration=SAMPLES)
    with pytest.raises(TargetError, match="target kind 'c': only CPUs"):
        relax.build(quantized, tvm.target.Target({"kind": "c"}), relax_pipeline="qplugin.int8")


@pytest.mark.parametrize("call", [build, lambda mod: quantize(mod, calibration=SAMPLES)])
def test_a_module_without_main(call: Any):
    with pytest.raises(ModelError, match="main"):
        call(tvm.IRModule())
