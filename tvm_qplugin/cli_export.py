"""The command ``export``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import RenderableType

from tvm_qplugin import report
from tvm_qplugin.console import step
from tvm_qplugin.inspection import read_module
from tvm_qplugin.outputs import check_file
from tvm_qplugin.report import Report
from tvm_qplugin.workflow import loading_options

if TYPE_CHECKING:
    from tvm_qplugin.tflite.writer import Value


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Directory that quantize wrote, or an ONNX or .pt2 file, float or quantized already (QDQ).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The .tflite file.", show_default=False)
    ],
    target: Annotated[
        str | None,
        typer.Option(help="Device that the file is for: edgetpu or ethos-u.", show_default="any LiteRT"),
    ] = None,
    io: Annotated[
        Literal["float", "int8", "uint8", "int16"] | None,
        typer.Option(help="dtype of inputs and outputs.", show_default="the model's, or the target's"),
    ] = None,
    per_channel_dense: Annotated[
        bool | None,
        typer.Option(
            help="Allow dense weights with many scales; the Edge TPU takes one only.",
            show_default="what the target takes",
        ),
    ] = None,
    keep_layout: Annotated[
        bool, typer.Option(help="Keep NCHW images, with TRANSPOSE; otherwise images are NHWC in the file.")
    ] = False,
    signature: Annotated[str, typer.Option(help="Key of the file's SignatureDef.")] = "serving_default",
    batch: Annotated[
        int | None, typer.Option(min=1, help="ONNX file: size of an unknown batch dimension.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=1,3,224,224",
            help="ONNX file: shape of an input whose shape is unknown.",
            show_default=False,
        ),
    ] = None,
) -> Report:
    """Write a model as a .tflite file.

    Of an int8 model LiteRT computes the same integers as model.so. Recipes dynamic and fp16 become
    dynamic-range and float16 files, a float ONNX file becomes a float32 one.

    Example:
      tvm-qplugin export quantized -o model.tflite --target edgetpu
    """
    check_file(output, "the .tflite")
    start = time.perf_counter()
    with step("importing TVM"):
        from tvm_qplugin.exporter import exported, write_whole
    with step("reading the model"):
        module = read_module(source, **loading_options(batch, "NCHW", shape))
    with step("exporting"):
        made = exported(
            module,
            target=target,
            io=io,
            per_channel_dense=per_channel_dense,
            keep_layout=keep_layout,
            signature=signature,
        )
    write_whole(output, made.data)
    seconds = time.perf_counter() - start
    ends = {"input": made.inputs, "output": made.outputs}
    rows = [_end(side, name, value) for side, group in ends.items() for name, value in group.items()]
    data = {
        "output": str(output),
        "bytes": len(made.data),
        "signature": signature,
        "inputs": [row for row in rows if row["side"] == "input"],
        "outputs": [row for row in rows if row["side"] == "output"],
        "operators": made.operators,
        "seconds": seconds,
    }
    operators = ", ".join(f"{count} {name}" for name, count in made.operators.items())
    parts: list[RenderableType] = [
        report.columns_table("", [{key: _text(row[key]) for key in row} for row in rows]),
        report.line(f"{sum(made.operators.values())} operators: {operators}"),
        report.line(f"{report.size(len(made.data))}, made in {seconds:.1f} s: {output}"),
    ]
    return Report(data, tuple(parts))


def _end(side: str, name: str, value: Value) -> dict[str, Any]:
    """One input or output of the file."""
    grid = value.grid
    return {
        "side": side,
        "name": name,
        "shape": list(value.spec.shape),
        "dtype": value.spec.dtype,
        "scale": None if grid is None else float(grid.scale),
        "zero point": None if grid is None else int(grid.zero_point),
    }


def _text(entry: Any) -> str:
    if isinstance(entry, list):
        return report.shape(tuple(entry))
    return "" if entry is None else f"{entry:.6g}" if isinstance(entry, float) else str(entry)
