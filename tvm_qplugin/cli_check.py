"""The command ``check``: what a device would run of a ``.tflite`` file, and why not the rest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tvm_qplugin import report
from tvm_qplugin.console import step
from tvm_qplugin.inspection import read_module
from tvm_qplugin.report import Report
from tvm_qplugin.workflow import loading_options

if TYPE_CHECKING:
    from tvm_qplugin.tflite.check import CheckReport, Finding
    from tvm_qplugin.tflite.file import TfliteModel

TFLITE = (".tflite", ".lite", ".tfl")
MADE_UP = (
    "The model is in float: its ranges are made up, from random samples, only to see which operators map. "
    "Real ranges may change the number of QUANTIZE operators. For a model to use: tvm-qplugin quantize"
)
Batch = Annotated[int | None, typer.Option(min=1, help="ONNX file: size of an unknown batch dimension.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=1,3,224,224",
        help="ONNX file: shape of an input whose shape is unknown.",
        show_default=False,
    ),
]


def check(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A .tflite file, or what can be made one: a directory that quantize wrote, or an ONNX or "
            ".pt2 file; a float one is quantized with made-up samples for the prediction.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str, typer.Option(help="Device: edgetpu, ethos-u, litert-gpu or litert-hexagon.")
    ] = "edgetpu",
    runtime: Annotated[
        int | None,
        typer.Option(
            help="Version of the device's runtime (Edge TPU) or compiler (Vela).", show_default="newest"
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if an operator stays on the CPU.")
    ] = False,
    batch: Batch = None,
    shape: Shapes = None,
) -> Report:
    """Predict which operators of a model a device runs, which rule decided, and what would change it.

    The compilers of some devices are closed and cannot be asked: this predicts from what is published.

    A model that is no .tflite file yet is rewritten for the device and exported as [bold]export --target[/]
    does; of a float one only the mapping means something, not its numbers.

    Examples:
      tvm-qplugin check model.onnx
      tvm-qplugin check model.tflite
      tvm-qplugin check quantized --target ethos-u --strict
    """
    with step("importing TVM"):
        from tvm_qplugin.targets.devices import find_device
        from tvm_qplugin.tflite.check import check as predict

    rules = find_device(target)
    model, made_up = _read(source, target, loading_options(batch, "NCHW", shape))
    result = predict(model, rules, runtime)
    failure = _failure(result) if strict and not result.complete else ""
    return Report(_json(source, result, made_up), tuple(_parts(source, result, made_up)), failure)


def _read(source: Path, target: str, options: dict[str, Any]) -> tuple[TfliteModel, bool]:
    """The file, and whether its ranges are made up."""
    from tvm_qplugin.tflite.file import load

    if source.suffix.lower() in TFLITE:
        return load(source, strict=False), False
    from tvm_qplugin.exporter import export_tflite
    from tvm_qplugin.passes.expand_weights import scheme_of
    from tvm_qplugin.pipeline import is_quantized, rewritten
    from tvm_qplugin.provisional import provisional
    from tvm_qplugin.targets import PROFILES, find_profile

    profile = find_profile(target if target in PROFILES else "host")
    with step("reading the model"):
        module = rewritten(read_module(source, **options), profile)
    made_up = not is_quantized(module) and not scheme_of(module)
    if made_up:
        with step("quantizing it provisionally"):
            module = provisional(module, profile)
    with step("exporting the model"):
        device = profile if profile.artifact == "tflite" and is_quantized(module) else None
        return load(export_tflite(module, target=device, per_channel_dense=True), strict=False), made_up


def _failure(result: CheckReport) -> str:
    first = next(finding for finding in result.findings if finding.placed == "cpu")
    count = len(result.findings)
    return (
        f"{count - result.mapped} of {count} operators stay on the CPU, and --strict allows none; the first "
        f"is {first.operator} ({first.rule}): {first.hint}"
    )


def _json(source: Path, result: CheckReport, made_up: bool) -> dict[str, Any]:
    return {
        "source": str(source),
        "ranges_made_up": made_up,
        "device": result.device,
        "prediction": result.prediction,
        "rules": result.source,
        "operators": [asdict(finding) for finding in result.findings],
        "mapped": result.mapped,
        "total": len(result.findings),
        "complete": result.complete,
        "cut": result.cut,
        "partitions": result.partitions,
        "runtime": result.runtime,
        "parameter_bytes": result.parameter_bytes,
        "on_chip_bytes": result.on_chip_bytes,
        "streamed_bytes": result.streamed_bytes,
        "float_io": list(result.float_io),
        "failure": result.failure,
    }


def _parts(source: Path, result: CheckReport, made_up: bool) -> list[RenderableType]:
    parts: list[RenderableType] = [report.line(f"{source}: {result.device}", "bold"), ""]
    if made_up:
        parts += [report.line(MADE_UP, "yellow"), ""]
    parts += [_operators(result), ""]
    if not result.complete or any(finding.note for finding in result.findings):
        parts += [_reasons(result), ""]
    return [*parts, *(report.line(text) for text in _summary(result)), report.line(result.prediction, "dim")]


def _operators(result: CheckReport) -> Table:
    """One row for each operator."""
    table = _table("operators")
    for column in ("", "operator", "output", "runs on", "status"):
        table.add_column(column, overflow="fold", justify="right" if not column else "left")
    for finding in result.findings:
        style = "green" if finding.placed == "mapped" else "yellow"
        cells = [str(finding.index), finding.operator, report.shape(finding.shape)]
        table.add_row(*map(Text, cells), Text(finding.placed, style), Text(finding.status))
    return table


def _reasons(result: CheckReport) -> Table:
    """The operators on the CPU and the doubtful ones, one row for each reason."""
    table = _table("why, and what would change it")
    for column in ("operator", "rule", "remedy", "numbers"):
        table.add_column(column, overflow="fold")
    groups: dict[tuple[str, str, str], list[int]] = {}
    for finding in result.findings:
        if (finding.placed == "cpu" and not finding.cut_off) or finding.note:
            groups.setdefault(_reason(finding), []).append(finding.index)
    for (operator, rule, hint), numbers in groups.items():
        more = f" and {len(numbers) - 6} more" if len(numbers) > 6 else ""
        table.add_row(operator, Text(rule), Text(hint), ", ".join(map(str, numbers[:6])) + more)
    return table


def _reason(finding: Finding) -> tuple[str, str, str]:
    if finding.placed == "mapped":
        return finding.operator, f"mapped, but {finding.note}", "compile the file to know"
    return finding.operator, finding.rule, finding.hint


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")


def _summary(result: CheckReport) -> list[str]:
    lines = [f"{result.mapped} of {len(result.findings)} operators map to {result.device}"]
    if result.cut is not None:
        lines.append(f"cut at operator {result.cut}: everything after it stays on the CPU")
    elif result.partitions > 1:
        lines.append(f"the model enters the device {result.partitions} times: each switch copies tensors")
    if result.on_chip_bytes is not None:
        lines.append(_memory(result))
    if result.runtime:
        lines.append(f"needs {result.versioned} {result.runtime} or newer")
    if result.float_io:
        lines.append(f"float on the CPU: {', '.join(result.float_io)}; use int8 or uint8 inputs and outputs")
    return [*lines, result.failure] if result.failure else lines


def _memory(result: CheckReport) -> str:
    room = report.size(result.on_chip_bytes or 0)
    streamed = result.streamed_bytes
    how = f"{report.size(streamed)} of them are streamed at every inference" if streamed else "all fit"
    return f"{report.size(result.parameter_bytes)} of parameters, {room} on the chip: {how}"
