"""The commands ``quantize``, ``calibrate`` and ``merge-tables``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import RenderableType

from tvm_qplugin import report
from tvm_qplugin.command_options import (
    Batch,
    Data,
    Floats,
    Group,
    Key,
    Layout,
    Model,
    Observer,
    OldTable,
    Prepare,
    RecipeName,
    Samples,
    Shapes,
    Target,
    Wide,
)
from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.core.recipe import Rule
from tvm_qplugin.given_options import say_no_table
from tvm_qplugin.inspection import describe_module, recipe_of_source
from tvm_qplugin.outputs import check_file, check_scratch_directory, check_stage_directory, write_stage
from tvm_qplugin.report import Report
from tvm_qplugin.workflow import Quantization, loading_options

if TYPE_CHECKING:
    from tvm.ir import IRModule

    from tvm_qplugin.core.profile import TargetProfile


Correct = Annotated[
    bool,
    typer.Option("--correct-bias", help="Win accuracy back: biases make up for the mean error of a layer."),
]
Round = Annotated[
    bool,
    typer.Option(
        "--adaptive-rounding",
        help="Win accuracy back: weights are rounded so that their errors compensate (takes longer).",
    ),
]
Equalize = Annotated[
    bool,
    typer.Option("--equalize", help="Win accuracy back: channels are brought to equal range between layers."),
]
Smooth = Annotated[
    bool,
    typer.Option(
        "--smooth",
        help="Win accuracy back: in transformers, the spread of channels moves from activations into "
        "weights (SmoothQuant).",
    ),
]
Reduce = Annotated[
    bool,
    typer.Option(
        "--reduce-range",
        help="Weights of 7 bits: costs accuracy, and is faster on CPUs with AVX2 and no VNNI.",
    ),
]
Accuracy = Annotated[
    Literal["best"] | None,
    typer.Option(
        help="best: try the ways to win accuracy back, and keep what helps on a quarter of the samples, "
        "which is held back for that (minutes; Ctrl-C keeps the best so far).",
        show_default=False,
    ),
]
DataFree = Annotated[
    bool,
    typer.Option(
        "--data-free",
        help="No samples: estimate ranges from the statistics of batch norms (worse than a few samples; "
        "needs --preprocess for the range of the inputs).",
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Calibrate with so many processes.")]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Calibrate on a Ray cluster (auto, ray://host:10001, local; extra: distributed); --workers says "
        "how many of its workers are kept busy.",
        show_default=False,
    ),
]
OutDirectory = Annotated[
    Path, typer.Option("-o", "--output", help="Directory for the quantized model.", show_default=False)
]
OutTable = Annotated[
    Path, typer.Option("-o", "--output", help="File for the table (JSON).", show_default=False)
]
NewTable = Annotated[
    Path | None, typer.Option(help="Write the calibration table here as well.", show_default=False)
]
IO = Annotated[
    Literal["float", "int8", "uint8", "int16"] | None,
    typer.Option(help="dtype of the model's inputs, outputs.", show_default="the target's"),
]
Dump = Annotated[Path | None, typer.Option(help="Directory for the IR after every pass.", show_default=False)]


def quantize(
    model: Model,
    output: OutDirectory,
    calibration: Data = None,
    preprocess: Prepare = None,
    key: Key = None,
    samples: Samples = None,
    observer: Observer = None,
    table: OldTable = None,
    save_table: NewTable = None,
    recipe: RecipeName = None,
    target: Target = "host",
    io: IO = None,
    keep_float: Floats = None,
    int16: Wide = None,
    group: Group = None,
    correct_bias: Correct = False,
    adaptive_rounding: Round = False,
    equalize: Equalize = False,
    smooth: Smooth = False,
    reduce_range: Reduce = False,
    accuracy: Accuracy = None,
    data_free: DataFree = False,
    workers: Workers = 1,
    ray: Ray = None,
    batch: Batch = None,
    input_layout: Layout = "NCHW",
    shape: Shapes = None,
    dump: Dump = None,
) -> Report:
    """Quantize a trained model (ONNX, .pt2 or .tflite), to int8 unless --recipe says otherwise.

    Runs some samples through the model to learn the range of every tensor, then writes the quantized
    model for [bold]build[/] and [bold]export[/]. No samples are needed by a model that is quantized already
    (QDQ, or a .tflite file), by --recipe dynamic (int8 weights) unless accuracy shall be won back, by
    --recipe fp16 (float16 weights), and by --recipe weight_int8 and weight_int4 (weights of dense layers
    alone; they compute in float).

    Examples:
      tvm-qplugin quantize model.onnx --calibration samples.npz -o quantized
      tvm-qplugin quantize model.onnx --calibration photos -o quantized \\
        --preprocess tf,crop=224 --samples 100
      tvm-qplugin quantize model.onnx --calibration samples.npz --accuracy best -o quantized
      tvm-qplugin quantize model.onnx --calibration samples.npz --target edgetpu -o quantized
      tvm-qplugin quantize model.onnx --recipe dynamic -o quantized
      tvm-qplugin quantize model.onnx --recipe dynamic --correct-bias --calibration photos -o quantized
      tvm-qplugin quantize model.onnx --recipe weight_int4 --group 64 -o quantized
      tvm-qplugin quantize model.pt2 --calibration samples.npz -o quantized
    """
    recovers = correct_bias or adaptive_rounding or equalize or smooth or accuracy is not None
    if calibration is not None and table is not None and not recovers:
        raise typer.BadParameter("give --calibration or --table, not both", param_hint="--table")
    check_stage_directory(output)
    check_file(save_table, "the calibration table")
    check_scratch_directory(dump)
    known = CalibrationTable.load(table) if table is not None else None
    start = time.perf_counter()
    work = Quantization(
        recipe,
        target,
        calibration,
        preprocess,
        key,
        samples,
        observer,
        (*_rules("float", keep_float), *_rules("int16x8", int16)),
        adaptive_rounding,
        correct_bias,
        equalize,
        smooth,
        accuracy,
        data_free,
        workers,
        ray,
        reduce_range,
        group,
    )
    module, ranges = work.quantized(model, known, io, dump, loading_options(batch, input_layout, shape))
    write_stage(module, ranges, output)
    say_no_table(save_table, ranges)
    if save_table is not None and ranges is not None:
        ranges.save(save_table)
    return _quantized_report(module, work, ranges, output, time.perf_counter() - start)


def _rules(scheme: str, patterns: list[str] | None) -> tuple[Rule, ...]:
    return tuple(Rule(scope=pattern, scheme=scheme) for pattern in patterns or ())


def calibrate(
    model: Model,
    output: OutTable,
    calibration: Data = None,
    preprocess: Prepare = None,
    key: Key = None,
    samples: Samples = None,
    observer: Observer = None,
    recipe: RecipeName = None,
    target: Target = "host",
    workers: Workers = 1,
    ray: Ray = None,
    batch: Batch = None,
    input_layout: Layout = "NCHW",
    shape: Shapes = None,
) -> Report:
    """Only learn the ranges of a model's tensors, and write them as a table.

    [bold]quantize --table[/] uses it; tables of parts of the data can be merged with [bold]merge-tables[/].

    Example:
      tvm-qplugin calibrate model.onnx --calibration samples.npz -o table.json
    """
    check_file(output, "the calibration table")
    start = time.perf_counter()
    given = (recipe, target, calibration, preprocess, key, samples, observer)
    work = Quantization(*given, workers=workers, cluster=ray)
    table = work.table_of(work.load(model, loading_options(batch, input_layout, shape)))
    table.save(output)
    return _table_report(table, output, time.perf_counter() - start)


def merge_tables(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="TABLE TABLE...", help="Tables of the same model, two or more.", show_default=False
        ),
    ],
    output: OutTable,
) -> Report:
    """Merge calibration tables that were made from parts of the data.

    They must be of the same model and of the same observer.

    Example:
      tvm-qplugin merge-tables part1.json part2.json -o table.json
    """
    check_file(output, "the calibration table")
    if len(tables) < 2:
        raise typer.BadParameter("give at least two tables", param_hint="TABLE")
    start = time.perf_counter()
    merged, *others = [CalibrationTable.load(path) for path in tables]
    for other in others:
        merged = merged.merge(other)
    merged.save(output)
    return _table_report(merged, output, time.perf_counter() - start)


def _quantized_report(
    module: IRModule, work: Quantization, table: CalibrationTable | None, output: Path, seconds: float
) -> Report:
    from tvm_qplugin.best import attempts_of
    from tvm_qplugin.passes import ir
    from tvm_qplugin.planning import stored_schemes
    from tvm_qplugin.quantizer import UNSEEN

    manifest = describe_module(module, work.profile)
    operators = manifest.operators
    recipe = recipe_of_source(module)
    stored = bool(recipe.storage)
    schemes = report.schemes(manifest, stored_schemes(module))
    unseen = UNSEEN in (ir.main_function(module).attrs or {})
    data = {
        "output": str(output),
        "recipe": recipe.to_json(),
        "target": work.target,
        "samples": table.samples if table else 0,
        "data_free": unseen,
        "inputs": [asdict(info) for info in manifest.inputs],
        "outputs": [asdict(info) for info in manifest.outputs],
        "totals": report.totals(operators),
        "schemes": schemes,
        "islands": report.islands(operators),
        "seconds": seconds,
        "next": _next(work.profile, quote(str(output))),
    }
    said = report.stored(operators, stored_schemes(module)) if stored else report.summary(operators)
    parts: list[RenderableType] = [said]
    if len(recipe.schemes) > 1:
        counts = ", ".join(f"{scheme} {count}" for scheme, count in schemes.items())
        parts.append(report.line(f"operators by scheme: {counts}"))
    if data["islands"] and not stored:
        parts += ["", report.islands_table(operators), ""]
    search = attempts_of(module)
    if search is not None:
        data |= {"accuracy": search}
        parts = [*report.attempts(search), "", *parts]
    samples = f", calibrated with {table.samples} samples" if table else ""
    samples += ", calibrated without data" if unseen else ""
    parts += [
        report.line(f"quantized in {seconds:.1f} s{samples}: {output}"),
        report.line(f"next: {data['next']}", "bold"),
    ]
    return Report(data, tuple(parts))


def _next(profile: TargetProfile, output: str) -> str:
    """The command that makes what the device takes."""
    if profile.artifact == "tflite":
        return f"tvm-qplugin export {output} --target {profile.name} -o model.tflite"
    return f"tvm-qplugin build {output} --target {profile.name} -o artifact"


def _table_report(table: CalibrationTable, output: Path, seconds: float) -> Report:
    data = {
        "output": str(output),
        "samples": table.samples,
        "tensors": len(table.ranges),
        "observers": sorted({item.observer for item in table.ranges.values()}),
        "model_hash": table.model_hash,
        "seconds": seconds,
    }
    text = f"ranges of {len(table.ranges)} tensors over {table.samples} samples in {seconds:.1f} s: {output}"
    return Report(data, (report.line(text),))
