"""Calibration by several processes: the table of one, whatever the observers; errors; Ray."""

from __future__ import annotations

import importlib.util
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin import parallel
from tvm_qplugin.calibrator import calibrate, model_hash
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.parallel import CHUNK, Work, calibrate_parallel, observe_piece

RNG = np.random.default_rng(0)
SAMPLES = list(RNG.normal(size=(3 * CHUNK + 3, 1, 4)).astype("float32"))
KINDS = {"x": "least_mse", "a": "percentile", "b": "min_max"}


@I.ir_module
class Model:
    @R.function
    def main(x: R.Tensor((1, 4), "float32")):
        with R.dataflow():
            a = R.nn.relu(x)
            b = R.add(a, R.const([[1.0, 2.0, 3.0, 4.0]], "float32"))
            R.output(b)
        return b


def test_processes_give_the_table_of_one() -> None:
    found = calibrate_parallel(Model, iter(SAMPLES), names=list(KINDS), observer=KINDS, workers=2)
    assert found == calibrate(Model, SAMPLES, names=list(KINDS), observer=KINDS)
    assert found.samples == len(SAMPLES)
    bad = [*SAMPLES[: 2 * CHUNK], np.float32([1, np.nan, 0, 0])]
    with pytest.raises(CalibrationError, match=f"sample {2 * CHUNK}, input 'x': it holds nan"):
        calibrate_parallel(Model, bad, names=["x"], workers=2)


class _Now:
    """Runs at once what a pool would."""

    def __init__(self, work: Work) -> None:
        self.work, self.pieces = work, list[tuple[int, int]]()

    def __call__(self, start: int, piece: list[Any]) -> Any:
        self.pieces.append((start, len(piece)))
        answer: Any = parallel.Future()
        answer.set_result(observe_piece(self.work, start, piece))
        return answer


def test_samples_that_are_held_back() -> None:
    work = Work(tvm.ir.save_json(Model), model_hash(Model), (("x", "min_max"),))
    now, seen = _Now(work), list[Any]()

    def each(sample: Any) -> bool:
        seen.append(sample)
        return len(seen) % 4 == 0

    table = parallel._merged(now, parallel._pieces(SAMPLES, 14, each, lambda: None), 2)
    assert len(seen) == 14 and now.pieces == [(0, 3), (4, 3), (8, 3), (12, 2)]
    assert table == calibrate(Model, [s for i, s in enumerate(SAMPLES[:14]) if i % 4 != 3], names=["x"])


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CalibrationError, match="workers 0"):
        calibrate_parallel(Model, SAMPLES, names=["x"], workers=0)
    with pytest.raises(CalibrationError, match="'median' is unknown"):
        calibrate_parallel(Model, SAMPLES, names=["x"], observer="median")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CalibrationError, match=r"needs Ray, which is not installed: pip install"):
        calibrate_parallel(Model, SAMPLES, names=["x"], cluster="local")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests were started in the background of a shell."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def test_ctrl_c_is_not_for_the_processes(interruptible: None) -> None:
    blocked = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    reached = False
    with pytest.raises(KeyboardInterrupt), parallel._sheltered():
        signal.raise_signal(signal.SIGINT)
        found = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=True)
        reached = True
    assert reached and found.stdout == "True\n"


def test_processes_end_with_what_they_work_for() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt), parallel._processes(Work("", "", ()), 1) as submit:
        submit(0, [])
        (started,) = set(multiprocessing.active_children()) - before
        raise KeyboardInterrupt
    started.join(10)
    assert started.exitcode == -signal.SIGTERM


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="extra 'distributed' (Ray) is not installed"
)
def test_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    found = calibrate_parallel(Model, SAMPLES, names=list(KINDS), observer=KINDS, cluster="local")
    assert found == calibrate(Model, SAMPLES, names=list(KINDS), observer=KINDS)
    with pytest.raises(CalibrationError, match="sample 0, input 'x': it holds nan"):
        calibrate_parallel(Model, [SAMPLES[0] * np.nan], names=["x"], cluster="local")
