"""Bad input on the command line: an exit code, one readable message, and nothing half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tvm_qplugin import cli, demo

MODEL, SAMPLES, TEST = (str(p) for p in (demo.model_path(), demo.calibration_path(), demo.evaluation_path()))


def call(*args: object):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """``q``: a quantized model, ``a``: its artifact, ``t.json``: its table."""
    folder = tmp_path_factory.mktemp("made")
    table = ("--save-table", folder / "t.json")
    assert call("quantize", MODEL, "--calibration", SAMPLES, "-o", folder / "q", *table).exit_code == 0
    assert call("build", folder / "q", "-o", folder / "a").exit_code == 0
    return folder


def _listing(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in sorted(folder.rglob("*")) if not path.is_dir()}


def _fails(folder: Path, args: tuple[object, ...], code: int, *said: str) -> str:
    """The command ends with ``code``, says all of ``said`` on stderr, and changes nothing in ``folder``."""
    before = _listing(folder)
    result = call(*args)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    for part in said:
        assert part in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.stderr
    assert "should not have happened" not in result.stderr
    assert _listing(folder) == before
    if code == 1:
        assert result.stderr.count("Error:") == 1 and "--debug" in result.stderr
    return str(result.stderr)


# Files that are wrong, by name; made in the directory of a test.


def _npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def _table(folder: Path) -> Path:
    """A table of the demo's model."""
    assert call("calibrate", MODEL, "--calibration", SAMPLES, "-o", folder / "t.json").exit_code == 0
    return folder / "t.json"


def _text(folder: Path) -> Path:
    (folder / "notes.txt").write_text("hello")
    return folder / "notes.txt"


def _rule(folder: Path, **fields: object) -> Path:
    """A recipe with one rule."""
    (folder / "r.json").write_text(json.dumps({"rules": [{"scheme": "float", **fields}]}))
    return folder / "r.json"


def _truncated(folder: Path) -> Path:
    (folder / "cut.onnx").write_bytes(Path(MODEL).read_bytes()[:200_000])
    return folder / "cut.onnx"


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def _foreign(folder: Path) -> Path:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.doc").write_text("years of work")
    return folder / "mine"


def _with_nan(folder: Path) -> Path:
    images = demo.calibration()[:5].copy()
    images[3, 0, 2, 2] = np.nan
    return _npz(folder, x=images)


def _fake_image(folder: Path) -> Path:
    folder = _empty(folder)
    (folder / "a.png").write_text("not an image")
    return folder


def _changed(made: Path, folder: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of the artifact or stage with one file changed."""
    source, file = name.split("/")
    shutil.copytree(made / source, folder / "copy")
    path = folder / "copy" / file
    path.write_bytes(change(path.read_bytes()))
    return folder / "copy"


def _other_table(made: Path, folder: Path) -> Path:
    table = json.loads((made / "t.json").read_text())
    (folder / "other.json").write_text(json.dumps({**table, "model_hash": "0" * 64}))
    return folder / "other.json"


Case = tuple[str, Callable[[Path], tuple[object, ...]], int, tuple[str, ...]]
IMAGES = demo.calibration()[:5]

GOOD = (MODEL, "--calibration", SAMPLES)

QUANTIZE: list[Case] = [
    ("no model", lambda d: ("gone.onnx", "--calibration", SAMPLES), 1, ("gone.onnx", "does not exist")),
    ("model is a directory", lambda d: (d, "--calibration", SAMPLES), 1, ("is a folder", "ONNX")),
    ("model is text", lambda d: (_text(d), "--calibration", SAMPLES), 1, ("notes.txt", "not an ONNX file")),
    ("truncated model", lambda d: (_truncated(d), "--calibration", SAMPLES), 1, ("cut.onnx", "damaged")),
    ("no samples", lambda d: (MODEL,), 1, ("--calibration",)),
    ("samples are missing", lambda d: (MODEL, "--calibration", d / "gone"), 1, ("gone does not exist",)),
    ("samples are text", lambda d: (MODEL, "--calibration", _text(d)), 1, ("notes.txt", ".npz")),
    ("folder is empty", lambda d: (MODEL, "--calibration", _empty(d)), 1, ("holds no images",)),
    ("not an image", lambda d: (MODEL, "--calibration", _fake_image(d)), 1, ("a.png", "not an image")),
    (
        "wrong shape",
        lambda d: (MODEL, "--calibration", _npz(d, x=IMAGES[:, :, :7])),
        1,
        ("sample 0", "'image'", "[1, 7, 8]", "[1, 1, 8, 8]"),
    ),
    (
        "wrong dtype",
        lambda d: (MODEL, "--calibration", _npz(d, x=(IMAGES * 255).astype("uint8"))),
        1,
        ("uint8", "float32", "preprocess"),
    ),
    ("NaN", lambda d: (MODEL, "--calibration", _with_nan(d)), 1, ("sample 3", "nan", "finite")),
    ("zero samples", lambda d: (MODEL, "--calibration", _npz(d, x=IMAGES[:0])), 1, ("empty",)),
    ("which array", lambda d: (MODEL, "--calibration", _npz(d, a=IMAGES, b=IMAGES)), 1, ("a float32",)),
    ("no such key", lambda d: (*GOOD, "--key", "zz"), 1, ("'zz'",)),
    ("preprocessing", lambda d: (*GOOD, "--preprocess", "tff"), 1, ("'tff'", "imagenet")),
    ("observer", lambda d: (*GOOD, "--observer", "max"), 1, ("'max'", "min_max")),
    ("target", lambda d: (*GOOD, "--target", "esp32"), 1, ("'esp32'", "host")),
    ("recipe", lambda d: (*GOOD, "--recipe", "int9"), 1, ("'int9'", "int8")),
    ("recipe float", lambda d: (*GOOD, "--recipe", "float"), 1, ("build",)),
    ("recipe file", lambda d: (*GOOD, "--recipe", _text(d)), 1, ("not JSON",)),
    ("regex", lambda d: (*GOOD, "--float", "("), 1, ("regular expression",)),
    ("no such layer", lambda d: (*GOOD, "--float", "zz"), 1, ("matches no layer",)),
    (
        "no such layer of a kind",
        lambda d: (*GOOD, "--recipe", _rule(d, scope="stem", op="prelu")),
        1,
        ("kind 'prelu'",),
    ),
    ("all in float", lambda d: (*GOOD, "--float", "."), 1, ("keep every layer in float", "build")),
    ("table is missing", lambda d: (MODEL, "--table", d / "gone.json"), 1, ("gone.json", "cannot be read")),
    ("table is text", lambda d: (MODEL, "--table", _text(d)), 1, ("notes.txt", "not JSON")),
    ("shape option", lambda d: (*GOOD, "--shape", "image"), 1, ("--shape 'image'",)),
    ("shape of no input", lambda d: (*GOOD, "--shape", "foo=1,2"), 1, ("foo", "image")),
    (
        "table goes nowhere",
        lambda d: (*GOOD, "--save-table", d / "gone" / "t.json"),
        1,
        ("gone does not exist",),
    ),
    ("dump is a file", lambda d: (*GOOD, "--dump", _text(d)), 1, ("notes.txt is a file",)),
    ("samples and table", lambda d: (*GOOD, "--table", "t"), 2, ("not both",)),
    (
        "biases from a table",
        lambda d: (MODEL, "--correct-bias", "--table", _table(d)),
        1,
        ("samples beside the table", "--calibration"),
    ),
    ("--samples 0", lambda d: (*GOOD, "--samples", "0"), 2, ("--samples",)),
    ("--io", lambda d: (*GOOD, "--io", "int4"), 2, ("int4", "uint8")),
    ("no such option", lambda d: (MODEL, "--calibrate", SAMPLES), 2, ("No such option",)),
    ("nothing", lambda d: (), 2, ("Missing argument",)),
]


@pytest.mark.parametrize(
    ("arguments", "code", "said"), [c[1:] for c in QUANTIZE], ids=[c[0] for c in QUANTIZE]
)
def test_quantize(arguments, code, said, tmp_path):
    args = ("quantize", *arguments(tmp_path), "-o", tmp_path / "out")
    _fails(tmp_path, args, code, *said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["quantize", "build", "demo", "calibrate"])
def test_outputs_that_cannot_be_used(command, made, tmp_path, monkeypatch):
    """Refused before anything is loaded."""
    for module in ("workflow", "cli_build", "cli_demo"):
        monkeypatch.setattr(f"tvm_qplugin.{module}.step", pytest.fail)
    start = {
        "quantize": ("quantize", MODEL, "--calibration", SAMPLES, "-o"),
        "build": ("build", made / "q", "-o"),
        "calibrate": ("calibrate", MODEL, "--calibration", SAMPLES, "-o"),
        "demo": ("demo", "--keep"),
    }[command]
    mine = _foreign(tmp_path)
    if command == "calibrate":
        _fails(tmp_path, (*start, mine), 1, "is a directory")
        _fails(tmp_path, (*start, tmp_path / "gone" / "t.json"), 1, "gone does not exist")
        _fails(tmp_path, (*start, "/proc/t.json"), 1, "cannot write /proc/t.json")
        return
    if command != "demo":
        _fails(tmp_path, (*start, mine), 1, "thesis.doc", "choose a new or empty directory")
        _fails(tmp_path, (*start, mine / "thesis.doc"), 1, "thesis.doc is a file")
    _fails(tmp_path, (*start, "/proc/out"), 1, "cannot write /proc/out")


def test_an_artifact_is_not_overwritten_by_a_stage_nor_the_other_way_round(made):
    _fails(made, ("quantize", MODEL, "--calibration", SAMPLES, "-o", made / "a"), 1, "model.so")
    _fails(made, ("build", made / "q", "-o", made / "q"), 1, "module.json")


def test_a_table_of_another_model(made, tmp_path):
    args = ("quantize", MODEL, "--table", _other_table(made, tmp_path), "-o", tmp_path / "q")
    _fails(tmp_path, args, 1, "belongs to another model")


def test_tables_that_do_not_fit(made, tmp_path):
    out = ("-o", tmp_path / "m.json")
    other = _other_table(made, tmp_path)
    _fails(tmp_path, ("merge-tables", made / "t.json", other, *out), 1, "different models")
    _fails(tmp_path, ("merge-tables", made / "t.json", tmp_path / "gone.json", *out), 1, "gone.json")
    _fails(tmp_path, ("merge-tables", made / "t.json", *out), 2, "at least two")
    _fails(tmp_path, ("calibrate", MODEL, *out), 1, "--calibration")


STAGES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("half of it", lambda content: content[: len(content) // 2], "not a saved module"),
    ("something else", lambda content: b"[]", "not a saved module"),
    ("another TVM", lambda content: content.replace(b'"tvm": "0.', b'"tvm": "9.'), "written with TVM 9."),
    ("not utf-8", lambda content: b"\xff\xfe\xfa", "not a saved module"),
]


@pytest.mark.parametrize("command", ["build", "inspect"])
@pytest.mark.parametrize(("change", "said"), [c[1:] for c in STAGES], ids=[c[0] for c in STAGES])
def test_damaged_stages(command, change, said, made, tmp_path):
    source = _changed(made, tmp_path, "q/module.json", change)
    out = ("-o", tmp_path / "out") if command == "build" else ()
    _fails(tmp_path, (command, source, *out), 1, said, "quantize")


@pytest.mark.parametrize("command", ["build", "inspect"])
def test_sources_that_are_none(command, made, tmp_path):
    out = ("-o", tmp_path / "out") if command == "build" else ()
    _fails(tmp_path, (command, tmp_path / "gone", *out), 1, "gone does not exist")
    _fails(tmp_path, (command, _empty(tmp_path), *out), 1, "neither manifest.json")
    _fails(tmp_path, (command, _text(tmp_path), *out), 1, "not an ONNX file")
    _fails(tmp_path, (command, MODEL, "--target", "esp32", *out), 1, "'esp32'", "host")


def test_build_refuses_an_artifact(made, tmp_path):
    _fails(tmp_path, ("build", made / "a", "-o", tmp_path / "b"), 1, "compiled already")


ARTIFACTS: list[tuple[str, str, Callable[[bytes], bytes], str]] = [
    ("altered code", "a/model.so", lambda content: content[:-1] + b"!", "model.so was altered"),
    ("truncated code", "a/model.so", lambda content: content[:1000], "model.so was altered"),
    ("truncated manifest", "a/manifest.json", lambda content: content[:500], "not JSON"),
    ("empty manifest", "a/manifest.json", lambda content: b"{}", "manifest.json"),
    ("future", "a/manifest.json", lambda c: c.replace(b'"format":3', b'"format":99'), "format 99"),
]


@pytest.mark.parametrize("command", ["run", "bench", "evaluate", "inspect"])
@pytest.mark.parametrize(
    ("file", "change", "said"), [c[1:] for c in ARTIFACTS], ids=[c[0] for c in ARTIFACTS]
)
def test_damaged_artifacts(command, file, change, said, made, tmp_path):
    artifact = _changed(made, tmp_path, file, change)
    more = {"run": ("--input", TEST), "evaluate": ("--data", TEST)}.get(command, ())
    _fails(tmp_path, (command, artifact, *more), 1, said)


@pytest.mark.parametrize("command", ["run", "bench", "evaluate"])
def test_artifacts_that_are_none(command, made, tmp_path):
    more = {"run": ("--input", TEST), "evaluate": ("--data", TEST)}.get(command, ())
    _fails(tmp_path, (command, tmp_path / "gone", *more), 1, "gone: no such directory")
    _fails(tmp_path, (command, MODEL, *more), 1, "is not an artifact", "tvm-qplugin build")
    _fails(tmp_path, (command, made / "q", *more), 1, "is not an artifact", "tvm-qplugin build")
    _fails(tmp_path, (command, _empty(tmp_path), *more), 1, "manifest.json is missing")


RUN: list[Case] = [
    ("no input", lambda d: (), 2, ("--input",)),
    ("input is missing", lambda d: ("--input", d / "gone.npy"), 1, ("gone.npy does not exist",)),
    ("input is a directory", lambda d: ("--input", _empty(d)), 1, ("is a directory",)),
    ("input is text", lambda d: ("--input", _text(d)), 1, ("notes.txt is not a sound",)),
    ("many samples", lambda d: ("--input", _npz(d, x=IMAGES)), 1, ("5 samples", "--index")),
    ("index", lambda d: ("--input", _npz(d, x=IMAGES), "--index", "5"), 1, ("--index 5", "5 samples")),
    ("negative index", lambda d: ("--input", _npz(d, x=IMAGES), "--index", "-1"), 1, ("--index -1",)),
    ("wrong shape", lambda d: ("--input", _npz(d, x=IMAGES[0, :, :4])), 1, ("[1, 4, 8]", "[1, 1, 8, 8]")),
    (
        "wrong dtype",
        lambda d: ("--input", _npz(d, x=IMAGES[0].astype("int64"))),
        1,
        ("int64", "float32"),
    ),
    ("which array", lambda d: ("--input", _npz(d, a=IMAGES, b=IMAGES)), 1, ("holds a, b", "image")),
    ("too many", lambda d: ("--input", TEST, "--input", TEST, "--index", "0"), 1, ("one file for each",)),
    ("output is a directory", lambda d: ("--input", TEST, "-o", d), 1, ("is a directory",)),
    ("--top 0", lambda d: ("--input", TEST, "--top", "0"), 2, ("--top",)),
    ("preprocessing", lambda d: ("--input", TEST, "--preprocess", "crop=x"), 1, ("crop=x",)),
]


@pytest.mark.parametrize(("arguments", "code", "said"), [c[1:] for c in RUN], ids=[c[0] for c in RUN])
def test_run(arguments, code, said, made, tmp_path):
    _fails(tmp_path, ("run", made / "a", *arguments(tmp_path)), code, *said)


def test_bench(made):
    _fails(made, ("bench", made / "a", "--threads", "0"), 1, "--threads 0", "cores")
    _fails(made, ("bench", made / "a", "--threads", "4096"), 1, "--threads 4096")
    _fails(made, ("bench", made / "a", "--repeat", "0"), 2, "--repeat")


def _labels(folder: Path, labels: list[int]) -> Path:
    return _npz(folder, x=IMAGES, y=np.array(labels))


EVALUATE: list[Case] = [
    ("no data", lambda d: (), 2, ("--data",)),
    ("data is missing", lambda d: ("--data", d / "gone.npz"), 1, ("gone.npz does not exist",)),
    ("no labels", lambda d: ("--data", _npz(d, x=IMAGES)), 1, ("no labels 'y'",)),
    ("no labels.csv", lambda d: ("--data", _empty(d)), 1, ("labels.csv",)),
    ("label out of range", lambda d: ("--data", _labels(d, [0, 1, 2, 3, 10])), 1, ("label 10", "10 classes")),
    ("offset", lambda d: ("--data", TEST, "--labels-offset", "9"), 1, ("offset 9", "--labels-offset")),
    ("counts differ", lambda d: ("--data", _labels(d, [0, 1])), 1, ("5 samples but 2 labels",)),
    ("no samples", lambda d: ("--data", _npz(d, x=IMAGES[:0], y=np.zeros(0, int))), 1, ("no samples",)),
    (
        "reference is missing",
        lambda d: ("--data", TEST, "--reference", d / "gone"),
        1,
        ("gone does not exist",),
    ),
    ("reference is text", lambda d: ("--data", TEST, "--reference", _text(d)), 1, ("not an ONNX file",)),
    ("nothing to measure", lambda d: ("--data", TEST, "--no-labels"), 2, ("--reference",)),
]


@pytest.mark.parametrize(
    ("arguments", "code", "said"), [c[1:] for c in EVALUATE], ids=[c[0] for c in EVALUATE]
)
def test_evaluate(arguments, code, said, made, tmp_path):
    _fails(tmp_path, ("evaluate", made / "a", *arguments(tmp_path)), code, *said)
