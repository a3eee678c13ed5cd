"""The command ``tune``: tables, JSON, what it refuses, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from tvm_qplugin import cli
from tvm_qplugin.core.records import Database


def call(*args: object):
    return CliRunner().invoke(cli.app, ["tune", *map(str, args)], env={"COLUMNS": "200"})


def test_list(model):
    path = model("net", 16, 24, 8)
    result = call(path, "--list", "--json")
    assert result.exit_code == 0, result.stderr
    tasks = json.loads(result.stdout)["tasks"]
    assert [task["label"] for task in tasks] == [
        "fconv2d 8x8x16 -> 8x8x24, 3x3",
        "fconv2d 8x8x24 -> 8x8x8, 3x3",
    ]
    assert [task["macs"] for task in tasks] == [64 * 24 * 16 * 9, 64 * 8 * 24 * 9]
    table = call(path, "--list", "--only", "-> 8x8x8").stdout
    assert "8x8x24 -> 8x8x8" in table and "8x8x16" not in table


def test_tune_and_build(model, tmp_path):
    path, database = model("net", 16, 24), tmp_path / "db.jsonl"
    result = call(path, "--trials", 2, "--database", database, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    (task,) = data["tasks"]
    assert (data["database"], task["trials"], task["stage"]) == (str(database), 2, "done")
    assert task["seconds"] <= task["default_seconds"] and task["wrong"] == task["failed"] == 0
    assert "GMAC/s" in result.stderr and "x the default" in result.stderr
    again = call(path, "--trials", 2, "--database", database)
    assert "(tuned before)" in again.stderr and "fconv2d" in again.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "absent"), "fits none of the 1 tasks"),
        (("--threads", "9999"), "expected 1 to"),
        (("--rpc", "nowhere"), "expected HOST:PORT,KEY"),
        (("--rpc", "127.0.0.1:1,board"), "no RPC tracker answers at 127.0.0.1:1"),
        (("--target", "edgetpu"), "runs .tflite files"),
    ],
)
def test_refused(model, options, message):
    result = call(model("net", 16, 24), *options)
    assert result.exit_code == 1
    assert message in result.stderr


def test_an_unreadable_database_is_named(model, tmp_path):
    (tmp_path / "db").write_text("something else\n")
    result = call(model("net", 16, 24), "--database", tmp_path / "db")
    assert result.exit_code == 1
    assert "db, line 1: not a tuning record" in result.stderr


def test_a_torn_record_is_reported(model, tmp_path):
    path, database = model("net", 16, 24), tmp_path / "db"
    call(path, "--trials", 1, "--database", database)
    with database.open("a") as file:
        file.write('{"format": 1, "ta')
    assert "dropped a last record" in call(path, "--trials", 1, "--database", database).stderr


def test_ctrl_c_keeps_all_records(model, tmp_path):
    database = tmp_path / "db"
    command = [sys.executable, "-m", "tvm_qplugin", "tune", str(model("net", 16, 24, 8))]
    command += ["--trials", "500", "--database", str(database)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None and (not database.exists() or database.read_bytes().count(b"\n") < 5):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "All records so far are kept" in messages and "Traceback" not in messages
    found = Database(database)
    assert len(found.records) >= 5 and not found.torn
