"""The benchmark: ratios, limits, the table, the picture, and going on where it was interrupted."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import tvm_qplugin

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.append(str(SCRIPTS))
import _bench_models  # noqa: E402
import _bench_plot  # noqa: E402
import _contestants  # noqa: E402
import bench  # noqa: E402
from _bench_rows import Kept, Options, Race, Result, as_summary, as_table  # noqa: E402

OPTIONS = Options(rounds=3, seconds=0.01, warmup=0.0)
OURS = Result("ours", [1.0, 2.0, 1.5], [0.9, 1.9, 1.4], 10.0, 3_000_000, 4_000_000)
PEER = Result("LiteRT int8", [3.0, 4.0, 6.0], [2.7, 3.9, 5.0])
FLOAT = Result("OpenVINO float", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
OTHER = Result("ours, float I/O", [1.1, 2.1, 1.6], [1.0, 2.0, 1.5])
RACE = Race(
    "net", 2, OPTIONS, 300_000_000, 1e12, [OURS, OTHER, PEER, FLOAT], {"OpenVINO int8": "not installed"}
)


def printed(table):
    console = Console(width=160, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_ratios_are_taken_round_by_round():
    assert PEER.over(OURS) == [3.0, 2.0, 4.0]
    assert [RACE.ratio(r) for r in (OURS, PEER, FLOAT)] == [None, 3.0, pytest.approx(1 / 3)]
    assert (OURS.median, OURS.least) == (1.5, 0.9)
    assert replace(RACE, results=[PEER]).ratio(PEER) is None


def test_best_peer_computes_in_integers_and_is_not_ours():
    faster = Result("onnxruntime int8", [2.0, 2.0, 2.0], [2.0, 2.0, 2.0])
    assert RACE.best_peer() is PEER
    assert replace(RACE, results=[*RACE.results, faster]).best_peer() is faster
    assert replace(RACE, results=[OURS, OTHER, FLOAT]).best_peer() is None


def test_part_of_the_peak():
    assert RACE.of_peak(OURS) == pytest.approx(100 * 0.3e9 / 1.5e-3 / 1e12) == pytest.approx(20)
    assert RACE.of_peak(FLOAT) is None
    assert replace(RACE, peak=None).of_peak(OURS) is None


@pytest.mark.parametrize(
    ("model", "times", "missed"),
    [
        ("mobilenet_v2", {"OpenVINO int8": 1.5, "LiteRT int8": 2.0}, []),
        ("mobilenet_v2", {"OpenVINO int8": 1.49, "LiteRT int8": 2.0}, ["OpenVINO int8 / ours is 1.49"]),
        ("inception_v3", {"OpenVINO int8": 1.06, "LiteRT float": 3.2}, ["LiteRT float / ours is 3.20"]),
        ("inception_v3", {"ours float": 4.3, "LiteRT float": 3.4}, ["LiteRT float / ours float is 0.79"]),
        ("inception_v3", {"ours float": 4.2, "LiteRT float": 3.4}, []),
        ("tiny_kws_dscnn", {"OpenVINO int8": 0.5, "LiteRT int8": 1.01}, []),
        ("tiny_kws_dscnn", {"LiteRT int8": 0.99}, ["LiteRT int8 / ours is 0.99"]),
        ("other", {"LiteRT int8": 0.5}, []),
        ("mobilenet_v1", {"ours int16x8": 2.1, "LiteRT int16x8": 95}, []),
        (
            "mobilenet_v1",
            {"ours int16x8": 2.3, "LiteRT int16x8": 92},
            ["int16x8 / ours int16x8 is 40", "is 0.43"],
        ),
        ("inception_v3", {"ours dynamic": 2.0, "LiteRT dynamic": 1.9}, ["ours dynamic is 0.95"]),
    ],
)
def test_limits(model, times, missed):
    results = [Result(name, [ms], [ms]) for name, ms in {"ours": 1.0, **times}.items()]
    found = Race(model, 1, OPTIONS, results=results).missed()
    assert len(found) == len(missed)
    assert all(text in line for text, line in zip(missed, found, strict=True))
    assert Race(model, 1, OPTIONS, results=results[1:]).missed() == []


def test_table_shows_everybody_and_names_the_absent():
    text = printed(as_table(RACE))
    assert "net, 2 threads, 300 million multiply-adds" in text
    assert "without OpenVINO int8: not installed" in text
    assert "best int8 peer / ours: 3.00 (LiteRT int8)" in text
    line = next(line for line in text.splitlines() if line.startswith("│ LiteRT int8"))
    assert [cell.strip() for cell in line.split("│")[2:7]] == [
        "4.0000",
        "2.7000",
        "3.00",
        "2.00 .. 4.00",
        "3.00",
    ]
    line = next(line for line in text.splitlines() if line.startswith("│ ours "))
    assert [cell.strip() for cell in line.split("│")[7:11]] == ["20", "3", "10", "4.00"]
    assert "LiteRT int8" in printed(as_summary([RACE]))


def test_race_without_us_is_still_a_table():
    text = printed(as_table(replace(RACE, results=[PEER], absent={"ours": "RuntimeError: broken"})))
    assert "without ours: RuntimeError: broken" in text and "best int8 peer" not in text


def test_kept_races_survive_and_hold_under_equal_options(tmp_path):
    path, all_in = tmp_path / "races.json", {result.contestant: "" for result in RACE.results}
    Kept(path, {"cpu": "x"}).add(RACE)
    assert json.loads(path.read_text())["cpu"] == "x"
    kept = Kept(path, {})
    assert kept.find("net", 2, OPTIONS, all_in) == RACE
    assert kept.find("net", 1, OPTIONS, all_in) is None
    assert kept.find("net", 2, replace(OPTIONS, rounds=4), all_in) is None
    assert Kept(path, {}, fresh=True).find("net", 2, OPTIONS, all_in) is None
    assert [file.name for file in tmp_path.iterdir()] == ["races.json"]


def test_race_is_run_again_for_who_failed_or_can_take_part_now():
    assert RACE.covers({"ours": "", "OpenVINO int8": "not installed"})
    assert not RACE.covers({"ours": "", "OpenVINO int8": ""})
    assert not RACE.covers({"ours": "", "onnxruntime int8": ""})


@pytest.mark.parametrize("content", ["", "[1]", '{"races": [{"model": "x"}]}'])
def test_other_file_is_a_clear_message(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=r"other\.json does not hold races.*--fresh"):
        Kept(path, {})


def test_picture(tmp_path):
    races = [RACE, replace(RACE, model="other", results=[OURS, PEER]), replace(RACE, threads=1)]
    _bench_plot.plot(races, tmp_path / "a.png", "machine")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert _bench_plot.series(races[:2])["LiteRT int8"] == {"net": 3.0, "other": 3.0}


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(_contestants, "find_spec", lambda name: None if name == "nncf" else object())
    reason = _contestants.CONTESTANTS["OpenVINO int8"].obstacle(_bench_models.ZooModel("mobilenet_v1"))
    assert reason == "not installed: nncf; pip install 'tvm-qplugin[bench]'"
    reason = _contestants.CONTESTANTS["LiteRT int8"].obstacle(_bench_models.ZooModel("mobilenet_v1"))
    assert reason == "there is no file of this net by TFLite's converter"


@pytest.fixture
def digits(tmp_path):
    """The embedded demo model as a small entry of the table."""
    shutil.copy(Path(tvm_qplugin.__file__).parent / "demo" / "digits.onnx", tmp_path / "digits.onnx")
    return _bench_models.ZooModel("digits", tmp_path)


def test_one_that_fails_does_not_stop_the_others(digits, tmp_path):
    sizes, failed = bench.make_files(digits, ["onnxruntime float", "ours"], tmp_path)
    assert sizes == {"onnxruntime float": (tmp_path / "digits.onnx").stat().st_size}
    assert list(failed) == ["ours"] and "digits" in failed["ours"]  # there are no samples of it
    entrants = {**sizes, "LiteRT float": 1}
    results, absent = bench.run_race(digits, entrants, 1, tmp_path, replace(OPTIONS, rounds=2))
    assert [result.contestant for result in results] == ["onnxruntime float"]
    assert len(results[0].medians) == 2 and min(results[0].minima) > 0
    assert results[0].load_ms > 0 and results[0].memory_bytes > 0
    assert list(absent) == ["LiteRT float"] and "ValueError" in absent["LiteRT float"]
    assert bench.failures(Race("digits", 1, OPTIONS, absent=absent), {}) == [
        f"digits, 1 thread: LiteRT float failed: {absent['LiteRT float']}"
    ]


def test_interrupted_run_goes_on(monkeypatch, tmp_path, capsys):
    """Ctrl-C in the second race: the first is kept, and not run again."""
    runs = []

    def run_race(model, sizes, threads, folder, options):
        runs.append(threads)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return [Result("ours", [1.0], [1.0], file_bytes=sizes["ours"])], {}

    monkeypatch.setattr(bench, "_peaks", lambda counts: dict.fromkeys(counts, 1e12))
    monkeypatch.setattr(bench, "make_files", lambda *_: ({"ours": 7}, {}))
    monkeypatch.setattr(bench, "run_race", run_race)
    path = tmp_path / "races.json"
    command = ["mobilenet_v1", "--threads", "1", "2", "--contestants", "ours", "--json", str(path)]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert bench.main([*command, "--zoo", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().out
    assert [race["threads"] for race in json.loads(path.read_text())["races"]] == [1]
    assert bench.main([*command, "--zoo", str(tmp_path)]) == 0
    assert runs == [1, 2, 2]
    races = json.loads(path.read_text())["races"]
    assert [(race["threads"], race["peak"], race["results"][0]["file_bytes"]) for race in races] == [
        (1, 1e12, 7),
        (2, 1e12, 7),
    ]


def test_unknown_model_is_a_clear_message():
    with pytest.raises(SystemExit, match=r"no model 'alexnet'; the models are: mobilenet_v1, mobilenet_v2"):
        _bench_models.chosen(["alexnet"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--threads", "0"], "--threads: 1 to "),
        (["--json", "nowhere/races.json"], "nowhere does not exist: make the folder first"),
        (["--plot", "nowhere/races.png"], "nowhere does not exist: make the folder first"),
    ],
)
def test_wrong_arguments_are_clear_messages(given, message, capsys):
    with pytest.raises(SystemExit):
        bench.arguments(given)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_command(shared_data, tmp_path):
    path, picture = tmp_path / "races.json", tmp_path / "races.png"
    command = [sys.executable, SCRIPTS / "bench.py", "tiny_kws", "--threads", 1, "--rounds", 2]
    command += [
        "--contestants",
        *_contestants.CONTESTANTS,
        "--seconds",
        0.01,
        "--warmup",
        0.01,
        "--json",
        path,
        "--plot",
        picture,
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (race,) = json.loads(path.read_text())["races"]
    assert [result["contestant"] for result in race["results"]] == list(_contestants.CONTESTANTS)
    assert race["absent"] == {} and race["macs"] > 1e6
    assert all(len(r["medians"]) == 2 and min(r["minima"]) > 0 for r in race["results"])
    assert all(min(r["load_ms"], r["memory_bytes"], r["file_bytes"]) > 0 for r in race["results"])
    assert picture.is_file()
