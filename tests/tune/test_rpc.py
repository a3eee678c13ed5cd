"""Measuring on another device: a tracker and a server of TVM's, here on the same machine."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from tvm import rpc

from tvm_qplugin.core.errors import TargetError
from tvm_qplugin.core.records import Database
from tvm_qplugin.tuner import tune


@pytest.fixture(scope="module")
def tracker() -> Iterator[str]:
    """``HOST:PORT`` of a tracker that knows one device, ``board``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    tracking = ["tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(port)]
    tracking += ["--port-end", str(port + 1)]
    serving = ["tvm.exec.rpc_server", "--host", "127.0.0.1", "--tracker", address, "--key", "board"]
    started = [_start(tracking)]
    try:
        _until(lambda: socket.create_connection(("127.0.0.1", port), 1).close())
        started.append(_start(serving))
        _until(lambda: rpc.connect_tracker("127.0.0.1", port).summary()["server_info"][0])
        yield address
    finally:
        for process in started:
            for part in (*psutil.Process(process.pid).children(recursive=True), process):
                part.kill()
            process.wait()


def _start(module: list[str]) -> subprocess.Popen[bytes]:
    nowhere = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-m", *module], stdin=nowhere, stdout=nowhere, stderr=nowhere)


def _until(attempt) -> None:
    for _ in range(200):
        try:
            attempt()
            return
        except Exception:
            time.sleep(0.1)
    raise TimeoutError("the RPC tracker or server did not start")


def test_tuning_over_rpc(tracker, model, tmp_path):
    (status,) = tune(model("net", 16, 24), trials=3, rpc=f"{tracker},board", database=tmp_path / "db").tasks
    assert (status.stage, status.trials, status.wrong, status.failed) == ("done", 3, 0, 0), status.problem
    roles = [record.role for record in Database(tmp_path / "db").records]
    assert roles == ["default", "trial", "trial", "final"]


def test_an_unknown_device_is_refused(tracker, model):
    with pytest.raises(TargetError, match="knows no device 'other', only board"):
        tune(model("net", 16, 24), rpc=f"{tracker},other")
