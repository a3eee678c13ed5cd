"""The commands ``build`` and ``inspect``."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

import typer
from rich.console import RenderableType

from tvm_qplugin import report
from tvm_qplugin.console import say, step
from tvm_qplugin.given_options import say_unused
from tvm_qplugin.inspection import inspect_source, read_module
from tvm_qplugin.object_cache import ObjectCache
from tvm_qplugin.outputs import check_artifact_directory, check_scratch_directory
from tvm_qplugin.report import Report
from tvm_qplugin.workflow import loading_options

Batch = Annotated[int | None, typer.Option(min=1, help="ONNX file: size of an unknown batch dimension.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=1,3,224,224",
        help="ONNX file: shape of an input whose shape is unknown.",
        show_default=False,
    ),
]


def build(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Directory that quantize wrote, or an ONNX, .pt2 or .tflite file: a float one is compiled "
            "in float, one that is quantized already (QDQ) to integer kernels.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Directory for the artifact.", show_default=False)
    ],
    target: Annotated[str, typer.Option(help="Device to compile for: host, x86-64-v3, ...")] = "host",
    batch: Batch = None,
    input_layout: Annotated[
        Literal["NCHW", "NHWC"], typer.Option(help="ONNX file: how image inputs shall be given.")
    ] = "NCHW",
    shape: Shapes = None,
    dump: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the IR after every pass; the model is compiled whole, without the cache.",
            show_default=False,
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compile every kernel, also those that earlier builds kept.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Kernels to compile at a time.", show_default="one on each core"),
    ] = None,
    separate_kernels: Annotated[
        bool,
        typer.Option(
            "--separate-kernels",
            help="Keep small kernels apart, for bench --profile and why-slow: slower in small models.",
        ),
    ] = False,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Tuning records to use before your own and the shipped ones; none: default kernels.",
            show_default=False,
        ),
    ] = None,
) -> Report:
    """Compile a model to an artifact: model.so and manifest.json.

    A float ONNX file can be compiled as well: build it to compare the quantized model with. Compiled kernels
    are kept for later builds, of this model and others: see the command cache.

    Example:
      tvm-qplugin build quantized -o artifact
    """
    check_artifact_directory(output)
    check_scratch_directory(dump)
    start = time.perf_counter()
    with step("importing TVM"):
        from tvm_qplugin.builder import build as compile_model
        from tvm_qplugin.passes.expand_weights import scheme_of
        from tvm_qplugin.targets import find_profile
    profile = find_profile(target)
    with step("reading the model"):
        module = read_module(source, **loading_options(batch, input_layout, shape))
    if scheme_of(module) == "fp16":
        say("model.so computes in float32, from weights that are stored as float16", "yellow")
    cache = ObjectCache(limit=0 if no_cache else None, warn=partial(say, style="yellow"))
    with step(f"compiling for {profile.name}", spin=False):
        artifact = compile_model(
            module,
            target=profile,
            dump=dump,
            cache=cache,
            jobs=jobs,
            progress=True,
            merge=not separate_kernels,
            database=database,
        )
    artifact.save(output)
    seconds = time.perf_counter() - start
    manifest, total = artifact.manifest, report.artifact_bytes(artifact.manifest)
    original = manifest.sizes.get("float_model") or (source.stat().st_size if source.is_file() else None)
    data = {
        "output": str(output),
        "target": profile.name,
        "artifact_bytes": total,
        "model_so_bytes": manifest.sizes["model.so"],
        "weight_bytes": manifest.sizes.get("weights", 0),
        "source_model_bytes": original,
        "tuned_kernels": manifest.target["tuned_kernels"],
        "calls": len(manifest.calls),
        "totals": report.totals(manifest.operators),
        "islands": report.islands(manifest.operators),
        "kernels": {"compiled": cache.missed, "cached": cache.found},
        "seconds": seconds,
        "next": f"tvm-qplugin bench {quote(str(output))}",
    }
    ratio = f", {total / original:.2f} x the model's file ({report.size(original)})" if original else ""
    kernels = f", {cache.missed} kernels compiled, {cache.found} from the cache" if not dump else ""
    parts: list[RenderableType] = [
        report.summary(manifest.operators),
        report.line(f"{data['tuned_kernels']} of {data['calls']} kernel calls use tuning records"),
        report.line(f"artifact {report.size(total)}{ratio}, made in {seconds:.1f} s{kernels}: {output}"),
        report.line(f"next: {data['next']}", "bold"),
    ]
    return Report(data, tuple(parts))


def inspect(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Artifact, directory that quantize wrote, or ONNX, .pt2 or .tflite file.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        str | None, typer.Option(help="Float ONNX file: recipe to plan with.", show_default="the target's")
    ] = None,
    target: Annotated[str, typer.Option(help="Not for artifacts: device to plan for.")] = "host",
    batch: Batch = None,
    shape: Shapes = None,
) -> Report:
    """Show each operator of a model: its scheme (int8, int16x8, dynamic, fp16, float) and why, kernel, sizes.

    Of a float ONNX file it shows what quantization would do, before you spend time on it.

    Examples:
      tvm-qplugin inspect model.onnx
      tvm-qplugin inspect model.onnx --recipe dynamic
      tvm-qplugin inspect artifact --json
    """
    contents = inspect_source(source, recipe, target, **loading_options(batch, "NCHW", shape))
    manifest = contents.manifest
    if contents.kind != "float model":
        device = target != "host" and contents.kind == "artifact"
        say_unused(f"nothing is planned for this {contents.kind}", {"--recipe": recipe, "--target": device})
    sums = report.totals(manifest.operators)
    data = {
        "source": str(source),
        "kind": contents.kind,
        **{key: value for key, value in manifest.to_json().items() if key not in ("operators", "format")},
        "tensors": {name: report.numbers(params) for name, params in manifest.tensors.items()},
        "operators": report.operators_json(manifest, contents.schemes),
        "totals": sums,
    }
    heading = f"{manifest.model}: {contents.kind}, target {manifest.target.get('profile', 'unknown')}"
    would = " (as the recipe plans it)" if contents.kind == "float model" else ""
    parts: list[RenderableType] = [
        report.line(heading + would, "bold"),
        "",
        report.tensors_table(manifest),
        "",
    ]
    parts += [report.operators_table(manifest, contents.schemes), ""]
    if sums["float"] and any(op.reason for op in manifest.operators):
        parts += [report.islands_table(manifest.operators), ""]
    sizes = {"weights": sums["weight_bytes"], **{name: manifest.sizes[name] for name in manifest.sha256}}
    known = ", ".join(f"{name} {report.size(count)}" for name, count in sizes.items() if count)
    parts += [report.summary(manifest.operators), report.line(known)]
    return Report(data, tuple(parts))
