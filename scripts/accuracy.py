"""Take the real models through the whole way and compare int8 with float: accuracy, size, exactness.

python scripts/accuracy.py [MODEL ...] [--samples N] [--exact 50] [--json FILE]. Each model runs in a
process of its own; a row is printed when it is done, and kept in FILE, so that an interrupted run goes on
where it was. Exit code 1 when a limit of the acceptance table is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import real_models
from _metrics import METRICS, Comparison
from _rows import HEADERS, Kept, Options, Row, as_markdown, as_table, cells
from real_models import MODELS, RealModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tvm.ir import IRModule

from tvm_qplugin import frontend
from tvm_qplugin.api import quantize
from tvm_qplugin.artifact import Artifact
from tvm_qplugin.builder import Runner, build, compile_function
from tvm_qplugin.core.manifest import OperatorInfo
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.measure import peak_bytes, reset_peak
from tvm_qplugin.samples import fit_sample, inputs_of
from tvm_qplugin.simulator import Simulator


def evaluate(name: str, options: Options) -> Row:
    """Take one model through the whole way; runs in a process of its own."""
    model = MODELS[name]
    try:
        module = frontend.load(model.path)
        row, quantized, artifact = _prepare(model, options)
        row = _compare(row, model, compile_function(module), artifact)
        return _against_oracle(row, model, quantized, artifact)
    except Exception as error:
        text = str(error).strip() or "no message"
        return Row(name, options, error=f"{type(error).__name__}: {text.splitlines()[-1]}")


def _prepare(model: RealModel, options: Options) -> tuple[Row, IRModule, Artifact]:
    reset_peak()
    start = time.perf_counter()
    quantized = quantize(
        model.path,
        recipe=options.recipe,
        calibration=model.calibration,
        limit=options.calibration,
        accuracy=options.accuracy,
        progress=True,
    )
    middle = time.perf_counter()
    artifact = build(quantized)
    end, peak = time.perf_counter(), peak_bytes()
    manifest = artifact.manifest
    row = Row(
        model.name,
        options,
        quantize_seconds=middle - start,
        build_seconds=end - middle,
        peak_bytes=peak,
        artifact_bytes=_saved_bytes(artifact),
        weight_bytes=manifest.sizes["weights"],
        float_bytes=model.path.stat().st_size,
        calibrated=sum(1 for _ in islice(model.calibration, options.calibration)),
        integer_operators=sum(op.integer for op in manifest.operators),
        islands={op.name: f"{op.op}: {op.reason}" for op in _judged(artifact) if not op.integer},
    )
    return row, quantized, artifact


def _judged(artifact: Artifact) -> list[OperatorInfo]:
    """The operators that a recipe is to make integer: in schemes that give floats, those with weights."""
    operators, recipe = artifact.manifest.operators, artifact.manifest.recipe
    whole = Recipe.from_json(recipe).integer
    return [op for op in operators if whole or op.op in ("conv2d", "dense")]


def _saved_bytes(artifact: Artifact) -> int:
    """What the artifact takes on disk, with its manifest."""
    with tempfile.TemporaryDirectory() as folder:
        saved = artifact.save(Path(folder) / "artifact")
        return sum(path.stat().st_size for path in saved.iterdir())


def _compare(row: Row, model: RealModel, run: Runner, artifact: Artifact) -> Row:
    """Float and int8 on the same samples of the dev set."""
    both = Comparison(METRICS[model.metric])
    shape = artifact.manifest.inputs[0].shape
    with _progress("compare with float", row.options.samples) as advance:
        for sample, target in model.evaluation(row.options.samples):
            given = sample.reshape(shape)
            both.add(run([given])[0], artifact.run(given)[0], target)
            advance()
    return replace(
        row,
        samples=both.samples,
        float_metric=both.float_metric.value(),
        int8_metric=both.int8_metric.value(),
        drop=both.drop(),
        agreement=both.agreement(),
        sqnr=both.sqnr(),
    )


def _against_oracle(row: Row, model: RealModel, quantized: IRModule, artifact: Artifact) -> Row:
    """Count the elements in which ``model.so`` differs from the numpy oracle."""
    oracle, inputs = Simulator(quantized), inputs_of(quantized)
    differing = compared = count = 0
    with _progress("compare with the oracle", row.options.exact) as advance:
        for index, (sample, _) in enumerate(model.evaluation(row.options.exact)):
            arrays = fit_sample(index, sample, inputs)
            for wanted, found in zip(oracle.run(*arrays), artifact.run(*arrays), strict=True):
                differing, compared = differing + int((wanted != found).sum()), compared + wanted.size
            count += 1
            advance()
    return replace(row, differing=differing, compared=compared, exact_samples=count)


@contextmanager
def _progress(label: str, total: int | None) -> Iterator[Callable[[], object]]:
    """A bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)


def in_process(name: str, options: Options) -> Row:
    """``evaluate`` in a fresh process: its peak memory is its own, and a crash is only one row's."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(evaluate, name, options).result()
    except BrokenProcessPool:
        return Row(name, options, error="the process died")


def report(row: Row, console: Console) -> None:
    """One finished model: its row, its limits, its islands."""
    console.print(f"[bold]{row.model}[/bold]", highlight=False)
    if not row.error:
        pairs = zip(HEADERS[1:-1], cells(row)[1:-1], strict=True)
        console.print("  " + ", ".join(f"{k} {v}" for k, v in pairs if v), highlight=False)
    for name, why in row.islands.items():
        console.print(f"  float: {name}: {why}", markup=False, highlight=False)
    for check in row.checks():
        mark = "[green]ok[/green]  " if check.held else "[red]MISS[/red]"
        console.print(f"  {mark} {check.name}: {check.found} ({check.limit})", highlight=False)


def _console() -> Console:
    """Lines are folded only by the terminal; in a file the table gets the room that it needs."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    return console


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: all of {', '.join(MODELS)}")
    parser.add_argument("--samples", type=int, help="evaluate only the first N samples of a dev set")
    parser.add_argument("--exact", type=int, default=50, help="samples to compare with the numpy oracle")
    parser.add_argument("--calibration", type=int, help="calibrate with at most N samples")
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--accuracy", choices=["best"], help="win accuracy back (takes minutes a model)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep rows here and go on from them")
    parser.add_argument("--fresh", action="store_true", help="measure again what FILE holds")
    parser.add_argument("--markdown", action="store_true", help="print the final table in Markdown")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate the models and print the table; 1 if a limit is missed."""
    args = arguments(argv)
    models = real_models.chosen(args.models)
    real_models.require_data(models)
    options = Options(args.samples, args.exact, args.calibration, args.recipe, args.accuracy)
    kept, console, rows = Kept(args.json, args.fresh), _console(), []
    for model in models:
        row = kept.find(model.name, options)
        if row is None:
            row = in_process(model.name, options)
            kept.add(row)
        rows.append(row)
        report(row, console)
    console.print(as_markdown(rows) if args.markdown else as_table(rows), markup=False)
    missed = sum(not check.held for row in rows for check in row.checks())
    console.print(f"{missed} limits missed" if missed else "all limits held")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
