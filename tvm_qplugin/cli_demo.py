"""The command ``demo``: the whole way on an embedded model, float against int8."""

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
from tvm_qplugin.console import bar, step
from tvm_qplugin.outputs import check_artifact_directory, check_stage_directory, write_stage
from tvm_qplugin.report import Report

if TYPE_CHECKING:
    from tvm.ir import IRModule

    from tvm_qplugin.artifact import Artifact
    from tvm_qplugin.core.calibration import CalibrationTable


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
            help="Keep what is made: DIR/quantized, DIR/float and DIR/int8 to try the other commands on.",
            show_default=False,
        ),
    ] = None,
) -> Report:
    """Quantize and compile an embedded model and compare it with float; takes some seconds.

    The model is a small CNN that reads handwritten digits (8x8 pixels). It is calibrated with 200 images
    and judged on 450 that it has never seen.

    Example:
      tvm-qplugin demo --keep demo
    """
    if keep is not None:
        check_stage_directory(keep / "quantized")
        check_artifact_directory(keep / "float")
        check_artifact_directory(keep / "int8")
    start = time.perf_counter()
    module, quantized, table = _quantize()
    artifacts = _build(module, quantized)
    if keep is not None:
        write_stage(quantized, table, keep / "quantized")
        for scheme, artifact in artifacts.items():
            artifact.save(keep / scheme)
    rows = _judge(artifacts, {"float": _float_weights(module), "int8": _integer_weights(artifacts["int8"])})
    return _report(rows, time.perf_counter() - start, keep)


def _quantize() -> tuple[IRModule, IRModule, CalibrationTable]:
    """The float module, the int8 module and the ranges that it was made with."""
    with step("importing TVM"):
        from tvm_qplugin.calibrator import calibrate
        from tvm_qplugin.core.recipe import find_recipe
        from tvm_qplugin.frontend import load
        from tvm_qplugin.inspection import annotation_of, with_source
        from tvm_qplugin.quantizer import quantize_module
        from tvm_qplugin.targets import find_profile
    with step("reading the model"):
        module = load(embedded.model_path())
    names = annotation_of(module, find_recipe("int8"), find_profile("host")).observed()
    with step("calibrating", spin=False):
        table = calibrate(module, embedded.calibration(), names=names, progress=True)
    with step("quantizing"):
        quantized = quantize_module(module, calibration=table)
    path, recipes = embedded.model_path(), (find_recipe("float"), find_recipe("int8"))
    return with_source(module, path, recipes[0]), with_source(quantized, path, recipes[1]), table


def _build(module: IRModule, quantized: IRModule) -> dict[str, Artifact]:
    from tvm_qplugin.builder import build

    found = {}
    for scheme, stage in {"float": module, "int8": quantized}.items():
        with step(f"compiling {scheme}"):
            found[scheme] = build(stage)
    return found


def _judge(artifacts: dict[str, Artifact], weights: dict[str, int]) -> list[Row]:
    from tvm_qplugin.data import open_labelled
    from tvm_qplugin.evaluate import evaluate

    pairs = open_labelled(embedded.evaluation_path())
    rows = []
    for scheme, artifact in artifacts.items():
        with bar(f"evaluating {scheme}", len(pairs)) as advance:
            found = evaluate(artifact, pairs, reference=artifacts["float"], advance=advance)
        with step(f"timing {scheme}"):
            timing = artifact.benchmark(1)
        size = report.artifact_bytes(artifact.manifest)
        assert found.accuracy is not None and found.agreement is not None
        rows.append(Row(scheme, found.accuracy, found.agreement, size, weights[scheme], timing.median_ms))
    return rows


def _float_weights(module: IRModule) -> int:
    from tvm_qplugin.core.recipe import find_recipe
    from tvm_qplugin.inspection import planned
    from tvm_qplugin.targets import find_profile

    operators = planned(module, find_recipe("int8"), find_profile("host"))
    return sum(op.weight_bytes for op in operators if op.op in ("conv2d", "dense"))


def _integer_weights(artifact: Artifact) -> int:
    return artifact.manifest.sizes["weights"]


def _report(rows: Sequence[Row], seconds: float, keep: Path | None) -> Report:
    slowest = rows[0].median_ms
    cells = [
        {
            "scheme": row.scheme,
            "accuracy %": f"{100 * row.accuracy:.2f}",
            "same answer as float %": f"{100 * row.agreement:.2f}",
            "artifact KB": f"{row.artifact_bytes / 1e3:.1f}",
            "weights KB": f"{row.weight_bytes / 1e3:.1f}",
            "latency ms": f"{row.median_ms:.4f}",
            "speed-up": f"{slowest / row.median_ms:.2f}x",
        }
        for row in rows
    ]
    data = {
        "model": embedded.model_path().stem,
        "schemes": [{**asdict(row), "speed_up": slowest / row.median_ms} for row in rows],
        "seconds": seconds,
        "kept": None if keep is None else str(keep),
    }
    title = "handwritten digits, 450 test images, 1 thread"
    parts: list[RenderableType] = [
        report.columns_table(title, cells),
        report.line(f"all of it took {seconds:.1f} s"),
    ]
    if keep is not None:
        parts.append(report.line(f"next: tvm-qplugin inspect {keep / 'int8'}", "bold"))
    return Report(data, tuple(parts))
