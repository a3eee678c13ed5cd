"""Write the networks of TensorFlow Lite's table of hosted models as ONNX, with random weights.

python scripts/model_zoo.py [NAME ...] [-o DIR]. The architectures are those of the papers as TF-Slim
builds them: sizes and multiplications are right, classes mean nothing. Batch norms are nodes of their own.
The same bytes every time.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from _zoo_graph import Graph, Tensor

CLASSES = 1001
MOBILENET_V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
# expansion, channels, repetitions, stride of the first
MOBILENET_V2 = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
# channels of the bottleneck, units, stride of the last
RESNET_V2_101 = ((64, 3, 2), (128, 4, 2), (256, 23, 2), (512, 3, 1))
Kernel = int | tuple[int, int]


def _relu6(g: Graph, x: Tensor, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> Tensor:
    return g.relu(g.batch_norm(g.conv(x, channels, kernel, stride, groups=groups)), 6.0)


def mobilenet_v1(size: int = 224) -> onnx.ModelProto:
    """MobileNet v1 1.0 (Howard et al. 2017): 4.2 M weights, 569 M MACs at 224."""
    g = Graph("mobilenet_v1", size, 1)
    x = _relu6(g, g.input, 32, 3, 2)
    for channels, stride in MOBILENET_V1:
        x = _relu6(g, x, x.shape[1], 3, stride, groups=x.shape[1])
        x = _relu6(g, x, channels, 1)
    return g.classifier(x, CLASSES)


def mobilenet_v2(size: int = 224) -> onnx.ModelProto:
    """MobileNet v2 1.0 (Sandler et al. 2018): 3.5 M weights, 300 M MACs at 224."""
    g = Graph("mobilenet_v2", size, 2)
    x = _relu6(g, g.input, 32, 3, 2)
    for expansion, channels, repetitions, stride in MOBILENET_V2:
        for i in range(repetitions):
            x = _inverted(g, x, expansion, channels, stride if i == 0 else 1)
    return g.classifier(_relu6(g, x, 1280, 1), CLASSES)


def _inverted(g: Graph, x: Tensor, expansion: int, channels: int, stride: int) -> Tensor:
    """The inverted residual: expand, depthwise, project without activation."""
    inner = x.shape[1] * expansion
    out = _relu6(g, x, inner, 1) if expansion > 1 else x
    out = _relu6(g, out, inner, 3, stride, groups=inner)
    out = g.batch_norm(g.conv(out, channels, 1))
    return g.add(x, out) if stride == 1 and x.shape[1] == channels else out


def inception_v3(size: int = 299) -> onnx.ModelProto:
    """Inception v3 (Szegedy et al. 2015) without its second classifier: 23.8 M weights, 5.7 G MACs at 299."""
    g = Graph("inception_v3", size, 3)
    x = _chain(g, g.input, (32, 3, 2), (32, 3), padding="VALID")
    x = g.max_pool(_chain(g, x, (64, 3)), 3, 2, "VALID")
    x = g.max_pool(_chain(g, x, (80, 1), (192, 3), padding="VALID"), 3, 2, "VALID")
    for pooled in (32, 64, 64):
        x = _mixed(g, x, [[(64, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)]], pooled)
    x = _reduced(g, x, [[(384, 3)], [(64, 1), (96, 3), (96, 3)]])
    for c in (128, 160, 160, 192):
        tall, wide = (c, (7, 1)), (c, (1, 7))
        long = [(c, 1), tall, wide, tall, (192, (1, 7))]
        x = _mixed(g, x, [[(192, 1)], [(c, 1), wide, (192, (7, 1))], long], 192)
    x = _reduced(g, x, [[(192, 1), (320, 3)], [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)]])
    for _ in range(2):
        x = _widest(g, x)
    return g.classifier(x, CLASSES)


def _chain(
    g: Graph, x: Tensor, *layers: tuple[int, Kernel] | tuple[int, int, int], padding: str = "SAME"
) -> Tensor:
    """Layers of (channels, kernel, stride), each with batch norm and relu."""
    for channels, kernel, *stride in layers:
        x = g.relu(g.batch_norm(g.conv(x, channels, kernel, *stride, padding=padding)))
    return x


def _mixed(g: Graph, x: Tensor, branches: Sequence[Sequence[tuple[int, Kernel]]], pooled: int) -> Tensor:
    """Branches side by side, and one that averages."""
    parts = [_chain(g, x, *branch) for branch in branches]
    return g.concat([*parts, _chain(g, g.average_pool(x, 3), (pooled, 1))])


def _reduced(g: Graph, x: Tensor, branches: Sequence[Sequence[tuple[int, Kernel]]]) -> Tensor:
    """Branches whose last layers halve the picture, and one of the largest."""
    parts = []
    for *first, (channels, kernel) in branches:
        inner = _chain(g, x, *first)
        parts.append(g.relu(g.batch_norm(g.conv(inner, channels, kernel, 2, padding="VALID"))))
    return g.concat([*parts, g.max_pool(x, 3, 2, "VALID")])


def _widest(g: Graph, x: Tensor) -> Tensor:
    """The last modules: branches that end in a row and a column."""
    parts = [_chain(g, x, (320, 1))]
    for branch in ([(384, 1)], [(448, 1), (384, 3)]):
        inner = _chain(g, x, *branch)
        parts += [_chain(g, inner, (384, (1, 3))), _chain(g, inner, (384, (3, 1)))]
    return g.concat([*parts, _chain(g, g.average_pool(x, 3), (192, 1))])


def resnet_v2_101(size: int = 299) -> onnx.ModelProto:
    """ResNet v2 101 (He et al. 2016): 44.5 M weights, 13.4 G MACs at 299."""
    g = Graph("resnet_v2_101", size, 4)
    x = g.max_pool(g.conv(g.input, 64, 7, 2, padding=3, bias=True), 3, 2)
    for channels, units, stride in RESNET_V2_101:
        for i in range(units):
            x = _bottleneck(g, x, channels, stride if i == units - 1 else 1)
    return g.classifier(g.relu(g.batch_norm(x)), CLASSES)


def _bottleneck(g: Graph, x: Tensor, channels: int, stride: int) -> Tensor:
    """A residual unit with batch norm and relu before the weights."""
    before = g.relu(g.batch_norm(x))
    if x.shape[1] != 4 * channels:
        shortcut = g.conv(before, 4 * channels, 1, stride, bias=True)
    else:
        shortcut = x if stride == 1 else g.max_pool(x, 1, stride)
    out = _chain(g, before, (channels, 1))
    out = g.relu(g.batch_norm(g.conv(out, channels, 3, stride, padding=1)))
    return g.add(shortcut, g.conv(out, 4 * channels, 1, bias=True))


@dataclass(frozen=True)
class Network:
    """``build(size)`` makes it; ``size``: of the input; ``megabytes``: of TFLite's float file."""

    build: Callable[[int], onnx.ModelProto]
    size: int
    megabytes: float


ZOO = {
    "mobilenet_v1": Network(mobilenet_v1, 224, 16.9),
    "mobilenet_v2": Network(mobilenet_v2, 224, 14.0),
    "inception_v3": Network(inception_v3, 299, 95.3),
    "resnet_v2_101": Network(resnet_v2_101, 299, 178.2),
}


def write(name: str, folder: Path) -> Path:
    """Write NAME.onnx as a whole or not at all."""
    network = ZOO[name]
    data = network.build(network.size).SerializeToString(deterministic=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    temporary = folder / f".{path.name}.{secrets.token_hex(4)}"
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Write the networks and say what they are."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(ZOO)}")
    parser.add_argument("-o", "--out", type=Path, default=Path("."), metavar="DIR")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in ZOO]
    if unknown:
        parser.error(f"no network {', '.join(unknown)}; they are: {', '.join(ZOO)}")
    for name in args.names or ZOO:
        path = write(name, args.out)
        macs = next(int(p.value) for p in onnx.load(path).metadata_props if p.key == "macs")
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {macs / 1e6:,.0f} million MACs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
