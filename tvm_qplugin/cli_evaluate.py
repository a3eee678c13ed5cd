"""The command ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tvm_qplugin import report
from tvm_qplugin.console import bar, step
from tvm_qplugin.data import Source, open_labelled, open_samples
from tvm_qplugin.inspection import kind_of, load_artifact
from tvm_qplugin.report import Report

if TYPE_CHECKING:
    from tvm_qplugin.artifact import Artifact


def evaluate(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="Directory that build wrote.", show_default=False)
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="DATA",
            help="Folder of images with labels.csv (file,class_index), or a .npz with labels in y.",
            show_default=False,
        ),
    ],
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", help="As in quantize, for example imagenet,crop=224.", show_default=False
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="Array of a .npz with the samples. Default: the input's name, or x.", show_default=False
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Use at most this many samples.")] = None,
    labels_offset: Annotated[
        int, typer.Option(help="Added to every label: 1 for a model whose class 0 is the background.")
    ] = 0,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="ONNX or .pt2 file or artifact to compare with on the same samples: the float model.",
            show_default=False,
        ),
    ] = None,
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="The data has no labels: only compare with --reference.")
    ] = False,
) -> Report:
    """Measure the accuracy of an artifact on labelled data, and how near it is to a reference.

    Agreement is the share of samples with the same arg-max, SQNR the signal-to-noise ratio of the first
    output in dB: both show small differences better than accuracy does.

    Example:
      tvm-qplugin evaluate artifact --data test.npz --reference model.onnx
    """
    if no_labels and reference is None:
        raise typer.BadParameter("without labels there must be a --reference", param_hint="--no-labels")
    if reference is not None:
        kind_of(reference)
    with step("loading the artifact"):
        loaded = load_artifact(artifact)
    pairs = _open(data, loaded, preprocess, key, not no_labels)
    other = None if reference is None else _reference(reference, loaded)
    from tvm_qplugin.evaluate import evaluate as measure

    count = len(pairs)
    with bar("evaluating", min(count, samples or count)) as advance:
        found = measure(
            loaded,
            pairs,
            labelled=not no_labels,
            reference=other,
            labels_offset=labels_offset,
            limit=samples,
            advance=advance,
        )
    rows = [{"": "samples", "value": str(found.samples)}]
    if found.accuracy is not None:
        rows.append({"": "top-1 accuracy", "value": report.percent(found.accuracy)})
    if found.agreement is not None:
        if found.reference_accuracy is not None:
            rows.append(
                {"": "top-1 accuracy of the reference", "value": report.percent(found.reference_accuracy)}
            )
        sqnr = "no difference" if found.sqnr_db is None else f"{found.sqnr_db:.1f} dB"
        rows += [
            {"": "same arg-max as the reference", "value": report.percent(found.agreement)},
            {"": "SQNR against the reference", "value": sqnr},
        ]
    result = {"artifact": str(artifact), "data": str(data), **found.to_json()}
    return Report(result, (report.columns_table(loaded.manifest.model, rows),))


def _open(
    data: Path, artifact: Artifact, preprocess: str | None, key: str | None, labelled: bool
) -> Source[Any]:
    names = [info.name for info in artifact.manifest.inputs]
    if labelled:
        return open_labelled(data, names, preprocess, key=key)
    return cast(Source[Any], open_samples(data, names, preprocess, key=key))


def _reference(path: Path, artifact: Artifact) -> Artifact:
    """An artifact, or an ONNX file compiled as it is with the inputs in the artifact's layout."""
    from tvm_qplugin.builder import build
    from tvm_qplugin.frontend import load

    if kind_of(path) == "artifact":
        return load_artifact(path)
    with step("compiling the reference"):
        if kind_of(path) == "stage":
            from tvm_qplugin.stage import load_module

            return build(load_module(path))
        wanted = [info.shape for info in artifact.manifest.inputs]
        batch = wanted[0][0] if wanted and wanted[0] else None
        for layout in ("NCHW", "NHWC"):
            module = load(path, batch=batch, input_layout=layout)
            found = build(module)
            if [info.shape for info in found.manifest.inputs] == wanted:
                break
        return found
