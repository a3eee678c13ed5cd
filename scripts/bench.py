"""Time our int8 artifacts against other runtimes on the same nets, in one run.

python scripts/bench.py [MODEL ...] [--threads 1 2] [--rounds 7] [--json FILE] [--plot FILE.png]. Models: the
zoo's networks (model_zoo.py) and the real ones. Every contestant lives in a process of its own, pinned to as
many cores as it has threads, and sleeps while another one works. Rounds are interleaved (ours, peer, ours,
peer ...), so that what disturbs the machine disturbs all. Ratios are peer / ours: above 1 we are faster.
int16x8 and dynamic race only where they are named: --contestants "ours int16x8" "LiteRT int16x8" ...
Who cannot run is named with the reason. FILE keeps finished races: start the same command again to go on.
Exit code 1 when a limit of the acceptance table is missed or a contestant fails, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import _bench_models
from _bench_models import Model
from _bench_plot import plot
from _bench_rows import OURS, Kept, Options, Race, Result, as_summary, as_table
from _contestants import CONTESTANTS, USUAL
from rich.console import Console

from tvm_qplugin.measure import Measurement, peak_bytes, reset_peak
from tvm_qplugin.store import read_manifest

PATIENCE = 1800  # seconds until a process that does not answer counts as dead
_spawn = multiprocessing.get_context("spawn")


def cpu() -> dict[str, Any]:
    """What is measured on: model of the CPU, cores, instruction sets that matter here, load."""
    entries = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in reversed(entries)}
    flags = facts.get("flags", facts.get("Features", "")).split()
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "asimddp", "i8mm")
    return {
        "cpu": facts.get("model name", "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "features": [flag for flag in wanted if flag in flags],
        "load": os.getloadavg()[0],
    }


def _measure_peak(pipe: Connection, threads: int) -> None:
    import _peak

    pipe.send(_peak.peak(threads))


def _make(pipe: Connection, model: Model, contestant: str, folder: Path) -> None:
    """Write a contestant's file."""
    entrant = CONTESTANTS[contestant]
    if entrant.make is not None:
        entrant.make(model, entrant.path(model, folder))
    pipe.send(entrant.size(model, folder))


def _live(
    pipe: Connection, model: Model, contestant: str, folder: Path, threads: int, cores: set[int]
) -> None:
    """Load, tell (milliseconds, bytes before, bytes at the peak), then answer (warm-up, seconds)."""
    os.sched_setaffinity(0, cores)
    entrant = CONTESTANTS[contestant]
    for module in entrant.modules:
        import_module(module)
    path = entrant.path(model, folder)
    reset_peak()
    before, start = peak_bytes(), time.perf_counter()
    rounds = entrant.start(path, threads)
    pipe.send((1e3 * (time.perf_counter() - start), before, peak_bytes()))
    while (wish := pipe.recv()) is not None:
        pipe.send(rounds(*wish))


def _work(task: Callable[..., None], pipe: Connection, *args: Any) -> None:
    """The body of a process: an error is sent as text."""
    os.environ["CI"] = "true"  # or OpenVINO and NNCF report each use to their makers
    try:
        task(pipe, *args)
    except (EOFError, BrokenPipeError):
        return
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {str(error).strip()}")


@contextmanager
def _process(task: Callable[..., None], *args: Any) -> Iterator[Connection]:
    """A process that is gone afterwards, and the pipe to it."""
    here, there = _spawn.Pipe()
    process = _spawn.Process(target=_work, args=(task, there, *args))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is the parent's
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join(2)
        process.kill()
        process.join()


def _answer(pipe: Connection) -> Any:
    """What a process sends; RuntimeError with the reason when it failed, died or hangs."""
    try:
        answer = pipe.recv() if pipe.poll(PATIENCE) else f"no answer in {PATIENCE} s"
    except (EOFError, OSError):
        answer = "the process died"
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return answer


@dataclass
class Runner:
    """A contestant at the start: its pipe, what loading cost, and its rounds so far."""

    pipe: Connection
    load_ms: float
    before: int
    peak: int
    rounds: list[Measurement] = field(default_factory=list)

    def go(self, options: Options) -> None:
        """Run one round."""
        self.pipe.send((options.warmup, options.seconds))
        self.rounds.append(_answer(self.pipe))

    def result(self, contestant: str, file_bytes: int) -> Result:
        """All rounds."""
        memory = max(self.peak, *(m.peak_bytes for m in self.rounds)) - self.before
        medians, minima = [m.median_ms for m in self.rounds], [m.min_ms for m in self.rounds]
        return Result(contestant, medians, minima, self.load_ms, memory, file_bytes)


def run_race(
    model: Model, sizes: Mapping[str, int], threads: int, folder: Path, options: Options
) -> tuple[list[Result], dict[str, str]]:
    """Interleaved rounds of all contestants (with the sizes of their files), and who failed, and why."""
    runners: dict[str, Runner] = {}
    failed: dict[str, str] = {}
    cores = set(sorted(os.sched_getaffinity(0))[-threads:])
    with ExitStack() as stack:
        for name in sizes:
            try:
                pipe = stack.enter_context(_process(_live, model, name, folder, threads, cores))
                runners[name] = Runner(pipe, *_answer(pipe))
            except RuntimeError as error:
                failed[name] = str(error)
        for _ in range(options.rounds):
            for name in list(runners):
                try:
                    runners[name].go(options)
                except (RuntimeError, OSError) as error:
                    failed[name] = str(error)
                    del runners[name]
                time.sleep(0.02)  # the thread pools spin for a few milliseconds before they sleep
        return [runner.result(name, sizes[name]) for name, runner in runners.items()], failed


def make_files(
    model: Model, contestants: Sequence[str], folder: Path
) -> tuple[dict[str, int], dict[str, str]]:
    """Let every contestant write its file: sizes in bytes, and who failed, and why."""
    sizes: dict[str, int] = {}
    failed: dict[str, str] = {}
    for name in contestants:
        try:
            with _process(_make, model, name, folder) as pipe:
                sizes[name] = _answer(pipe)
        except RuntimeError as error:
            failed[name] = str(error)
    return sizes, failed


def _macs(folder: Path) -> int:
    """Multiply-adds of the model, as our artifact counts them; 0 without it."""
    artifact = folder / CONTESTANTS[OURS].file
    return sum(op.macs for op in read_manifest(artifact).operators) if artifact.is_dir() else 0


def bench(
    model: Model, args: argparse.Namespace, kept: Kept, peaks: Mapping[int, float | None], console: Console
) -> list[Race]:
    """All races of one model, printed as they end; those that are kept are not run again."""
    wanted = dict.fromkeys((OURS, *args.contestants))
    obstacles = {name: CONTESTANTS[name].obstacle(model) for name in wanted}
    races = {n: kept.find(model.name, n, args.options, obstacles) for n in args.threads}
    with tempfile.TemporaryDirectory(prefix="qplugin-bench-") as directory:
        folder = Path(directory)
        able = [name for name, why in obstacles.items() if not why]
        sizes, failed = ({}, {}) if all(races.values()) else make_files(model, able, folder)
        absent = {name: why for name, why in obstacles.items() if why} | failed
        for threads in args.threads:
            if races[threads] is None:
                results, broken = run_race(model, sizes, threads, folder, args.options)
                facts = (_macs(folder), peaks.get(threads))
                races[threads] = Race(model.name, threads, args.options, *facts, results, absent | broken)
                kept.add(races[threads])
            console.print(as_table(races[threads]))
    return [race for race in races.values() if race is not None]


def failures(race: Race, obstacles: Mapping[str, str]) -> list[str]:
    """Who failed, as opposed to who cannot take part; and the limits that are missed."""
    where = f"{race.model}, {race.threads} thread{'s' * (race.threads > 1)}"
    found = [f"{where}: {n} failed: {why}" for n, why in race.absent.items() if obstacles.get(n) != why]
    return found + [f"limit missed: {text}" for text in race.missed()]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="or the beginning of a name; default: all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each round (default 0.3)")
    parser.add_argument("--warmup", type=float, default=0.1, help="seconds before each round (default 0.1)")
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(USUAL))
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the races here, and go on from there")
    parser.add_argument("--fresh", action="store_true", help="do not use the races that FILE holds")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios")
    parser.add_argument("--zoo", type=Path, default=_bench_models.ZOO_FOLDER, metavar="DIR")
    args = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    if not all(1 <= threads <= cores for threads in args.threads) or args.rounds < 1:
        parser.error(f"--threads: 1 to {cores}, the cores of this machine; --rounds: 1 and more")
    for path in (args.json, args.plot):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path.parent} does not exist: make the folder first")
    args.options = Options(args.rounds, args.seconds, args.warmup)
    return args


def _peaks(counts: Sequence[int]) -> dict[int, float | None]:
    found = {}
    for threads in counts:
        with _process(_measure_peak, threads) as pipe:
            found[threads] = _answer(pipe)
    return found


def _introduce(machine: Mapping[str, Any], peaks: Mapping[int, float | None], console: Console) -> str:
    text = f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['features'])}"
    console.print(text, highlight=False)
    for threads, value in peaks.items():
        figure = "unknown: no VNNI" if value is None else f"{value / 1e9:.0f} billion multiply-adds a second"
        console.print(f"int8 peak, {threads} thread{'s' * (threads > 1)}: {figure}", highlight=False)
    if machine["load"] > 0.5:
        console.print(
            f"load {machine['load']:.2f}: other processes are running; trust the ratios, not the times"
        )
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Race on the models, print tables and draw; 1 if a limit is missed or a contestant fails."""
    args = arguments(argv)
    models = _bench_models.chosen(args.models, args.zoo)
    machine, console = cpu(), Console()
    if not console.is_terminal:
        console.width = 140
    kept, races, broken = Kept(args.json, machine, args.fresh), [], []
    try:
        peaks = _peaks(args.threads)
        title = _introduce(machine, peaks, console)
        for model in models:
            found = bench(model, args, kept, peaks, console)
            races += found
            obstacles = {name: entrant.obstacle(model) for name, entrant in CONTESTANTS.items()}
            broken += [text for race in found for text in failures(race, obstacles)]
    except KeyboardInterrupt:
        hint = f"; the same command goes on from {args.json}" if args.json else ""
        console.print(f"interrupted after {len(races)} races{hint}", highlight=False)
        return 130
    console.print(as_summary(races))
    if args.plot is not None:
        plot(races, args.plot, title)
    for text in broken:
        console.print(text, markup=False, highlight=False)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
