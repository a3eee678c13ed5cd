"""Export the real models as .tflite and compare what LiteRT computes with the oracle and with model.so.

python scripts/tflite_equality.py [MODEL ...] [--samples 50] [--dev N] [--recipe NAME] [--target edgetpu]
[--correct-bias] [--adaptive-rounding] [--json]. Prints for each model how many output elements differ, in
how many layers (of floats: by how much), the accuracy of the file and of TFLite converter's own (int8) on
the dev set, and the sizes. Exit code 1 where integers differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import real_models
from _metrics import METRICS
from ai_edge_litert.interpreter import Interpreter
from real_models import RealModel
from tvm.ir import IRModule

from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build, io_of
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.core.recipe import Recipe, find_recipe
from tvm_qplugin.exporter import exported
from tvm_qplugin.pipeline import is_quantized
from tvm_qplugin.samples import fit_sample, inputs_of
from tvm_qplugin.simulator import Simulator
from tvm_qplugin.targets import find_profile
from tvm_qplugin.targets.devices import find_device
from tvm_qplugin.tflite.check import check
from tvm_qplugin.tflite.export import Exported
from tvm_qplugin.tflite.file import load as read


@dataclass
class Row:
    """The figures of one model; None where there is nothing to compare with."""

    model: str
    samples: int = 0
    compared: int = 0
    differs_from_oracle: int = 0
    differs_from_so: int = 0
    error: float | None = None
    layers: int = 0
    layers_that_differ: list[str] = field(default_factory=list)
    metric: str = ""
    dev_samples: int = 0
    accuracy: float = 0.0
    converter_accuracy: float | None = None
    bytes: int = 0
    mapped: int | None = None
    operators: int = 0
    not_mapped: list[str] = field(default_factory=list)
    converter_bytes: int | None = None

    @property
    def exact(self) -> bool:
        """Whether every integer is the same."""
        return not (self.differs_from_oracle or self.differs_from_so or self.layers_that_differ)


class LiteRT:
    """A .tflite with LiteRT's default kernels on one thread, images in and out as NCHW."""

    def __init__(self, data: bytes, nhwc: tuple[Sequence[bool], Sequence[bool]] | None = None) -> None:
        self._runner = Interpreter(model_content=data, num_threads=1)
        self._runner.allocate_tensors()
        self.inputs, self.outputs = self._runner.get_input_details(), self._runner.get_output_details()
        images = [[len(end["shape"]) == 4 for end in ends] for ends in (self.inputs, self.outputs)]
        self._nhwc = nhwc or images

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Outputs as the file has them, in the order of the file."""
        for end, array, flip in zip(self.inputs, arrays, self._nhwc[0], strict=True):
            shape = tuple(end["shape"])
            image = array.reshape([shape[i] for i in (0, 3, 1, 2)]).transpose(0, 2, 3, 1) if flip else array
            self._runner.set_tensor(end["index"], np.ascontiguousarray(image.reshape(shape)))
        self._runner.invoke()
        found = [self._runner.get_tensor(end["index"]) for end in self.outputs]
        flips = [*self._nhwc[1], *[False] * (len(found) - len(self._nhwc[1]))]
        return [x.transpose(0, 3, 1, 2) if flip else x for x, flip in zip(found, flips, strict=True)]

    def real(self, array: Array) -> Array:
        """The first output for real numbers, in real numbers, whatever the dtypes of the file."""
        (given, *_), (result, *_) = self.inputs, self.outputs
        scale, zero_point = given["quantization"]
        if scale:
            info = np.iinfo(given["dtype"])
            codes = np.rint(array / np.float32(scale)) + zero_point
            array = np.clip(codes, info.min, info.max).astype(given["dtype"])
        found = self.run([array])[0]
        scale, zero_point = result["quantization"]
        return (found.astype("float32") - zero_point) * np.float32(scale) if scale else found


def measure(model: RealModel, args: argparse.Namespace) -> Row:
    """Quantize, export, compare, evaluate."""
    module = quantize(
        model.path,
        recipe=_recipe(args),
        target=args.target or "host",
        calibration=model.calibration,
        limit=args.calibration,
    )
    made, row = exported(module, target=args.target), Row(model.name, metric=model.metric)
    if args.target is not None:
        found = check(read(made.data), find_device(args.target))
        row.mapped, row.operators = found.mapped, len(found.findings)
        row.not_mapped = [f"{f.operator} ({f.rule})" for f in found.findings if f.placed == "cpu"]
    if args.keep is not None:
        (args.keep / f"{model.name}.tflite").write_bytes(made.data)
    row.bytes = len(made.data)
    if is_quantized(module):
        _compare(row, model, module, made, args.samples)
        _compare_layers(row, model, module)
    else:
        _compare_floats(row, model, module, made, args.samples)
    row.accuracy, row.dev_samples = _accuracy(model, LiteRT(made.data, _layout(made)), args.dev)
    if model.tflite_path is not None:
        theirs = model.tflite_path.read_bytes()
        row.converter_bytes = len(theirs)
        row.converter_accuracy, _ = _accuracy(model, LiteRT(theirs), args.dev)
    return row


def _recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that was named, or the target's, with the steps that were asked for."""
    found = find_recipe(args.recipe or find_profile(args.target or "host").recipe)
    return replace(found, correct_bias=args.correct_bias, adaptive_rounding=args.adaptive_rounding)


def _layout(made: Exported) -> tuple[Sequence[bool], Sequence[bool]]:
    return made.nhwc_inputs, made.nhwc_outputs


def _fitted(index: int, sample: Array, module: IRModule) -> list[Array]:
    """A sample as the module takes it; integer inputs by their parameters."""
    infos, inputs = io_of(module)[0], inputs_of(module)
    grids = [QuantParams.from_json(info.qparams) if info.qparams else None for info in infos]
    given = [sample if grid is None else grid.quantize(sample) for grid in grids]
    return fit_sample(index, given, inputs)


def _compare(row: Row, model: RealModel, module: IRModule, made: Exported, samples: int) -> None:
    """Count the output elements in which LiteRT, the oracle and model.so differ."""
    lite, oracle, artifact = LiteRT(made.data, _layout(made)), Simulator(module), build(module)
    for index, (sample, _) in enumerate(model.evaluation(samples)):
        arrays = _fitted(index, sample, module)
        results = zip(lite.run(arrays), oracle.run(*arrays), artifact.run(*arrays), strict=True)
        for real, wanted, compiled in results:
            row.compared += wanted.size
            row.differs_from_oracle += int((real != wanted).sum())
            row.differs_from_so += int((real != compiled).sum())
        row.samples += 1


def _compare_floats(row: Row, model: RealModel, module: IRModule, made: Exported, samples: int) -> None:
    """The largest difference between LiteRT and ``simulate``, relative to the largest element."""
    lite, oracle = LiteRT(made.data, _layout(made)), Simulator(module)
    for index, (sample, _) in enumerate(model.evaluation(samples)):
        arrays = _fitted(index, sample, module)
        for real, wanted in zip(lite.run(arrays), oracle.run(*arrays), strict=True):
            row.compared += wanted.size
            row.error = max(row.error or 0.0, float(np.abs(real - wanted).max() / np.abs(wanted).max()))
        row.samples += 1


def _compare_layers(row: Row, model: RealModel, module: IRModule) -> None:
    """One sample, every tensor."""
    made = exported(module, every_layer=True)
    sample, _ = next(iter(model.evaluation(1)))
    arrays = _fitted(0, sample, module)
    wanted = Simulator(module).tensors(*arrays)
    results = LiteRT(made.data, _layout(made)).run(arrays)[-len(made.layers) :]
    row.layers = len(made.layers)
    row.layers_that_differ = [
        name
        for name, found in zip(made.layers, results, strict=True)
        if not np.array_equal(found, wanted[name])
    ]


def _accuracy(model: RealModel, lite: LiteRT, limit: int | None) -> tuple[float, int]:
    metric, count = METRICS[model.metric].make(), 0
    for sample, target in islice(model.evaluation(limit), limit):
        metric.add(lite.real(real_models.batched(sample).astype("float32")), target)
        count += 1
    return metric.value(), count


def text(row: Row) -> str:
    """One model as lines for people."""
    lines = [row.model, f"{row.samples} samples, {row.compared} elements: "]
    if row.error is not None:
        lines[-1] += f"at most {row.error:.2g} of the largest beside simulate"
    else:
        lines[-1] += f"{row.differs_from_oracle} differ from the oracle, {row.differs_from_so} from model.so"
        lines += [f"{row.layers} layers, {len(row.layers_that_differ)} differ {row.layers_that_differ or ''}"]
    lines += [f"{row.metric} of {row.dev_samples}: {row.accuracy:.4g}", f"{row.bytes:,} bytes"]
    if row.converter_accuracy is not None and row.converter_bytes:
        lines[-2] += f", TFLite converter's {row.converter_accuracy:.4g}"
        lines[-1] += f", {row.bytes / row.converter_bytes:.3f} x the converter's {row.converter_bytes:,}"
    if row.mapped is not None:
        lines.append(f"{row.mapped} of {row.operators} operators mapped {row.not_mapped or ''}")
    return "\n  ".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    parser.add_argument("--samples", type=int, default=50, help="samples to compare")
    parser.add_argument("--dev", type=int, help="evaluate on the first N samples of the dev set only")
    parser.add_argument("--calibration", type=int, help="calibrate with at most N samples")
    parser.add_argument("--recipe", help="a name or a JSON file; default: int8, or the target's")
    parser.add_argument("--target", help="the device that the file is for: edgetpu or ethos-u")
    parser.add_argument("--correct-bias", action="store_true", help="as `tvm-qplugin quantize` does")
    parser.add_argument("--adaptive-rounding", action="store_true", help="as `tvm-qplugin quantize` does")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the files here")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the models; 1 where anything differs."""
    args = arguments(argv)
    models = real_models.chosen(args.models)
    real_models.require_data(models)
    exact = True
    for model in models:
        row = measure(model, args)
        exact = exact and row.exact
        data: dict[str, Any] = asdict(row)
        print(json.dumps(data) if args.json else text(row), flush=True)
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
