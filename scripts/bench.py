"""Time our int8 artifacts against other runtimes on the same nets, in one run.

python scripts/bench.py [MODEL ...] [--threads 1 2] [--rounds 7] [--json FILE]. Every contestant lives in a
process of its own, pinned to as many cores as it has threads, and sleeps while another one works. Rounds are
interleaved (ours, peer, ours, peer ...), so that what disturbs the machine disturbs all. Ratios are
peer / ours: above 1 we are faster. Exit code 1 when a limit of the acceptance table is missed or a model
fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import real_models
from _contestants import CONTESTANTS, OURS
from real_models import MODELS, RealModel
from rich.console import Console
from rich.table import Table

from tvm_qplugin.measure import Measurement

# (model, peer, threads): our time may be at most this many times the peer's
LIMITS = {("mobilenet_v2_1.0_224", "LiteRT int8", 1): 1.3}
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Result:
    """Milliseconds of one contestant: median and minimum of every round."""

    model: str
    threads: int
    contestant: str
    medians: list[float]
    minima: list[float]

    @property
    def median(self) -> float:
        """The median of the rounds' medians."""
        return statistics.median(self.medians)

    @property
    def least(self) -> float:
        """The fastest run of all."""
        return min(self.minima)

    def over(self, ours: Result) -> list[float]:
        """Our advantage, round by round."""
        return [peer / own for peer, own in zip(self.medians, ours.medians, strict=True)]


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


def _live(pipe: Connection, name: str, contestant: str, folder: Path, threads: int, cores: set[int]) -> None:
    """A contestant's process: set up, then answer every (warm-up, seconds) with a measurement."""
    os.sched_setaffinity(0, cores)
    try:
        rounds = CONTESTANTS[contestant].start(MODELS[name], folder, threads)
        pipe.send(None)
        while (wish := pipe.recv()) is not None:
            pipe.send(rounds(*wish))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


@contextmanager
def _alive(name: str, contestant: str, folder: Path, threads: int) -> Iterator[Connection]:
    """A contestant's process, ready to be asked."""
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    here, there = _spawn.Pipe()
    process = _spawn.Process(target=_live, args=(there, name, contestant, folder, threads, set(cores)))
    process.start()
    there.close()
    try:
        _answer(here, contestant)
        yield here
        here.send(None)
    finally:
        here.close()
        process.join(10)
        process.kill()


def _answer(pipe: Connection, contestant: str) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        answer = "the process died"
    if isinstance(answer, str):
        raise RuntimeError(f"{contestant}: {answer}")
    return answer


def _prepare(name: str, contestant: str, folder: Path) -> None:
    prepare = CONTESTANTS[contestant].prepare
    if prepare is not None:
        prepare(MODELS[name], folder)


def race(
    name: str, contestants: list[str], threads: int, folder: Path, args: argparse.Namespace
) -> list[Result]:
    """Interleaved rounds of all contestants on one model."""
    found: dict[str, list[Measurement]] = {contestant: [] for contestant in contestants}
    with ExitStack() as stack:
        pipes = {c: stack.enter_context(_alive(name, c, folder, threads)) for c in contestants}
        for _ in range(args.rounds):
            for contestant, pipe in pipes.items():
                pipe.send((args.warmup, args.seconds))
                found[contestant].append(_answer(pipe, contestant))
                time.sleep(0.02)  # the thread pools spin for a few milliseconds before they sleep
    return [
        Result(name, threads, c, [m.median_ms for m in rounds], [m.min_ms for m in rounds])
        for c, rounds in found.items()
    ]


def _table(results: list[Result]) -> Table:
    table = Table(title=f"{results[0].model}, {results[0].threads} thread{'s' * (results[0].threads > 1)}")
    for heading in ("", "median ms", "min ms", "peer / ours", "over the rounds", "of the minima"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    ours = next(r for r in results if r.contestant == OURS)
    for result in results:
        ratios = result.over(ours)
        own = result is ours
        table.add_row(
            result.contestant,
            f"{result.median:.4f}",
            f"{result.least:.4f}",
            "" if own else f"{statistics.median(ratios):.2f}",
            "" if own else f"{min(ratios):.2f} .. {max(ratios):.2f}",
            "" if own else f"{result.least / ours.least:.2f}",
        )
    return table


def missed(results: list[Result]) -> list[str]:
    """The limits that these results of one model and number of threads break."""
    ours = next(r for r in results if r.contestant == OURS)
    found = []
    for result in results:
        limit = LIMITS.get((result.model, result.contestant, result.threads))
        slower = 1 / statistics.median(result.over(ours))
        if limit is not None and slower > limit:
            found.append(f"{result.model}: {slower:.2f} x the time of {result.contestant} (limit {limit})")
    return found


def _entrants(model: RealModel, wanted: list[str], console: Console) -> list[str]:
    """The contestants that can run this model; says why the others cannot."""
    able = []
    for contestant in dict.fromkeys((OURS, *wanted)):
        reason = CONTESTANTS[contestant].obstacle(model)
        if reason:
            console.print(f"{model.name}: without {contestant}: {reason}", highlight=False, markup=False)
        else:
            able.append(contestant)
    return able


def bench(model: RealModel, args: argparse.Namespace, console: Console) -> list[list[Result]]:
    """All races of one model, printed as they end."""
    entrants, races = _entrants(model, args.contestants, console), []
    with tempfile.TemporaryDirectory(prefix="qplugin-bench-") as directory:
        folder = Path(directory)
        with ProcessPoolExecutor(1, mp_context=_spawn) as pool:
            for contestant in entrants:
                pool.submit(_prepare, model.name, contestant, folder).result()
        for threads in args.threads:
            races.append(race(model.name, entrants, threads, folder, args))
            console.print(_table(races[-1]))
    return races


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: those with an int8 .tflite")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each round (default 0.3)")
    parser.add_argument("--warmup", type=float, default=0.1, help="seconds before each round (default 0.1)")
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    args = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    if not all(1 <= threads <= cores for threads in args.threads) or args.rounds < 1:
        parser.error(f"--threads: 1 to {cores}, the cores of this machine; --rounds: 1 and more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Race on the models and print tables; 1 if a limit is missed or a model fails."""
    args = arguments(argv)
    models = real_models.chosen(args.models)
    if not args.models:
        models = [model for model in models if model.tflite]
    real_models.require_data(models)
    console, machine = Console(), cpu()
    if not console.is_terminal:
        console.width = 110
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['features'])}", highlight=False
    )
    if machine["load"] > 0.5:
        console.print(
            f"load {machine['load']:.2f}: other processes are running; trust the ratios, not the times"
        )
    races, broken = [], []
    for model in models:
        try:
            races += bench(model, args, console)
        except Exception as error:
            broken.append(f"{model.name}: {type(error).__name__}: {str(error).strip()}")
    if args.json is not None:
        data = {**machine, "results": [asdict(result) for results in races for result in results]}
        args.json.write_text(json.dumps(data, indent=1))
    broken += [f"limit missed: {text}" for results in races for text in missed(results)]
    for text in broken:
        console.print(text, markup=False)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
