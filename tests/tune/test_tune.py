"""Tuning on this machine: what is recorded, resumed, shared and applied."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from importlib import import_module
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import pytest

import tvm_qplugin
from tvm_qplugin import demo, tuning_run
from tvm_qplugin.builder import compile_module
from tvm_qplugin.core.errors import DatabaseError, InputError
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.core.records import Database, Record
from tvm_qplugin.core.tunable import canonical
from tvm_qplugin.recorded import tuned_calls
from tvm_qplugin.search import valid_settings
from tvm_qplugin.targets import find_profile, tvm_target
from tvm_qplugin.trial import Job, call_of, tunable_of
from tvm_qplugin.tuner import tune
from tvm_qplugin.tuning_run import TaskStatus
from tvm_qplugin.tuning_tasks import TuningTask, tasks_of

HERE = Path(__file__).parent
HOST = find_profile("host")
CPU = str(tvm_target(HOST).attrs["mcpu"])
pytestmark = pytest.mark.skipif(not HOST.tunables, reason="no rule with knobs for this machine")


@pytest.fixture(scope="module")
def quantized():
    """The embedded model in int8."""
    samples = np.load(demo.calibration_path())["x"][:8]
    return tvm_qplugin.quantize(demo.model_path(), calibration=[sample[None] for sample in samples])


def small(model) -> Path:
    return model("one", 16, 24)


def test_kernels_of_padded_and_fused_layers_are_right(quantized, tmp_path):
    report = tune(quantized, trials=2, database=tmp_path / "db.jsonl")
    calls = [status.task.call for status in report.tasks]
    assert any(call.params.get("in_halo") for call in calls) and any(len(call.args) == 5 for call in calls)
    assert [(status.wrong, status.failed) for status in report.tasks] == [(0, 0)] * len(calls)


@pytest.mark.parametrize("reduce_range", [False, True])
def test_random_weights_keep_to_the_instruction_of_the_task(reduce_range):
    recipe = Recipe(reduce_range=reduce_range)
    module = tvm_qplugin.quantize(demo.model_path(), calibration=demo.calibration()[:4], recipe=recipe)
    profile = find_profile("x86-64-v3")
    target, found = tvm_target(profile), set()
    for task in tasks_of(module, profile):
        job = Job.of(task.call, task.rule, "", None, task.tunable.isa)
        assert tunable_of(job.rule, call_of(job), target).isa == job.isa
        found.add(job.isa)
    assert found == {"avx2", "avx2_pairs"}


def test_wrong_and_crashing_kernels_are_never_recorded(model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", str(HERE))  # of the workers
    is_wrong = import_module("wrong_rule").is_wrong
    profile = replace(HOST, tunables=("wrong_rule:conv",))
    path = tmp_path / "db.jsonl"
    (status,) = tune(small(model), target=profile, trials=20, database=path).tasks
    assert status.wrong > 3 and status.failed == 1 and status.problem
    recorded = [record.knobs for record in Database(path).records if record.role != "final"]
    assert len(recorded) + status.wrong + status.failed == 20
    default, crashing, *_ = status.task.tunable.suggestions()
    assert crashing not in recorded
    assert not [knobs for knobs in recorded if knobs and knobs != default and is_wrong(knobs)]
    assert status.knobs is None or not is_wrong(status.knobs)


def test_the_same_call_goes_on_and_then_keeps(model, tmp_path):
    path, seen = tmp_path / "db.jsonl", list[TaskStatus]()
    (first,) = tune(small(model), trials=4, database=path).tasks
    (second,) = tune(small(model), trials=9, database=path, progress=seen.append).tasks
    (third,) = tune(small(model), trials=9, database=path).tasks
    assert (first.stage, second.stage, third.stage) == ("done", "done", "kept")
    assert (first.trials, second.trials, third.trials) == (4, 9, 9)
    assert Counter(status.stage for status in seen) == {"search": 5, "final": 1, "done": 1}
    trials = [canonical(r.knobs) for r in Database(path).records if r.role != "final"]
    assert len(trials) == len(set(trials)) == 9
    assert third.seconds == second.seconds


def test_models_share_the_records_of_equal_shapes(model, tmp_path):
    path = tmp_path / "db.jsonl"
    tune(model("first", 16, 24, 8), trials=2, database=path)
    before = Database(path).records
    statuses = tune(model("second", 16, 24, 32), trials=2, database=path, only="second").tasks
    stages = {status.task.layers[0]: status.stage for status in statuses}
    assert sorted(stages.values()) == ["done", "kept"]
    (kept,) = [status for status in statuses if status.stage == "kept"]
    assert kept.task.key in {record.task for record in before}
    new = Database(path).records[len(before) :]
    assert new and kept.task.key not in {record.task for record in new}


def test_only_some_tasks(model, tmp_path):
    path = model("net", 16, 24, 8)
    (status,) = tune(path, trials=1, only=r"8x8x24 -> 8x8x8\b", database=tmp_path / "db").tasks
    assert status.task.label == "fconv2d 8x8x24 -> 8x8x8, 3x3"
    with pytest.raises(InputError, match="fits none of the 2 tasks"):
        tune(path, only="absent", database=tmp_path / "db")
    with pytest.raises(InputError, match="no regular expression"):
        tune(path, only="(", database=tmp_path / "db")


def test_a_budget_in_minutes_ends(model, tmp_path, monkeypatch):
    """By a clock that moves on by a second at every look; each task gets its share by its work."""
    ticks = count(time.monotonic())
    monkeypatch.setattr(tuning_run.time, "monotonic", lambda: float(next(ticks)))
    statuses = tune(model("net", 16, 48, 16), minutes=0.4, database=tmp_path / "db").tasks
    assert statuses and all(status.stage == "done" for status in statuses)
    assert all(1 <= status.trials < status.limit for status in statuses)
    assert sum(status.trials for status in statuses) <= 24


@pytest.mark.parametrize("wrong", [{"trials": 0}, {"minutes": 0.0}])
def test_a_budget_must_be_positive(model, wrong):
    with pytest.raises(InputError, match="expected at least 1 and more than 0"):
        tune(small(model), **wrong)


def other_settings(tasks: list[TuningTask]) -> list[Record]:
    """For each task an outcome that is not what the rule chooses."""
    records = []
    for task in tasks:
        default = task.tunable.default()
        knobs = next((k for k in reversed(valid_settings(task.tunable)) if k != default), None)
        if knobs is not None:
            records.append(Record(task.key, "final", knobs, 1e-6, CPU, 1, 2e-6, 9))
    return records


def test_build_applies_records_and_stays_exact(quantized, tmp_path):
    path, tasks = tmp_path / "db.jsonl", tasks_of(quantized, HOST)
    database = Database(path)
    for record in (records := other_settings(tasks)):
        database.append(record)
    covered = sum(len(task.layers) for task in tasks if task.key in {record.task for record in records})
    tuned = tvm_qplugin.build(quantized, database=path, merge=False)
    assert tuned.manifest.target["tuned_kernels"] == covered > 5
    plain = tvm_qplugin.build(quantized, database="none", merge=False)
    assert plain.manifest.target["tuned_kernels"] == 0
    for seed in range(3):
        x = np.random.default_rng(seed).uniform(0, 16, (1, 1, 8, 8)).astype("float32")
        np.testing.assert_array_equal(tuned.run(x)[0], plain.run(x)[0])


def test_applied_records_change_the_kernels(quantized, tmp_path):
    path = tmp_path / "db.jsonl"
    for record in other_settings(tasks_of(quantized, HOST)):
        Database(path).append(record)
    sources = [compile_module(quantized, database=name, merge=False)[1].script() for name in (path, "none")]
    assert sources[0] != sources[1]


def test_the_users_own_database_is_read_and_the_named_one_comes_first(quantized, tmp_path, monkeypatch):
    tasks = tasks_of(quantized, HOST)
    (record, *_) = other_settings(tasks)
    calls = len(next(task for task in tasks if task.key == record.task).layers)
    monkeypatch.setattr("tvm_qplugin.recorded.SHIPPED", tmp_path / "nothing")
    Database(tmp_path / "user.jsonl").append(record)
    Database(tmp_path / "named.jsonl").append(replace(record, knobs=None))
    assert tuned_calls(compile_module(quantized, merge=False)[1]) == calls
    assert tuned_calls(compile_module(quantized, database=tmp_path / "named.jsonl", merge=False)[1]) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, task=r.task.replace('"isa":"', '"isa":"other')),
        lambda r: replace(r, knobs={"unknown": 1}),
        lambda r: replace(r, knobs={**(r.knobs or {}), next(iter(r.knobs or {})): 99}),
    ],
    ids=["another instruction set", "other knobs", "an invalid value"],
)
def test_records_that_do_not_fit_are_ignored(quantized, tmp_path, monkeypatch, change):
    monkeypatch.setattr("tvm_qplugin.recorded.SHIPPED", tmp_path / "nothing")
    for record in other_settings(tasks_of(quantized, HOST)):
        Database(tmp_path / "db").append(change(record))
    assert tuned_calls(compile_module(quantized, database=tmp_path / "db", merge=False)[1]) == 0


def test_a_named_database_must_exist(quantized, tmp_path):
    with pytest.raises(DatabaseError, match=r"does not exist: give a file that `tvm-qplugin tune` wrote"):
        compile_module(quantized, database=tmp_path / "absent")


TUNING = """
import json, sys
from tvm_qplugin.tuner import tune
def show(status):
    print(json.dumps([status.stage, status.trials]), flush=True)
if __name__ == "__main__":
    tune(sys.argv[1], trials=int(sys.argv[3]), database=sys.argv[2], progress=show)
"""


@pytest.mark.parametrize(
    ("kills", "channels", "total"), [(3, 64, 24), pytest.param(20, 128, 130, marks=pytest.mark.slow)]
)
def test_kills_lose_no_record_and_leave_no_process(model, tmp_path, kills, channels, total):
    path, rng = tmp_path / "db.jsonl", random.Random(1)
    command = [sys.executable, "-c", TUNING, str(model("kills", 16, channels)), str(path), str(total)]
    reported = 0
    for _ in range(kills):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(rng.randrange(1, 4)):
                reported = max(reported, json.loads(process.stdout.readline())[1])
            time.sleep(rng.random() * 0.2)
            workers = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            rest = [json.loads(line) for line in process.stdout if line.endswith("\n")]
            reported = max([reported, *(trials for _, trials in rest)])
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
        assert len(Database(path).measured(_only_task(path), CPU, 1)) >= reported
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    records = Database(path).records
    trials = [canonical(record.knobs) for record in records if record.role != "final"]
    assert len(trials) == len(set(trials)) == total
    assert [record.role for record in records].count("final") == 1


def _only_task(path: Path) -> str:
    (task,) = {record.task for record in Database(path).records}
    return task
