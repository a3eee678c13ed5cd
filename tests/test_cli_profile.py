"""``bench --profile`` and ``why-slow`` on the embedded model: structure, names, sums, exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tvm_qplugin import cli, demo
from tvm_qplugin.store import read_manifest

MODEL, SAMPLES = str(demo.model_path()), str(demo.calibration_path())


def call(*args: object):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], env={"COLUMNS": "200"})


def ok(*args: object) -> str:
    result = call(*args)
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return result.stdout


def data(*args: object) -> dict:
    return json.loads(ok(*args, "--json"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """``mixed``: int8 but for one layer; ``merged``; ``float``; ``old`` for a CPU without vectors."""
    folder = tmp_path_factory.mktemp("profile")
    quantize = ("quantize", MODEL, "--calibration", SAMPLES, "--samples", "8")
    ok(*quantize, "--float", "residual_second_second", "-o", folder / "q")
    ok("build", folder / "q", "-o", folder / "merged")
    ok("build", folder / "q", "--separate-kernels", "-o", folder / "mixed")
    ok("build", folder / "q", "--target", "x86-64", "-o", folder / "old")
    ok("build", MODEL, "--separate-kernels", "-o", folder / "float")
    return folder


@pytest.mark.parametrize("name", ["mixed", "merged", "float"])
def test_bench_profile(made, name):
    found = data("bench", made / name, "--profile", "--repeat", "3")
    assert found["measurements"][0]["runs"] == 3
    (profile,) = found["profiles"]
    manifest = read_manifest(made / name)
    assert [layer["function"] for layer in profile["layers"]] == [call.function for call in manifest.calls]
    known = {op.name for op in manifest.operators}
    assert {layer["name"] for layer in profile["layers"]} <= known
    assert sum(layer["share"] for layer in profile["layers"]) == pytest.approx(1)
    assert sum(kind["ms"] for kind in profile["kinds"]) == pytest.approx(profile["kernels_ms"])
    assert set(profile["peaks"]) == {layer["dtype"] for layer in profile["layers"]}
    assert [layer["instruction"] for layer in profile["layers"]] == [c.instruction for c in manifest.calls]


def test_bench_profile_of_merged_kernels(made):
    text = ok("bench", made / "merged", "--profile", "--repeat", "3")
    assert "operators)" in text and "tvm-qplugin build --separate-kernels" in text
    assert "--separate-kernels" not in ok("bench", made / "mixed", "--profile", "--repeat", "3")
    found = data("why-slow", made / "merged", "--repeat", "3")["findings"]
    (finding,) = [finding for finding in found if finding["kind"] == "merged"]
    assert "--separate-kernels" in finding["advice"] and finding["share"] > 0


def test_bench_without_profile_has_none(made):
    assert "profiles" not in data("bench", made / "mixed", "--repeat", "3")


def test_bench_profile_as_a_table(made):
    text = ok("bench", made / "mixed", "--profile", "--repeat", "3")
    assert all(call.tensor.rstrip("1") in text for call in read_manifest(made / "mixed").calls)
    assert "conv2d (float)" in text and "GMAC/s" in text and "by kind" in text and "of peak" in text
    used = {str(call.instruction).split(",")[0] for call in read_manifest(made / "mixed").calls}
    assert all(name in text for name in used - {"None"})


def test_why_slow_names_the_float_layer(made):
    found = data("why-slow", made / "mixed", "--repeat", "3")
    assert found["float"] is None and found["layers"] == [] and found["float_profile"] is None
    (island,) = [f for f in found["findings"] if f["kind"] == "float"]
    assert island["layers"] == ["_residual_second_second_1_BatchNormalization_output_0"]
    assert "recipe" in island["title"] and 0 < island["share"] < 1
    conversions = [f for f in found["findings"] if f["kind"] == "conversion"]
    assert sorted(len(f["layers"]) for f in conversions) == [2, 2]


def test_why_slow_beside_float(made):
    found = data("why-slow", made / "mixed", "--float", made / "float", "--repeat", "3")
    compared = {row["name"]: row["float_ms"] for row in found["layers"] if row["float_ms"] is not None}
    operators = read_manifest(made / "mixed").operators
    assert {op.name for op in operators if op.op in ("conv2d", "dense")} - {
        "_residual_second_second_1_BatchNormalization_output_0_conv2d"
    } <= set(compared)
    assert "in float" in found["verdict"] and "layers are slower" in found["verdict"]
    assert "beside float" in ok("why-slow", made / "mixed", "--float", made / "float", "--repeat", "3")


def test_why_slow_says_that_instructions_are_not_used(made):
    found = data("why-slow", made / "old", "--repeat", "3")
    (finding,) = [f for f in found["findings"] if f["kind"] == "instructions"]
    assert finding["share"] is None and finding["title"].startswith(
        ("int8 instruction compiled for", "no int8 instruction")
    )


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("why-slow",), 2, "Missing argument"),
        (("why-slow", "mixed", "--threads", "1000"), 1, "--threads 1000: expected 1 to"),
        (("why-slow", "q"), 1, "is not an artifact: compile it with"),
        (("why-slow", "nowhere"), 1, "no such directory"),
        (("why-slow", "mixed", "--float", "mixed"), 1, "of its operators run on integers"),
        (("why-slow", "mixed", "--float", "q"), 1, "is not an artifact"),
        (("bench", "q", "--profile"), 1, "is not an artifact"),
    ],
)
def test_errors(made, args, code, said):
    paths = {"q", "mixed", "nowhere"}
    result = call(*(made / arg if arg in paths else arg for arg in args))
    assert result.exit_code == code and result.stdout == ""
    assert said in " ".join(result.stderr.split())
