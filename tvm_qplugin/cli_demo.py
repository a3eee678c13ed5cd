"""The command ``demo``: the whole way on an embedded model, float against every scheme."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from tvm_qplugin import demo as embedded
from tvm_qplugin import report
from tvm_qplugin.console import bar, say, step
from tvm_qplugin.core.recipe import find_recipe
from tvm_qplugin.inspection import describe_module, read_module
from tvm_qplugin.outputs import check_artifact_directory, check_stage_directory, write_stage
from tvm_qplugin.report import Report
from tvm_qplugin.workflow import Quantization

if TYPE_CHECKING:
    from tvm.ir import IRModule

    from tvm_qplugin.artifact import Artifact
    from tvm_qplugin.core.calibration import CalibrationTable


@dataclass(frozen=True)
class Scheme:
    """A row of the table: its name, what ``quantize`` is asked for; without a recipe it is float."""

    name: str
    recipe: str | None = None
    accuracy: str | None = None
    samples: int | None = None


SCHEMES = (
    Scheme("float"),
    Scheme("fp16", "fp16"),
    Scheme("dynamic", "dynamic"),
    Scheme("int8", "int8"),
    Scheme("int8-best", "int8", "best", samples=64),
    Scheme("int16x8", "int16x8"),
)


@dataclass(frozen=True)
class Row:
    """What is known of one scheme; bytes and milliseconds, shares of 1."""

    scheme: str
    accuracy: float
    agreement: float
    artifact_bytes: int
    weight_bytes: int
    median_ms: float


def demo(
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep what is made of every scheme to try the other commands on: "
            "DIR/int8/quantized, DIR/int8/artifact and so on.",
            show_default=False,
        ),
    ] = None,
) -> Report:
    """Quantize and compile an embedded model in every scheme and compare them; takes some seconds.

    The schemes are float, fp16, dynamic, int8, int8 with --accuracy best, and int16x8; the table gives
    accuracy, size and latency. The model is a small CNN that reads handwritten digits (8x8 pixels). It is
    calibrated with 200 images (accuracy best: 64) and judged on 450 that it has never seen.

    Example:
      tvm-qplugin demo --keep demo
    """
    if keep is not None:
        for scheme in SCHEMES:
            check_stage_directory(keep / scheme.name / "quantized")
            check_artifact_directory(keep / scheme.name / "artifact")
    start = time.perf_counter()
    artifacts = {}
    rows: list[Row] = []
    for scheme in SCHEMES:
        say(scheme.name, "bold")
        artifacts[scheme.name], weights = _make(scheme, None if keep is None else keep / scheme.name)
        rows.append(_judge(scheme.name, artifacts[scheme.name], artifacts["float"], weights))
    return _report(rows, time.perf_counter() - start, keep)


def _make(scheme: Scheme, keep: Path | None) -> tuple[Artifact, int]:
    """The artifact of a scheme and the bytes of its weights."""
    from tvm_qplugin.builder import build

    module, table = _module(scheme)
    with step("compiling"):
        artifact = build(module)
    if keep is not None:
        artifact.save(keep / "artifact")
        if scheme.recipe is not None:
            write_stage(module, table, keep / "quantized")
    return artifact, _weight_bytes(module, scheme)


def _module(scheme: Scheme) -> tuple[IRModule, CalibrationTable | None]:
    """The module to compile, and the ranges that it was made with."""
    path = embedded.model_path()
    if scheme.recipe is None:
        return read_module(path), None
    data = embedded.calibration_path() if find_recipe(scheme.recipe).integer else None
    options = (data, None, None, scheme.samples, None)
    return Quantization(scheme.recipe, "host", *options, accuracy=scheme.accuracy).quantized(
        path, None, None, None, {}
    )


def _weight_bytes(module: IRModule, scheme: Scheme) -> int:
    from tvm_qplugin.planning import planned
    from tvm_qplugin.targets import find_profile

    profile = find_profile("host")
    if scheme.recipe is None:
        return sum(op.weight_bytes for op in planned(module, find_recipe("float"), profile).operators)
    return sum(op.weight_bytes for op in describe_module(module, profile).operators)


def _judge(name: str, artifact: Artifact, reference: Artifact, weights: int) -> Row:
    from tvm_qplugin.data import open_labelled
    from tvm_qplugin.evaluate import evaluate

    pairs = open_labelled(embedded.evaluation_path())
    with bar("evaluating", len(pairs)) as advance:
        found = evaluate(artifact, pairs, reference=reference, advance=advance)
    with step("timing"):
        timing = artifact.benchmark(1)
    assert found.accuracy is not None and found.agreement is not None
    size = report.artifact_bytes(artifact.manifest)
    return Row(name, found.accuracy, found.agreement, size, weights, timing.median_ms)


def _report(rows: Sequence[Row], seconds: float, keep: Path | None) -> Report:
    reference = rows[0]
    cells = [
        {
            "scheme": row.scheme,
            "accuracy %": f"{100 * row.accuracy:.2f}",
            "same answer as float %": f"{100 * row.agreement:.2f}",
            "artifact KB": f"{row.artifact_bytes / 1e3:.1f}",
            "weights KB": f"{row.weight_bytes / 1e3:.1f}",
            "latency ms": f"{row.median_ms:.4f}",
            "speed-up": f"{reference.median_ms / row.median_ms:.2f}x",
        }
        for row in rows
    ]
    data = {
        "model": embedded.model_path().stem,
        "schemes": [{**asdict(row), "speed_up": reference.median_ms / row.median_ms} for row in rows],
        "seconds": seconds,
        "kept": None if keep is None else str(keep),
    }
    title = "handwritten digits, 450 test images, 1 thread"
    parts: list[RenderableType] = [
        report.columns_table(title, cells),
        report.line(f"all of it took {seconds:.1f} s"),
    ]
    if keep is not None:
        parts.append(report.line(f"next: tvm-qplugin inspect {keep / 'int8' / 'artifact'}", "bold"))
    return Report(data, tuple(parts))
