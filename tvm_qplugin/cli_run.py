"""The command ``run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zipfile import BadZipFile

import numpy as np
import typer
from numpy.lib.npyio import NpzFile
from PIL import Image
from rich.console import RenderableType

from tvm_qplugin import report
from tvm_qplugin.console import step
from tvm_qplugin.core.errors import InputError, QPluginError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.data import IMAGES
from tvm_qplugin.inspection import load_artifact
from tvm_qplugin.outputs import check_file, write_arrays
from tvm_qplugin.preprocess import Preprocess, as_preprocess
from tvm_qplugin.report import Report

if TYPE_CHECKING:
    from tvm_qplugin.artifact import Artifact


def run(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="Directory that build wrote.", show_default=False)
    ],
    inputs: Annotated[
        list[Path],
        typer.Option(
            "--input",
            help=".npy, .npz (arrays named like the inputs) or an image; repeat for each input.",
            show_default=False,
        ),
    ],
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", help="As in quantize, for example imagenet,crop=224.", show_default=False
        ),
    ] = None,
    index: Annotated[
        int | None,
        typer.Option(help="The files hold many samples: take this one (from 0).", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Save the outputs as .npz.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the largest values to show.")] = 5,
) -> Report:
    """Run an artifact on one sample and show the largest values of each output.

    Where the model takes or gives integers, real numbers are quantized on the way in, and shown.

    Examples:
      tvm-qplugin run artifact --input photo.jpg --preprocess tf,crop=224
      tvm-qplugin run artifact --input samples.npz --index 3 --output result.npz
    """
    check_file(output, "the outputs")
    with step("loading the artifact"):
        loaded = load_artifact(artifact)
    from tvm_qplugin.evaluate import to_real, to_wire

    infos = loaded.manifest.inputs
    arrays = _sample(inputs, loaded, preprocess, index)
    given = [to_wire(info, array) for info, array in zip(infos, arrays, strict=True)]
    results = loaded.run(*given)
    if output is not None:
        names = [info.name for info in loaded.manifest.outputs]
        write_arrays(dict(zip(names, results, strict=True)), output)
    data: dict[str, Any] = {"artifact": str(artifact), "outputs": []}
    parts: list[RenderableType] = []
    for info, result in zip(loaded.manifest.outputs, results, strict=True):
        best = _largest(to_real(info, result), top)
        data["outputs"].append(
            {"name": info.name, "shape": list(result.shape), "dtype": str(result.dtype), "top": best}
        )
        rows = [{"index": ", ".join(map(str, b["index"])), "value": f"{b['value']:.6g}"} for b in best]
        title = f"{info.name}  {report.shape(result.shape)} {result.dtype}"
        parts.append(report.columns_table(title, rows))
    if output is not None:
        data["saved"] = str(output)
        parts.append(report.line(f"saved: {output}"))
    return Report(data, tuple(parts))


def _sample(files: list[Path], artifact: Artifact, preprocess: str | None, index: int | None) -> list[Array]:
    """The arrays of one sample, in the shapes and dtypes of the artifact's inputs."""
    from tvm_qplugin.evaluate import Predictor
    from tvm_qplugin.samples import fit_sample

    wanted = Predictor(artifact).inputs
    values: dict[str, Array] = {}
    for file in files:
        free = [item.original for item in wanted if item.original not in values]
        values |= _read(file, free, as_preprocess(preprocess))
    for item in wanted:
        if item.original in values:
            values[item.original] = _row(values[item.original], item.spec.shape, index)
    return fit_sample(index or 0, values, wanted)


def _read(file: Path, free: list[str], how: Preprocess | None) -> dict[str, Array]:
    """The arrays of a file by input name: ``free`` are the names that no file has given yet."""
    if not file.is_file():
        raise InputError(f"{file} {_WHAT[file.is_dir()]}: give a .npy, a .npz or an image")
    if not free:
        raise InputError(f"{file}: all inputs are given already; give one file for each input")
    try:
        if file.suffix.lower() in IMAGES:
            with Image.open(file) as image:
                return {free[0]: np.asarray(image.convert("RGB")) if how is None else how.image(image)}
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            arrays = {free[0]: content}
        else:
            with content:
                arrays = _named(file, content, free)
    except (OSError, ValueError, EOFError, SyntaxError, BadZipFile, Image.DecompressionBombError) as error:
        if isinstance(error, QPluginError):
            raise
        raise InputError(f"{file} is not a sound .npy, .npz or image ({error}): save it again") from None
    return arrays if how is None else {name: how.array(array) for name, array in arrays.items()}


def _named(file: Path, content: NpzFile, free: list[str]) -> dict[str, Array]:
    """The arrays of a .npz that have the names of inputs; else ``x``, else the only one."""
    names = [name for name in free if name in content.files]
    if names:
        return {name: content[name] for name in names}
    other = "x" if "x" in content.files else content.files[0] if len(content.files) == 1 else None
    if other is None or len(free) > 1:
        raise InputError(
            f"{file} holds {', '.join(content.files) or 'nothing'}; expected arrays named {', '.join(free)}: "
            "rename them, or save each as a .npy"
        )
    return {free[0]: content[other]}


def _row(array: Array, shape: tuple[int, ...], index: int | None) -> Array:
    """The sample ``index`` of an array whose first axis counts samples; None: the array is one sample."""
    if index is None:
        many = array.ndim == len(shape) and array.shape[0] > 1 and array.shape[1:] == shape[1:]
        if many and array.shape != shape:
            raise InputError(f"the file holds {array.shape[0]} samples: choose one with --index")
        return array
    if array.ndim == 0 or not 0 <= index < array.shape[0]:
        count = array.shape[0] if array.ndim else 1
        raise InputError(f"--index {index}: the file holds {count} samples, counted from 0")
    return np.asarray(array[index])


def _largest(output: Array, count: int) -> list[dict[str, Any]]:
    """Position and value of the largest elements, the largest first."""
    flat = output.reshape(-1)
    order = np.argsort(-flat.astype("float64"), kind="stable")[:count]
    shape = [extent for extent in output.shape if extent != 1] or [1]
    return [
        {"index": [int(i) for i in np.unravel_index(position, shape)], "value": flat[position].item()}
        for position in order
    ]


_WHAT = {False: "does not exist", True: "is a directory"}
