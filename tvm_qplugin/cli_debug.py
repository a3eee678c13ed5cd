"""The command ``debug``."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from tvm_qplugin import report
from tvm_qplugin.command_options import (
    Batch,
    Data,
    Key,
    Layout,
    Observer,
    OldTable,
    Prepare,
    RecipeName,
    Samples,
    Shapes,
    Target,
)
from tvm_qplugin.console import step
from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.core.errors import QPluginError
from tvm_qplugin.data import open_labelled, open_samples
from tvm_qplugin.debug_pictures import check_pictures, draw
from tvm_qplugin.given_options import say_unused
from tvm_qplugin.inspection import annotation_of, check_scopes
from tvm_qplugin.observers import chosen_by
from tvm_qplugin.outputs import check_scratch_directory, check_stage_directory, write_stage
from tvm_qplugin.report import Report
from tvm_qplugin.workflow import Quantization, loading_options

if TYPE_CHECKING:
    from tvm.ir import IRModule

    from tvm_qplugin.core.distance import Distance
    from tvm_qplugin.debugger import Diagnosis
    from tvm_qplugin.evaluate import Evaluation
    from tvm_qplugin.layer_errors import LayerErrors
    from tvm_qplugin.samples import Sample

ROWS = 15
LAYERS, RECIPE = "layers.json", "recipe.json"
_UNMET = "no recipe was found that meets the budget: allow more with --max-loss, or less with --sqnr"


def debug(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="The float model: ONNX, .pt2 or .tflite.", show_default=False),
    ],
    calibration: Data = None,
    preprocess: Prepare = None,
    key: Key = None,
    samples: Samples = None,
    observer: Observer = None,
    table: OldTable = None,
    recipe: RecipeName = None,
    target: Target = "host",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Samples to compare on, as for evaluate. Default: those of --calibration.",
            show_default=False,
        ),
    ] = None,
    labels_offset: Annotated[int, typer.Option(help="Added to every label of --data.")] = 0,
    sqnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="Least SQNR of the outputs. Default: 20, or any with --max-loss.",
            show_default=False,
        ),
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            metavar="POINTS",
            help="Largest loss of top-1 accuracy in percentage points; --data then has labels.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[int, typer.Option(min=1, help="Compare models on at most this many samples.")] = 64,
    layer_samples: Annotated[int, typer.Option(min=1, help="Try each layer alone on this many.")] = 8,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help=f"Directory for {LAYERS}, {RECIPE} and pictures.",
            show_default=False,
        ),
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the model quantized as proposed here.", show_default=False),
    ] = None,
    no_int16: Annotated[
        bool, typer.Option("--no-int16", help="Propose float only, not int16 activations (int16x8).")
    ] = False,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Draw nothing.")] = False,
    batch: Batch = None,
    input_layout: Layout = "NCHW",
    shape: Shapes = None,
) -> Report:
    """Say which layers a quantized model loses its accuracy in, and propose a recipe that wins it back.

    Every layer is compared with the float model's on the same samples: as deployed, with everything before
    it quantized, and alone, with everything else in float. Layers are ranked by what they alone do to
    the outputs. Where the budget is not met, a recipe is proposed that keeps the layers at fault out of
    int8; [bold]--apply[/] writes the model quantized so.

    Examples:
      tvm-qplugin debug model.onnx --calibration samples.npz -o debug
      tvm-qplugin debug model.onnx --calibration samples.npz --data test.npz --max-loss 1 --apply quantized
    """
    check_scratch_directory(output)
    if apply is not None:
        check_stage_directory(apply)
    if output is not None and not no_pictures:
        check_pictures()
    if max_loss is not None and data is None:
        raise typer.BadParameter(
            "a loss of accuracy needs labelled samples: give --data", param_hint="--max-loss"
        )
    if sqnr is not None and not math.isfinite(sqnr):
        raise typer.BadParameter(f"{sqnr} is no number of decibels", param_hint="--sqnr")
    if calibration is None and table is None:
        raise typer.BadParameter("give samples with --calibration, or a --table", param_hint="--calibration")
    if calibration is None and data is None:
        raise typer.BadParameter("a table holds no samples to compare on: give --data", param_hint="--table")
    if max_loss is None:
        say_unused("labels are read with --max-loss", {"--labels-offset": labels_offset})
    known = CalibrationTable.load(table) if table is not None else None
    start = time.perf_counter()
    work = Quantization(recipe, target, calibration, preprocess, key, samples, observer)
    module = work.load(model, loading_options(batch, input_layout, shape))
    options = {
        "budget": _budget(sqnr, max_loss),
        "limit": compare,
        "layer_samples": layer_samples,
        "int16": not no_int16,
        "labelled": max_loss is not None,
    }
    found = _diagnosed(
        work, module, known, _given(data, module, work, labels_offset, max_loss is not None), options
    )
    written = [] if output is None else _write(found, output, not no_pictures)
    if apply is not None:
        written.append(_apply(found, work, model, apply))
    return _report(found, model, written, time.perf_counter() - start)


def _budget(sqnr: float | None, max_loss: float | None) -> Any:
    from tvm_qplugin.remedy import SQNR_DB, Budget

    loss = None if max_loss is None else max_loss / 100
    return Budget(SQNR_DB if sqnr is None and loss is None else sqnr, loss)


def _given(data: Path | None, module: IRModule, work: Quantization, offset: int, labelled: bool) -> Any:
    """The samples of ``--data``, with labels if need be; None where it is left out."""
    from tvm_qplugin.samples import inputs_of

    if data is None:
        return None
    names = [item.original for item in inputs_of(module)]
    if not labelled:
        return open_samples(data, names, work.preprocess, key=work.key)
    pairs = open_labelled(data, names, work.preprocess, key=work.key)

    def shifted() -> Iterator[tuple[Sample, int]]:
        for sample, label in pairs:
            yield sample, int(label) + offset

    return shifted()


def _diagnosed(
    work: Quantization,
    module: IRModule,
    table: CalibrationTable | None,
    samples: Any,
    options: dict[str, Any],
) -> Diagnosis:
    from tvm_qplugin.debugger import calibrated, check, diagnose

    check(module, work.recipe)
    check_scopes(work.recipe, annotation_of(module, work.recipe, work.profile))
    kept: Any = None
    if table is not None and work.observer is not None:
        table = chosen_by(table, work.observer)
    if table is None:
        with step("calibrating", spin=False):
            table, kept = calibrated(
                module,
                work.recipe,
                work.profile,
                work.samples_of(module),
                options["limit"],
                progress=True,
                observer=work.observer,
                most=work.samples,
            )
    if samples is None:
        samples = work.samples_of(module) if kept is None else kept
    with step("comparing", spin=False):
        return diagnose(module, work.recipe, work.profile, table, samples, progress=True, **options)


def _write(found: Diagnosis, folder: Path, pictures: bool) -> list[str]:
    """The files of ``--output``, each there as a whole or not at all."""
    texts = {LAYERS: found.to_json()}
    if found.proposal is not None:
        texts[RECIPE] = found.proposal.recipe.to_json()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".tvm-qplugin-", dir=folder) as draft:
            for name, data in texts.items():
                text = json.dumps(report.plain(data), indent=1, allow_nan=False)
                (Path(draft) / name).write_text(f"{text}\n", encoding="utf-8")
            drawn = draw(found.layers, Path(draft)) if pictures else []
            written = [folder / name for name in (*texts, *(path.name for path in drawn))]
            for path in written:
                os.replace(Path(draft) / path.name, path)
    except OSError as error:
        raise QPluginError(
            f"cannot write {folder} ({error.strerror or error}): choose another directory"
        ) from error
    return [str(path) for path in written]


def _apply(found: Diagnosis, work: Quantization, model: Path, folder: Path) -> str:
    import tvm

    from tvm_qplugin.inspection import with_source
    from tvm_qplugin.passes.quantize_io import QuantizeIO

    proposal = found.proposal
    module = found.module if proposal is None else proposal.module
    module = tvm.transform.Sequential([QuantizeIO(work.profile.io)])(module)
    recipe = work.recipe if proposal is None else proposal.recipe
    write_stage(with_source(module, model, recipe), found.table, folder)
    return str(folder)


def _report(found: Diagnosis, model: Path, written: list[str], seconds: float) -> Report:
    proposal = found.proposal
    data = {"model": str(model), **found.to_json(), "written": written, "seconds": seconds}
    parts: list[RenderableType] = [_table(found.ranking), ""]
    parts.append(report.line(f"as quantized: {_quality(found.found)}"))
    if proposal is None:
        parts.append(report.line("the budget is met: no layer has to be kept out of int8", "green"))
    else:
        parts.append(report.line(f"as proposed:  {_quality(proposal.found)}"))
        parts.append(report.line("the recipe that is proposed gives", "bold"))
        for scheme in sorted(set(proposal.schemes.values())):
            names = ", ".join(name for name, other in proposal.schemes.items() if other == scheme)
            parts.append(report.line(f"  {scheme} to {names}"))
    parts.append(report.line(f"compared in {seconds:.1f} s" + "".join(f"\n  {path}" for path in written)))
    failed = proposal is not None and not proposal.met
    return Report(data, tuple(parts), _UNMET if failed else "")


def _table(ranking: list[LayerErrors]) -> RenderableType:
    rows = [
        {
            "": str(rank),
            "layer": layer.name,
            "operator": layer.op,
            "scheme": layer.scheme,
            "at the outputs, dB": _decibels(layer.effect),
            "by weights": _decibels(layer.weights),
            "by its tensor": _decibels(layer.activations),
            "alone, dB": _decibels(layer.alone),
            "as deployed, dB": _decibels(layer.cumulative),
            "of the range used": report.percent(layer.used),
        }
        for rank, layer in enumerate(ranking[:ROWS], 1)
    ]
    more = f" ({ROWS} of {len(ranking)})" if len(ranking) > ROWS else ""
    return (
        report.columns_table(f"layers, the worst first{more}", rows, 4) if rows else report.line("no layer")
    )


def _decibels(distance: Distance) -> str:
    value = distance.sqnr_db if distance.count else None
    return "-" if value is None else f"{value:.1f}"


def _quality(found: Evaluation) -> str:
    """One line of figures."""
    sqnr = "no difference" if found.sqnr_db is None else f"SQNR {found.sqnr_db:.1f} dB"
    parts = [sqnr, f"same arg-max {report.percent(found.agreement)}"]
    if found.accuracy is not None:
        parts.append(
            f"top-1 {report.percent(found.accuracy)}, in float {report.percent(found.reference_accuracy)}"
        )
    return ", ".join(parts) + f" ({found.samples} samples)"
