"""What an option says is done, or it is said that it is not used."""

import json
from pathlib import Path

import numpy as np
import pytest
import tvm_ffi
from tvm.ir import IRModule, assert_structural_equal
from typer.testing import CliRunner

from tvm_qplugin import cli, demo
from tvm_qplugin.builder import SOURCE
from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.observers import chosen_by
from tvm_qplugin.passes import ir
from tvm_qplugin.stage import load_module

MODEL, SAMPLES = str(demo.model_path()), str(demo.calibration_path())
FEW = ("--calibration", SAMPLES, "--samples", "4")


def call(*args: object):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def _quantized(folder: Path, *args: object, model: object = MODEL):
    result = call("quantize", model, *args, "-o", folder / "q", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), " ".join(result.stderr.split())


def _recipe(folder: Path, **fields: object) -> Path:
    (folder / "r.json").write_text(json.dumps(fields))
    return folder / "r.json"


@pytest.fixture(scope="module")
def qdq(tmp_path_factory) -> Path:
    """The demo's model as a .tflite file, quantized already."""
    folder = tmp_path_factory.mktemp("qdq")
    _quantized(folder, *FEW)
    assert call("export", folder / "q", "-o", folder / "m.tflite").exit_code == 0
    return folder / "m.tflite"


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, Path]:
    """Tables of the demo's model by observer."""
    folder = tmp_path_factory.mktemp("tables")
    found = {name: folder / f"{name}.json" for name in ("min_max", "least_mse")}
    for name, path in found.items():
        assert call("calibrate", MODEL, *FEW, "--observer", name, "-o", path).exit_code == 0
    return found


def _observers(path: Path) -> set[str]:
    return {seen.observer for seen in CalibrationTable.load(path).ranges.values()}


def test_a_rule_chooses_the_observer_of_some_tensors(tmp_path):
    recipe = _recipe(tmp_path, name="mine", rules=[{"op": "conv2d", "observer": "entropy"}])
    _quantized(tmp_path, *FEW, "--recipe", recipe)
    assert _observers(tmp_path / "q" / "calibration.json") == {"min_max", "entropy"}
    found, _ = _quantized(tmp_path, *FEW, "--recipe", recipe, "--observer", "percentile")
    assert _observers(tmp_path / "q" / "calibration.json") == {"percentile"}
    assert found["recipe"]["observer"] == "percentile"


def test_an_observer_that_does_not_exist_is_refused_at_once(tmp_path):
    recipe = _recipe(tmp_path, rules=[{"op": "conv2d", "observer": "foo"}])
    result = call("quantize", MODEL, *FEW, "--recipe", recipe, "-o", tmp_path / "q")
    assert result.exit_code == 1 and "observer 'foo' is unknown" in result.stderr
    assert "importing TVM" not in result.stderr


def test_an_observer_chooses_from_the_histograms_of_a_table(tmp_path, tables):
    known = CalibrationTable.load(tables["least_mse"])
    assert {seen.observer for seen in chosen_by(known, "min_max").ranges.values()} == {"min_max"}
    plain, chosen, other = (
        _made(tmp_path, tables, table, *more)
        for table, more in (("min_max", ()), ("least_mse", ("--observer", "min_max")), ("least_mse", ()))
    )
    assert_structural_equal(plain, chosen)
    assert not tvm_ffi.structural_equal(plain, other)


def _made(folder: Path, tables: dict[str, Path], table: str, *more: str) -> IRModule:
    """The quantized module without what tells where it came from."""
    _quantized(folder, "--table", tables[table], *more)
    return ir.with_main_attr(load_module(folder / "q"), SOURCE, None)


@pytest.mark.parametrize(("made", "asked"), [("min_max", "entropy"), ("least_mse", "moving_average")])
def test_an_observer_that_the_table_knows_nothing_for(made, asked, tables):
    with pytest.raises(CalibrationError, match=f"'{asked}' cannot choose .* made with '{made}': calibrate"):
        chosen_by(CalibrationTable.load(tables[made]), asked)


UNUSED = [
    (
        ("--recipe", "dynamic", "--observer", "entropy", "--workers", "2"),
        "--observer, --workers are not",
    ),
    (
        ("--recipe", "fp16", "--calibration", SAMPLES, "--samples", "3"),
        "--calibration, --samples are not",
    ),
    (("--recipe", "weight_int4", "--ray", "auto"), "needs no calibration: --ray is not used"),
    (("--recipe", "dynamic", "--save-table", "t.json"), "no table of ranges: --save-table is not used"),
    (("--data-free", "--preprocess", "unit", "--observer", "entropy"), "batch norms: --observer is not used"),
]


@pytest.mark.parametrize(("args", "said"), UNUSED)
def test_options_without_a_use_are_named(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in _quantized(tmp_path, *args)[1]
    assert not (tmp_path / "t.json").exists()


def test_what_finds_nothing_in_a_model_is_said(tmp_path):
    _, said = _quantized(tmp_path, "--recipe", "dynamic", "--smooth", *FEW)
    assert "no norm feeds dense layers here: --smooth is not used" in said and "--equalize" not in said


def test_samples_of_a_single_value(tmp_path):
    np.save(tmp_path / "x.npy", np.full((3, 1, 8, 8), 0.5, "float32"))
    _, said = _quantized(tmp_path, "--calibration", tmp_path / "x.npy")
    assert "in all 3 samples image_nhwc holds nothing but 0.5" in said
    assert "holds nothing but" not in _quantized(tmp_path, *FEW)[1]


def test_a_dump_that_cannot_be_written_is_said_and_spoils_no_result(tmp_path):
    _quantized(tmp_path, "--recipe", "fp16", "--dump", tmp_path / "whole")
    first, second, *_ = sorted(path.name for path in (tmp_path / "whole").iterdir())
    (tmp_path / "ir" / first).mkdir(parents=True)
    _, said = _quantized(tmp_path, "--recipe", "fp16", "--dump", tmp_path / "ir")
    assert "cannot write" in said and first in said and said.count("is not complete") == 1
    assert "main" in (tmp_path / "ir" / second).read_text()


def test_a_table_leaves_samples_unread(tmp_path, tables):
    _, said = _quantized(tmp_path, "--table", tables["min_max"], "--samples", "3")
    assert "ranges are those of the table: --samples is not used" in said


def test_what_is_quantized_already(qdq, tmp_path):
    asked = ("--recipe", "int16x8", "--correct-bias", "--data-free", "--preprocess", "unit")
    found, said = _quantized(tmp_path, *asked[:3], model=qdq)
    assert "nothing is quantized: --recipe, --correct-bias are not used" in said
    assert found["recipe"]["scheme"] == "int8" and not found["recipe"]["correct_bias"]
    found, said = _quantized(tmp_path, *asked[3:], model=qdq)
    assert "--data-free" in said and found["data_free"] is False


def test_a_model_without_ranges_has_none_to_estimate(tmp_path):
    args = ("--recipe", "dynamic", "--data-free", "--preprocess", "unit", "-o", tmp_path / "q")
    result = call("quantize", MODEL, *args)
    assert result.exit_code == 1 and "recipe 'dynamic' has none: leave it out" in result.stderr
    assert not (tmp_path / "q").exists()


def test_a_rule_for_a_kind_of_layer_that_the_model_has_none_of(tmp_path):
    """As the recipe of the Edge TPU has one for dense layers."""
    rule = {"op": "prelu", "per_channel": False}
    _quantized(tmp_path, *FEW, "--recipe", _recipe(tmp_path, rules=[rule]))
    for command in (("inspect",), ("debug", *FEW), ("calibrate", *FEW, "-o", tmp_path / "t.json")):
        wrong = _recipe(tmp_path, rules=[{**rule, "scope": "stem"}])
        result = call(command[0], MODEL, *command[1:], "--recipe", wrong)
        assert result.exit_code == 1 and "'stem' matches no layer of kind 'prelu'" in result.stderr


def test_a_plan_is_of_a_float_model(tmp_path):
    _quantized(tmp_path, *FEW)
    result = call("inspect", tmp_path / "q", "--recipe", "dynamic")
    assert result.exit_code == 0 and "this quantized model: --recipe is not used" in result.stderr


def test_layers_that_are_stored_small_are_counted_by_scheme(tmp_path):
    recipe = _recipe(tmp_path, scheme="dynamic", rules=[{"op": "dense", "scheme": "weight_int4"}])
    found, _ = _quantized(tmp_path, "--recipe", recipe)
    assert found["schemes"]["dynamic"] == 4 and found["schemes"]["weight_int4"] == 1
