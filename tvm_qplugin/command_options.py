"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="The trained model: an ONNX, .pt2 (torch.export) or .tflite file.",
        show_default=False,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="DATA",
        help="Samples of what the model will see (100 or more are good): folder of images, .npz or .npy.",
        show_default=False,
    ),
]
Prepare = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="How images or raw values become the model's input: raw, unit (x/255), tf (x/127.5-1) or "
        "imagenet, then for example ,crop=224 or ,stretch=96x96. Default: the data is taken as it is.",
        show_default=False,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(help="Array of a .npz to use. Default: the input's name, or x.", show_default=False),
]
Samples = Annotated[int | None, typer.Option(min=1, help="Use at most this many samples.")]
Observer = Annotated[
    str | None,
    typer.Option(
        help="min_max, moving_average, percentile, entropy or least_mse.", show_default="the recipe's"
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        help="int8, int16x8, edgetpu, dynamic, fp16, weight_int8, weight_int4, or a JSON file with your own.",
        show_default="the target's",
    ),
]
Target = Annotated[
    str, typer.Option(help="Device that the model shall run on: host, x86-64-v3, edgetpu, ethos-u, ...")
]
Batch = Annotated[int | None, typer.Option(min=1, help="Size of an unknown batch dimension.")]
Layout = Annotated[Literal["NCHW", "NHWC"], typer.Option(help="How image inputs shall be given.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=1,3,224,224", help="Shape of an input whose shape is unknown.", show_default=False
    ),
]
Floats = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-float",
        "--float",
        metavar="REGEX",
        help="Keep layers in float whose output tensor matches; may be repeated. "
        "tvm-qplugin inspect MODEL lists the names.",
        show_default=False,
    ),
]
Wide = Annotated[
    list[str] | None,
    typer.Option(
        "--int16",
        metavar="REGEX",
        help="Give layers int16 activations (int16x8) whose output tensor matches, also where --keep-float "
        "does; may be repeated.",
        show_default=False,
    ),
]
Group = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="weight_int8, weight_int4: so many weights of an output share a scale; 0: all of them.",
        show_default="0 and 32",
    ),
]
OldTable = Annotated[
    Path | None, typer.Option(help="Use this calibration table instead of samples.", show_default=False)
]
