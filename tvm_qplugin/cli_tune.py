"""The command ``tune``: measure kernels until they are as fast as this machine lets them be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tvm_qplugin import report
from tvm_qplugin.console import messages, say, step
from tvm_qplugin.inspection import read_module
from tvm_qplugin.outputs import check_file
from tvm_qplugin.report import Report
from tvm_qplugin.workflow import loading_options

if TYPE_CHECKING:
    from tvm_qplugin.tuner import TuningReport
    from tvm_qplugin.tuning_run import TaskStatus
    from tvm_qplugin.tuning_tasks import TuningTask

SETTLED = ("done", "kept")
Batch = Annotated[int | None, typer.Option(min=1, help="ONNX file: size of an unknown batch dimension.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=1,3,224,224",
        help="ONNX file: shape of an input whose shape is unknown.",
        show_default=False,
    ),
]


def tune(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Directory that quantize wrote, or an ONNX or .pt2 file, whose float kernels are tuned.",
            show_default=False,
        ),
    ],
    target: Annotated[str, typer.Option(help="Device to tune for: host, x86-64-v3, ...")] = "host",
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Kernels to try for each task.", show_default="64, unless --minutes"),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Time for all tasks.", show_default="no limit")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Only tasks with this in their label or layers' names."),
    ] = None,
    database: Annotated[
        Path | None, typer.Option(help="File for the records.", show_default="your own, which build reads")
    ] = None,
    rpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT,KEY", help="Measure on a device that this RPC tracker knows."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the kernels.")] = 1,
    list_tasks: Annotated[bool, typer.Option("--list", help="Show the tasks and stop.")] = False,
    batch: Batch = None,
    input_layout: Annotated[
        Literal["NCHW", "NHWC"], typer.Option(help="ONNX file: how image inputs shall be given.")
    ] = "NCHW",
    shape: Shapes = None,
) -> Report:
    """Search faster kernels for a model's layers; build uses what was found.

    Every candidate is compared with the reference before it is timed. Records are kept at once: stop with
    Ctrl-C whenever you like, the same command goes on where it stopped. Layers of the same shape share
    records, also between models.

    Examples:
      tvm-qplugin tune quantized --trials 64
      tvm-qplugin tune quantized --minutes 10 --only "3x3"
    """
    check_file(database, "the tuning records")
    with step("importing TVM"):
        from tvm_qplugin.targets import find_profile
        from tvm_qplugin.tuner import tune as search
        from tvm_qplugin.tuning_tasks import tasks_of
    profile = find_profile(target)
    with step("reading the model"):
        module = read_module(source, **loading_options(batch, input_layout, shape))
    if list_tasks:
        return _listed(tasks_of(module, profile, only))
    with step("tuning", spin=False), _drawing(minutes) as show:
        try:
            found = search(
                module,
                target=profile,
                trials=trials,
                minutes=minutes,
                only=only,
                database=database,
                rpc=rpc,
                threads=threads,
                progress=show,
            )
        except KeyboardInterrupt:
            say("All records so far are kept; the same command goes on from here.", "yellow")
            raise
    if found.torn:
        say(f"{found.database}: dropped a last record that a crash had cut", "yellow")
    return _told(found)


@contextmanager
def _drawing(minutes: float | None) -> Iterator[Any]:
    """Gives the function that shows a status: a bar for each task on a terminal, a line when it is done."""
    console = messages()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[best]}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bars: dict[int, Any] = {}

        def show(status: TaskStatus) -> None:
            label, best = f"{status.index + 1}/{status.count} {status.task.label}", _best(status)
            if status.index not in bars:
                bars[status.index] = progress.add_task(label, total=status.limit, best="")
            progress.update(bars[status.index], completed=status.trials, total=status.limit, best=best)
            if status.stage in SETTLED:
                progress.update(bars[status.index], visible=False)
                kept = " (tuned before)" if status.stage == "kept" else ""
                progress.console.print(f"{label}: {best}{kept}", markup=False, soft_wrap=True)
            progress.update(whole, completed=_share(status), best="")

        whole = progress.add_task(
            "all tasks" if minutes is None else f"all tasks, {minutes:g} min", total=1000, best=""
        )
        yield show


def _share(status: TaskStatus) -> float:
    """Thousandths of the whole run."""
    within = 1.0 if status.stage in SETTLED else status.trials / max(status.limit, 1)
    return 1000 * (status.index + within) / status.count


def _best(status: TaskStatus) -> str:
    """The best so far: ``21.3 us, 123.4 GMAC/s, 1.05 x the default``."""
    if status.seconds is None or status.gmacs is None:
        return status.problem or "not measured"
    words = f"{1e6 * status.seconds:.2f} us, {status.gmacs:.1f} GMAC/s"
    if status.speedup is not None:
        words += f", {status.speedup:.2f} x the default"
    turned = [
        f"{status.wrong} wrong" if status.wrong else "",
        f"{status.failed} failed" if status.failed else "",
    ]
    return ", ".join([words, *filter(None, turned)])


def _listed(tasks: list[TuningTask]) -> Report:
    data = [_task_json(task) for task in tasks]
    rows = [
        {
            "task": task.label,
            "calls": str(len(task.layers)),
            "instructions": task.tunable.isa,
            "multiply-adds": report.amount(task.macs),
            "layers": ", ".join(task.layers[:2]) + (", ..." if len(task.layers) > 2 else ""),
        }
        for task in tasks
    ]
    return Report({"tasks": data}, (report.columns_table(f"{len(tasks)} tasks", rows, left=1),))


def _task_json(task: TuningTask) -> dict[str, Any]:
    return {
        "label": task.label,
        "layers": list(task.layers),
        "instructions": task.tunable.isa,
        "macs": task.macs,
    }


def _told(found: TuningReport) -> Report:
    data = {
        "database": str(found.database),
        "seconds": found.seconds,
        "task_count": found.count,
        "tasks": [_status_json(status) for status in found.tasks],
    }
    faster = sum(status.knobs is not None for status in found.tasks)
    wrong = sum(status.wrong for status in found.tasks)
    lines: list[RenderableType] = [
        report.columns_table("tasks", [_row(status) for status in found.tasks], left=1),
        report.line(f"{faster} of {found.count} tasks got a faster kernel; records: {found.database}"),
    ]
    if wrong:
        lines.append(
            report.line(f"{wrong} candidates differed from the reference and were dropped", "yellow")
        )
    if len(found.tasks) < found.count:
        lines.append(report.line(f"no time was left for {found.count - len(found.tasks)} tasks", "yellow"))
    return Report(data, tuple(lines))


def _status_json(status: TaskStatus) -> dict[str, Any]:
    return {
        **_task_json(status.task),
        "stage": status.stage,
        "trials": status.trials,
        "default_seconds": status.default_seconds,
        "seconds": status.seconds,
        "speedup": status.speedup,
        "knobs": None if status.knobs is None else dict(status.knobs),
        "wrong": status.wrong,
        "failed": status.failed,
        "problem": status.problem or None,
    }


def _row(status: TaskStatus) -> dict[str, str]:
    def number(value: float | None, factor: float, places: int) -> str:
        return "-" if value is None else f"{factor * value:.{places}f}"

    return {
        "task": status.task.label,
        "calls": str(len(status.task.layers)),
        "trials": str(status.trials),
        "default µs": number(status.default_seconds, 1e6, 2),
        "best µs": number(status.seconds, 1e6, 2),
        "GMAC/s": number(status.gmacs, 1, 1),
        "speed-up": number(status.speedup, 1, 2),
        "wrong": str(status.wrong),
        "failed": str(status.failed),
    }
