"""Every command through its real command line, on the embedded model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tvm_qplugin import cli, demo
from tvm_qplugin.best import STEPS, attempts_of
from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.inspection import read_module
from tvm_qplugin.passes import ir
from tvm_qplugin.quantizer import UNSEEN
from tvm_qplugin.samples import Reservoir

MODEL, SAMPLES, TEST = (str(p) for p in (demo.model_path(), demo.calibration_path(), demo.evaluation_path()))
QUANTIZE = ("quantize", MODEL, "--calibration", SAMPLES, "--samples", "20")


def call(*args: object):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], env={"COLUMNS": "200"})


def ok(*args: object):
    result = call(*args)
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return result


def data(*args: object) -> dict:
    """What the command prints with --json: one object on a single line."""
    result = ok(*args, "--json")
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A directory with a quantized model, its artifact and a table."""
    folder = tmp_path_factory.mktemp("cli")
    ok(*QUANTIZE, "-o", folder / "q", "--save-table", folder / "t.json")
    ok("build", folder / "q", "-o", folder / "a")
    return folder


def weights_of(folder: Path, dtype: str | None = None) -> list[bytes]:
    calls = (value for _, value in ir.bindings(read_module(folder)["main"]) if ir.op_name(value))
    constants = (ir.const_value(call.args[0]) for call in calls)
    arrays = [array for array in constants if array is not None and array.size > 1]
    return [array.tobytes() for array in arrays if dtype in (None, str(array.dtype))]


def test_samples_are_kept_only_to_win_accuracy_back(tmp_path, monkeypatch):
    kept: list[object] = []
    monkeypatch.setattr(Reservoir, "offer", lambda _, sample: kept.append(sample))
    ok(*QUANTIZE, "-o", tmp_path / "plain")
    assert kept == []
    assert call(*QUANTIZE, "--correct-bias", "-o", tmp_path / "corrected").exit_code == 1
    assert len(kept) == 20


def test_accuracy_is_won_back_with_and_without_a_table(made, tmp_path):
    steps = ("--correct-bias", "--adaptive-rounding")
    ok(*QUANTIZE, *steps, "-o", tmp_path / "q")
    ok(*QUANTIZE, *steps, "--table", made / "t.json", "-o", tmp_path / "t")
    assert weights_of(tmp_path / "q") == weights_of(tmp_path / "t") != weights_of(made / "q")


def test_weights_of_reduced_range(tmp_path):
    found = data(*QUANTIZE, "--reduce-range", "-o", tmp_path / "q")
    weights = [np.frombuffer(text, "int8") for text in weights_of(tmp_path / "q", "int8")]
    assert found["recipe"]["reduce_range"] and 64 in {np.abs(w).max(initial=0) for w in weights}
    refused = call(*QUANTIZE, "--reduce-range", "--recipe", "int16x8", "-o", tmp_path / "w")
    assert refused.exit_code == 1 and "only scheme int8 has a use for" in refused.stderr


def test_the_best_of_what_wins_accuracy_back(made, tmp_path, monkeypatch):
    monkeypatch.setattr("tvm_qplugin.best.STEPS", STEPS[:2])
    found = data(*QUANTIZE, "--accuracy", "best", "-o", tmp_path / "q", "--save-table", tmp_path / "t.json")
    search = found["accuracy"]
    assert search["held_back"] == 5 and search["recipe"] == found["recipe"]
    assert [item["step"] for item in search["attempts"]][:3] == ["plain", "correct-bias", "least-mse"]
    assert found["samples"] == 15 and CalibrationTable.load(tmp_path / "t.json").samples == 15
    assert attempts_of(read_module(tmp_path / "q")) == search
    shown = ok(*QUANTIZE, "--accuracy", "best", "--table", tmp_path / "t.json", "-o", tmp_path / "q").stdout
    assert "correct-bias" in shown and "on 5 samples held back from calibration" in shown


def test_without_data(tmp_path):
    refused = call("quantize", MODEL, "--data-free", "-o", tmp_path / "q")
    assert refused.exit_code == 1 and "needs --preprocess" in refused.stderr
    done = ok("quantize", MODEL, "--data-free", "--preprocess", "unit", "-o", tmp_path / "q", "--json")
    assert json.loads(done.stdout)["data_free"] is True and "calibrated without data" in done.stderr
    assert "without data" in str(read_module(tmp_path / "q")["main"].attrs[UNSEEN])


def test_workers_give_the_same_table(made, tmp_path):
    ok(
        "calibrate",
        MODEL,
        "--calibration",
        SAMPLES,
        "--samples",
        20,
        "--workers",
        2,
        "-o",
        tmp_path / "t.json",
    )
    assert CalibrationTable.load(tmp_path / "t.json") == CalibrationTable.load(made / "t.json")


COMMANDS = list(cli._COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_common_options(command):
    text = ok(command, "--help").stdout
    assert "Example" in text and f"tvm-qplugin {command}" in text
    assert "--json" in text and "--debug" in text


def test_help_lists_all_commands_and_exit_codes():
    text = ok("--help").stdout
    assert all(command in text for command in COMMANDS)
    assert "130" in text


def test_version():
    assert ok("--version").stdout.startswith("tvm-qplugin 0.")


def test_help_and_bad_paths_do_not_import_tvm():
    code = (
        "import sys; from typer.testing import CliRunner; from tvm_qplugin import cli\n"
        "for args in (['--help'], ['quantize', '--help'], ['merge-tables', 'a', 'b', '-o', 'c']):\n"
        "    CliRunner().invoke(cli.app, args)\n"
        "print([m for m in ('tvm', 'onnx') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


def test_module_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "tvm_qplugin", "--version"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0 and result.stdout.startswith("tvm-qplugin")


# --- quantize, calibrate, merge-tables


def test_quantize_writes_the_stage_and_says_what_is_next(tmp_path):
    result = ok(*QUANTIZE, "-o", tmp_path / "q")
    assert sorted(os.listdir(tmp_path)) == ["q"]
    assert sorted(os.listdir(tmp_path / "q")) == ["calibration.json", "module.json"]
    assert CalibrationTable.load(tmp_path / "q" / "calibration.json").samples == 20
    assert "operators run on integers" in result.stdout
    assert f"tvm-qplugin build {tmp_path / 'q'}" in result.stdout
    assert "calibrating" in result.stderr and "calibrating" not in result.stdout


def test_quantize_again_replaces_the_stage(made, tmp_path):
    ok(*QUANTIZE, "-o", tmp_path / "q")
    before = (tmp_path / "q" / "module.json").read_text()
    ok("quantize", MODEL, "--table", made / "t.json", "--float", "^logits$", "-o", tmp_path / "q")
    assert (tmp_path / "q" / "module.json").read_text() != before
    assert os.listdir(tmp_path) == ["q"]


def test_quantize_from_a_table_gives_the_same_module(made, tmp_path):
    ok("quantize", MODEL, "--table", made / "t.json", "-o", tmp_path / "q")
    assert (tmp_path / "q" / "module.json").read_bytes() == (made / "q" / "module.json").read_bytes()


def test_quantize_json_lists_float_islands(tmp_path):
    found = data(*QUANTIZE, "-o", tmp_path / "q", "--float", "residual_second")
    assert {item["op"] for item in found["islands"]} == {"conv2d", "add"}
    assert all("recipe" in item["reason"] for item in found["islands"])
    assert found["samples"] == 20 and found["totals"]["float"] == 2


def test_quantize_options(tmp_path):
    np.save(tmp_path / "nhwc.npy", demo.calibration()[:20].transpose(0, 2, 3, 1))
    found = data(
        "quantize", MODEL, "--calibration", tmp_path / "nhwc.npy", "--input-layout", "NHWC", "--io", "uint8",
        "--observer", "moving_average", "--shape", "image=1,1,8,8", "--batch", "1",
        "--dump", tmp_path / "ir", "-o", tmp_path / "q",
    )  # fmt: skip
    assert found["inputs"][0]["dtype"] == found["outputs"][0]["dtype"] == "uint8"
    assert found["inputs"][0]["shape"] == [1, 8, 8, 1]
    assert found["inputs"][0]["qparams"]["scale"] > 0
    assert any(path.suffix == ".py" for path in (tmp_path / "ir").rglob("*"))


def test_tables_merge(made, tmp_path):
    found = data("calibrate", MODEL, "--calibration", SAMPLES, "--samples", "30", "-o", tmp_path / "t.json")
    assert found["samples"] == 30 and found["observers"] == ["min_max"]
    merged = data("merge-tables", made / "t.json", tmp_path / "t.json", "-o", tmp_path / "m.json")
    assert merged["samples"] == 50
    ok("quantize", MODEL, "--table", tmp_path / "m.json", "-o", tmp_path / "q")


# --- build, inspect


def test_build_reports_sizes_and_dumps(made, tmp_path):
    found = data("build", made / "q", "-o", tmp_path / "a", "--dump", tmp_path / "ir")
    assert sorted(os.listdir(tmp_path / "a")) == ["manifest.json", "model.so"]
    total = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert found["artifact_bytes"] == total
    assert found["source_model_bytes"] == Path(MODEL).stat().st_size > total
    assert found["totals"]["float"] == 0
    assert any((tmp_path / "ir").iterdir())


def test_build_says_what_it_compiled_and_cache_what_is_kept(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TVM_QPLUGIN_CACHE", str(tmp_path / "kernels"))
    first = data("build", made / "q", "-o", tmp_path / "a")["kernels"]
    assert first["compiled"] == data("cache")["entries"] > 0 and first["cached"] == 0
    assert data("build", made / "q", "-o", tmp_path / "a", "--jobs", 1)["kernels"] == {
        "compiled": 0,
        "cached": first["compiled"],
    }
    assert data("build", made / "q", "-o", tmp_path / "a", "--no-cache")["kernels"] == first
    assert str(tmp_path / "kernels") in ok("cache").stdout
    assert data("cache", "--clear")["entries"] == first["compiled"]
    assert data("cache")["entries"] == 0
    assert data("build", made / "q", "-o", tmp_path / "a")["kernels"] == first


def test_build_goes_on_without_a_cache(made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TVM_QPLUGIN_CACHE", str(tmp_path / "file"))
    result = ok("build", made / "q", "-o", tmp_path / "a")
    assert result.stderr.count("compiled kernels are not kept") == 1 and "Warning" not in result.stderr


def test_a_wrong_size_of_the_cache(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TVM_QPLUGIN_CACHE_SIZE", "large")
    result = call("build", made / "q", "-o", tmp_path / "a")
    assert result.exit_code == 1 and "TVM_QPLUGIN_CACHE_SIZE='large'" in result.stderr


def test_build_takes_a_float_onnx_file(tmp_path):
    found = data("build", MODEL, "-o", tmp_path / "a")
    assert found["totals"]["integer"] == 0
    assert data("inspect", tmp_path / "a")["recipe"]["scheme"] == "float"


def test_build_replaces_an_artifact(made, tmp_path):
    ok("build", made / "q", "-o", tmp_path / "a")
    ok("build", MODEL, "-o", tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert data("inspect", tmp_path / "a")["totals"]["integer"] == 0


def test_inspect_says_the_same_of_stage_and_artifact(made):
    stage, artifact = data("inspect", made / "q"), data("inspect", made / "a")
    assert (stage["kind"], artifact["kind"]) == ("quantized model", "artifact")
    for key in ("operators", "inputs", "outputs", "tensors", "totals", "model"):
        assert stage[key] == artifact[key], key
    conv = next(op for op in stage["operators"] if op["op"] == "conv2d")
    assert conv["qparams"]["dtype"] == "int8" and conv["weight_qparams"]["axis"] == 0
    assert conv["integer"] and conv["kernel"] == "qconv2d" and conv["macs"] > 0


def test_inspect_plans_a_float_model():
    found = data("inspect", MODEL)
    assert found["kind"] == "float model" and found["model"] == "digits"
    assert {op["op"] for op in found["operators"] if op["integer"]} >= {"conv2d", "dense", "add"}
    dense = next(op for op in found["operators"] if op["op"] == "dense")
    assert dense["macs"] == 1280 and dense["weight_bytes"] == 4 * (1280 + 10)
    assert dense["shape"] == [1, 10]


def test_inspect_shows_every_tensor(made):
    text = ok("inspect", made / "a").stdout
    for op in data("inspect", made / "a")["operators"]:
        assert op["name"] in text.replace("\n", "")


# --- run, bench, evaluate


def test_run_shows_and_saves(made, tmp_path):
    images, labels = demo.evaluation()
    args = ("run", made / "a", "--input", TEST, "--index", "3", "-o", tmp_path / "out.npz", "--top", "2")
    found = data(*args)
    assert found["outputs"][0]["top"][0]["index"] == [int(labels[3])]
    assert len(found["outputs"][0]["top"]) == 2
    np.save(tmp_path / "x.npy", images[3])
    ok("run", made / "a", "--input", tmp_path / "x.npy", "-o", tmp_path / "again.npz")
    with np.load(tmp_path / "out.npz") as first, np.load(tmp_path / "again.npz") as second:
        assert (first["logits"] == second["logits"]).all()
        assert int(first["logits"].argmax()) == labels[3]


def test_run_takes_an_image(made, tmp_path):
    from PIL import Image

    images, labels = demo.evaluation()
    pixels = np.rint(images[3, 0] * 255).astype("uint8")
    Image.fromarray(pixels).save(tmp_path / "x.png")
    spec = ("--preprocess", "unit,channels=L")
    found = data("run", made / "a", "--input", tmp_path / "x.png", *spec)
    assert found["outputs"][0]["top"][0]["index"] == [int(labels[3])]


def test_integer_inputs_are_quantized_on_the_way(made, tmp_path):
    ok("quantize", MODEL, "--table", made / "t.json", "--io", "int8", "-o", tmp_path / "q")
    ok("build", tmp_path / "q", "-o", tmp_path / "a")
    args = ("--input", TEST, "--index", "3")
    given = data("run", tmp_path / "a", *args)["outputs"][0]
    expected = data("run", made / "a", *args)["outputs"][0]
    assert given["dtype"] == "int8" and given["top"] == expected["top"]
    found = data("evaluate", tmp_path / "a", "--data", TEST, "--samples", "40", "--reference", made / "a")
    assert found["agreement"] == 1.0 and found["sqnr_db"] is None


def test_bench_measures_each_number_of_threads(made):
    found = data("bench", made / "a", "--threads", "1", "--repeat", "5")
    assert [(m["threads"], m["runs"]) for m in found["measurements"]] == [(1, 5)]
    assert found["measurements"][0]["peak_bytes"] > 0
    assert "median ms" in ok("bench", made / "a", "--repeat", "5").stdout


def test_evaluate_against_the_float_model(made):
    found = data("evaluate", made / "a", "--data", TEST, "--samples", "60", "--reference", MODEL)
    assert found["samples"] == 60 and found["accuracy"] > 0.9 and found["agreement"] > 0.9
    assert found["reference_accuracy"] > 0.9 and found["sqnr_db"] > 15
    table = ok("evaluate", made / "a", "--data", TEST, "--samples", "10", "--reference", made / "q").stdout
    assert "no difference" in table


def test_evaluate_without_labels(made):
    args = ("evaluate", made / "a", "--data", SAMPLES, "--no-labels", "--samples", "10")
    found = data(*args, "--reference", MODEL)
    assert found["accuracy"] is None and found["agreement"] > 0.8


def test_labels_offset_shifts_the_labels(made, tmp_path):
    images, labels = demo.evaluation()
    np.savez(tmp_path / "shifted.npz", x=images[:20], y=labels[:20] + 3)
    found = data("evaluate", made / "a", "--data", tmp_path / "shifted.npz", "--labels-offset", "-3")
    assert found["accuracy"] > 0.9


# --- demo


def test_demo_compares_the_schemes(tmp_path):
    found = data("demo", "--keep", tmp_path / "d")
    rows = {row["scheme"]: row for row in found["schemes"]}
    assert list(rows) == ["float", "fp16", "dynamic", "int8", "int8-best", "int16x8"]
    assert all(row["accuracy"] > 0.97 and row["agreement"] > 0.97 for row in rows.values())
    weights = {name: row["weight_bytes"] / rows["float"]["weight_bytes"] for name, row in rows.items()}
    assert weights.pop("float") == 1 and 0.49 < weights.pop("fp16") < 0.51
    assert all(0.2 < share < 0.3 for share in weights.values())
    for name, share in {"fp16": 0.6, "dynamic": 0.4, "int8": 0.4}.items():
        assert rows[name]["artifact_bytes"] < share * rows["float"]["artifact_bytes"]
    assert {str(path.relative_to(tmp_path / "d")) for path in (tmp_path / "d").glob("*/*")} == {
        "float/artifact",
        *(f"{name}/{kind}" for name in rows if name != "float" for kind in ("artifact", "quantized")),
    }
    ok("inspect", tmp_path / "d" / "int8" / "artifact")
    ok("inspect", tmp_path / "d" / "int8-best" / "quantized")


# --- inspect: planned schemes


def planned(*args: object) -> dict[str, dict]:
    """The operators of the demo's model by name, without its scheme's prefix."""
    return {entry["name"]: entry for entry in data("inspect", MODEL, *args)["operators"]}


@pytest.mark.parametrize(
    ("recipe", "scheme", "reason"),
    [
        ("int16x8", "int16x8", None),
        ("fp16", "fp16", "float16 weights, computed in float32"),
        ("float", "float", "the recipe keeps it in float"),
    ],
)
def test_inspect_says_the_planned_scheme(recipe, scheme, reason):
    operators = planned("--recipe", recipe)
    assert {(o["scheme"], o["reason"]) for o in operators.values() if o["op"] in ("conv2d", "dense")} == {
        (scheme, reason)
    }


def test_inspect_plans_layers_that_quantize_at_run_time():
    """Small weights stay float; without VNNI there is no kernel for the others."""
    for target, integer in (("x86-64-v4-vnni", True), ("x86-64", False)):
        operators = planned("--recipe", "dynamic", "--target", target)
        dynamic = [o for o in operators.values() if o["scheme"] == "dynamic"]
        assert len(dynamic) == 5 and {o["integer"] for o in dynamic} == {integer}
        assert {o["reason"] for o in dynamic} == {
            None if integer else "int8 weights, computed in float32: no kernel here"
        }
        reasons = [o["reason"] for o in operators.values() if o["scheme"] == "float"]
        assert "its weight has 288 elements, fewer than 1024" in reasons


def test_inspect_plans_mixed_recipes(tmp_path):
    rules = [{"op": "dense", "scheme": "fp16"}, {"scope": "depthwise2", "scheme": "int16x8"}]
    rules += [{"scope": "first", "scheme": "dynamic"}]
    (tmp_path / "mixed.json").write_text(json.dumps({"name": "mixed", "scheme": "int8", "rules": rules}))
    operators = planned("--recipe", tmp_path / "mixed.json")
    assert operators["logits"]["scheme"] == "fp16"
    assert {o["scheme"] for name, o in operators.items() if "depthwise2" in name} == {"int16x8"}
    assert {o["scheme"] for name, o in operators.items() if "first" in name} == {"dynamic"}
    assert "int8" in {o["scheme"] for o in operators.values()}


def test_inspect_says_what_a_target_refuses():
    operators = planned("--recipe", "dynamic", "--target", "edgetpu")
    assert {o["scheme"] for o in operators.values()} == {"float"}
    assert all("edgetpu runs integers" in o["reason"] for o in operators.values())


def test_inspect_knows_the_schemes_of_what_was_made(tmp_path):
    for recipe in ("fp16", "dynamic"):
        ok("quantize", MODEL, "--recipe", recipe, "-o", tmp_path / recipe)
        ok("build", tmp_path / recipe, "-o", tmp_path / f"{recipe}-a")
        for place in (recipe, f"{recipe}-a"):
            entries = data("inspect", tmp_path / place)["operators"]
            found = [entry for entry in entries if entry["scheme"] == recipe and entry["weight_bytes"]]
            assert len(found) >= 5
