"""The tuning database: one line a record, whole after any kill."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tvm_qplugin.core.errors import DatabaseError
from tvm_qplugin.core.records import Database, Record
from tvm_qplugin.core.tunable import canonical

TASK = canonical({"kernel": "qconv2d", "isa": "vnni512"})
DEFAULT = Record(TASK, "default", {"nt": 4, "order": "om"}, 2e-6, "znver4")
TRIAL = replace(DEFAULT, role="trial", knobs={"nt": 2, "order": "mo"}, seconds=1e-6)
FINAL = replace(TRIAL, role="final", default_seconds=2e-6, trials=64)


def written(path: Path, *records: Record) -> Database:
    database = Database(path)
    for record in records:
        database.append(record)
    database.close()
    return Database(path)


def test_round_trip(tmp_path):
    stands = replace(FINAL, knobs=None)
    database = written(tmp_path / "new" / "db.jsonl", DEFAULT, TRIAL, FINAL, stands)
    assert database.records == [DEFAULT, TRIAL, FINAL, stands]
    assert not database.torn


def test_a_missing_file_is_empty(tmp_path):
    assert Database(tmp_path / "none.jsonl").records == []


@pytest.mark.parametrize("cut", [1, 20, -1], ids=["one byte", "half", "all but the end"])
def test_a_torn_last_line_is_dropped_and_overwritten(tmp_path, cut):
    path = tmp_path / "db.jsonl"
    written(path, DEFAULT)
    with path.open("ab") as file:
        file.write((TRIAL.dumps().encode() + b"\n")[:cut])
    database = Database(path)
    assert database.torn and database.records == [DEFAULT]
    database.append(FINAL)
    again = Database(path)
    assert again.records == [DEFAULT, FINAL] and not again.torn


@pytest.mark.parametrize(
    "line",
    [
        b"no json",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"format": 1}',
        FINAL.dumps().replace('"format": 1', '"format": 2').encode(),
        TRIAL.dumps().replace("1e-06", '"fast"').encode(),
        TRIAL.dumps().replace('"trial"', '"other"').encode(),
        TRIAL.dumps().replace('"nt": 2', '"nt": null').encode(),
        TRIAL.dumps().replace('"threads"', '"thread"').encode(),
    ],
)
def test_any_other_line_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "db.jsonl"
    path.write_bytes(DEFAULT.dumps().encode() + b"\n" + line + b"\n")
    with pytest.raises(DatabaseError, match=r"db\.jsonl, line 2: not a tuning record.*delete this line"):
        Database(path)


def test_a_directory_is_an_error(tmp_path):
    with pytest.raises(DatabaseError, match="cannot be read"):
        Database(tmp_path)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "db.jsonl"
    database = written(path, DEFAULT)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:30]))
    with pytest.raises(DatabaseError, match=r"could not be written \(the disk is full"):
        database.append(TRIAL)
    monkeypatch.undo()
    assert not Database(path).torn and Database(path).records == [DEFAULT]


def test_the_last_measurement_of_a_setting_counts(tmp_path):
    again = replace(TRIAL, seconds=3e-6)
    elsewhere = [replace(TRIAL, cpu="icelake-server"), replace(TRIAL, threads=2)]
    database = written(tmp_path / "db", DEFAULT, TRIAL, *elsewhere, TRIAL, again, FINAL)
    assert database.measured(TASK, "znver4", 1) == {
        canonical(DEFAULT.knobs): DEFAULT,
        canonical(TRIAL.knobs): again,
    }


def test_the_last_outcome_is_chosen(tmp_path):
    other = replace(FINAL, knobs={"nt": 1, "order": "om"})
    assert written(tmp_path / "a", DEFAULT, TRIAL, FINAL, other).choice(TASK, "znver4") == other
    stands = replace(FINAL, knobs=None)
    assert written(tmp_path / "b", DEFAULT, TRIAL, FINAL, stands).choice(TASK, "znver4") == stands


def test_without_an_outcome_a_clearly_faster_trial_is_chosen(tmp_path):
    assert written(tmp_path / "a", DEFAULT, TRIAL).choice(TASK, "znver4") == TRIAL
    close = replace(TRIAL, seconds=0.97 * DEFAULT.seconds)
    assert written(tmp_path / "b", DEFAULT, close).choice(TASK, "znver4") is None
    assert written(tmp_path / "c", TRIAL).choice(TASK, "znver4") is None


def test_records_of_this_cpu_come_first(tmp_path):
    elsewhere = replace(FINAL, knobs={"nt": 1, "order": "om"}, cpu="icelake-server")
    database = written(tmp_path / "db", FINAL, elsewhere)
    assert database.choice(TASK, "znver4") == FINAL
    assert database.choice(TASK, "alderlake") == elsewhere


APPENDING = """
import sys
from tvm_qplugin.core.records import Database, Record
database = Database(sys.argv[1])
for number in range(len(database.records), 1_000_000):
    database.append(Record('{"kernel":"qdense"}', "trial", {"number": number}, 1e-6, "cpu"))
    print(number, flush=True)
"""


def test_twenty_kills_lose_no_record(tmp_path):
    path, rng = tmp_path / "db.jsonl", random.Random(0)
    reported: list[int] = []
    for _ in range(20):
        command = [sys.executable, "-c", APPENDING, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            wanted = rng.randrange(1, 60)
            assert process.stdout is not None
            reported += [int(process.stdout.readline()) for _ in range(wanted)]
            process.send_signal(signal.SIGKILL)
            reported += [int(line) for line in process.stdout if line.endswith("\n")]
    found = [record.knobs["number"] for record in Database(path).records if record.knobs]
    assert len(reported) > 400
    assert set(reported) <= set(found) and len(found) == len(set(found))
    for line in path.read_bytes().splitlines():
        json.loads(line)
