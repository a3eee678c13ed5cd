"""Win back accuracy with a few samples: weights rounded together, biases that correct mean errors.

Both go layer after layer through the quantized model, each layer seeing what the changed ones before it
deliver, and need no labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array
from tvm_qplugin.core.rounding import round_compensated
from tvm_qplugin.core.spec import REDUCED
from tvm_qplugin.layer_walk import Adjust, Layer, LayerWalk
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import group
from tvm_qplugin.passes.correct_bias import CorrectBias
from tvm_qplugin.passes.insert_observers import InsertObservers
from tvm_qplugin.passes.round_adaptively import RoundAdaptively
from tvm_qplugin.progress import progress_bar
from tvm_qplugin.samples import Reservoir, Sample, fit_sample, inputs_of
from tvm_qplugin.stored_walk import StoredWalk

ROWS, ROWS_PER_INPUT = 4096, 16
"""A layer's second moments are taken from so many of its outputs: the larger of these, the second times K."""

SAMPLES = 256
MEMORY = 2**30
"""At most so many samples, and about so many bytes of activations, are used."""

_CLAMPS = ("relax.nn.relu", "relax.clip")


def reservoir_for(module: IRModule) -> Reservoir:
    """Keeps as many samples for ``recover`` as are of use and fit into memory."""
    specs = [ir.spec_of(var) for var in _tensors(module)]
    inputs = 4 * sum(item.spec.size for item in inputs_of(module))
    largest = 3 * max((spec.size for spec in specs), default=0)
    return Reservoir(min(SAMPLES, max(MEMORY // max(inputs + largest, 1), 1)))


def _tensors(module: IRModule) -> Iterator[relax.Var]:
    func = ir.main_function(module)
    return (var for var in ir.definitions(func) if isinstance(var.ty, relax.TensorType))


@dataclass(frozen=True)
class FloatLayer:
    """What a layer is in float: its weight as in the float module, its mean output before activation [O]."""

    weight: Array
    mean: Array


def recover(
    quantized: IRModule,
    module: IRModule,
    samples: Sequence[Sample],
    *,
    adaptive_rounding: bool = False,
    correct_bias: bool = True,
    progress: bool = False,
) -> IRModule:
    """The QDQ module with int8 weights and int32 biases closer to the float model's results.

    ``module``: the canonical float module that ``quantized`` (float inputs) was made from. ``samples`` as for
    calibration, all in memory at once: 50 are useful, 200 better. ``adaptive_rounding``: see
    ``core/rounding.py``. ``correct_bias``: every layer gets the mean output that it has in float (Nagel
    et al., Data-Free Quantization, arXiv 1906.04721, appendix D). Layers in float stay as they
    are. Raises CalibrationError without samples, or for those that do not fit.
    """
    arrays = _arrays(module, samples)
    walk = LayerWalk(quantized, arrays)
    weights, shifts = dict[str, Array](), dict[str, Array]()
    adjust = _adjust(walk, module, arrays, adaptive_rounding, correct_bias)
    for old, new in _walked(walk, adjust, progress):
        weights[new.name], shifts[new.name] = new.weight, new.bias.astype("int64") - old.bias
    passes = [RoundAdaptively(weights)] * adaptive_rounding + [CorrectBias(shifts)] * correct_bias
    return tvm.transform.Sequential(passes if weights else [])(quantized)


def recover_stored(
    stored: IRModule,
    module: IRModule,
    samples: Sequence[Sample],
    *,
    adaptive_rounding: bool = False,
    correct_bias: bool = True,
    progress: bool = False,
) -> IRModule:
    """As ``recover``, for a module that computes in float with int8 weights: its biases are float32."""
    arrays = _arrays(module, samples)
    walk = StoredWalk(stored, arrays)
    adjust = _adjust(walk, module, arrays, adaptive_rounding, correct_bias)
    changed = [new for _, new in _walked(walk, adjust, progress)]
    return walk.module() if changed else stored


def _arrays(module: IRModule, samples: Sequence[Sample]) -> list[list[Array]]:
    if not samples:
        raise CalibrationError("recovering accuracy needs samples, and none were given: 50 or more are good")
    inputs = inputs_of(module)
    return [fit_sample(index, sample, inputs) for index, sample in enumerate(samples)]


def _adjust(
    walk: LayerWalk,
    module: IRModule,
    arrays: Sequence[list[Array]],
    adaptive_rounding: bool,
    correct_bias: bool,
) -> Adjust:
    """What is done to each layer of a walk."""
    names = [layer.name for layer in walk.layers.values()]
    floats = float_layers(module, names, arrays) if names else {}

    def adjust(layer: Layer, values: list[Array]) -> Layer:
        if adaptive_rounding:
            layer = replace(layer, weight=_rounded(layer, values, floats[layer.name]))
        return replace(layer, bias=_corrected(layer, values, floats[layer.name])) if correct_bias else layer

    return adjust


def _walked(walk: LayerWalk, adjust: Adjust, progress: bool) -> Iterator[tuple[Layer, Layer]]:
    with progress_bar(progress, walk.layers, label="recover accuracy", unit="layers") as advance:
        for pair in walk.run(adjust) if walk.layers else ():
            yield pair
            advance()


def float_layers(
    module: IRModule, layers: Sequence[str], samples: Sequence[list[Array]]
) -> dict[str, FloatLayer]:
    """Weights and mean outputs of layers, by the names of their outputs."""
    func = ir.main_function(module)
    defined = {var.name: value for var, value in ir.bindings(func)}
    found = {op.output: op.members for op in group(func)}
    before = {name: _before_clamp(found[name], defined) for name in layers}
    means = _channel_means(module, list(before.values()), samples)
    weights = {name: ir.const_value(defined[found[name][0]].args[1]) for name in layers}
    return {name: FloatLayer(w, means[before[name]]) for name, w in weights.items() if w is not None}


def _before_clamp(members: Sequence[str], defined: Mapping[str, relax.Expr]) -> str:
    return [name for name in members if ir.op_name(defined[name]) not in _CLAMPS][-1]


def _channel_means(
    module: IRModule, names: Sequence[str], samples: Sequence[list[Array]]
) -> dict[str, Array]:
    """The mean of tensors over samples and all axes but the last."""
    total = {name: np.zeros(()) for name in names}
    run = compile_function(tvm.transform.Sequential([InsertObservers(tuple(names))])(module), merge=False)
    for arrays in samples:
        for name, value in zip(names, run(arrays)[-len(names) :], strict=True):
            total[name] = total[name] + value.mean(tuple(range(value.ndim - 1)), dtype="float64")
    return {name: value / len(samples) for name, value in total.items()}


def _corrected(layer: Layer, values: list[Array], wanted: FloatLayer) -> Array:
    """The bias with which the mean of the accumulator is that of the float layer; float32 where it was."""
    mean = sum(value.astype("float64") for value in values) / len(values)
    patch = layer.per_group(layer.patches(np.asarray(mean)).mean(0, "float64", keepdims=True))[:, 0]
    acc = np.einsum("gok,gk->go", layer.rows(layer.weight).astype("float64"), patch).reshape(-1)
    if layer.bias.dtype == "float32":
        return np.asarray(wanted.mean - layer.scale * acc, "float32")
    exact = np.rint(wanted.mean / layer.unit - acc)
    return np.clip(exact, *INTEGER_RANGE["int32"]).astype(layer.bias.dtype)


def _rounded(layer: Layer, values: list[Array], wanted: FloatLayer) -> Array:
    """The float weight rounded anew, for the inputs that the quantized layer gets."""
    real = wanted.weight.T if layer.dense else wanted.weight
    codes = real.reshape(len(real), -1).astype("float64") / layer.scale[:, None]
    count = max(ROWS, ROWS_PER_INPUT * layer.weight[0].size) // len(values)
    choose = np.random.default_rng(0)
    patches = np.concatenate([layer.patches(value, max(count, 1), choose) for value in values])
    bound = REDUCED if np.abs(layer.weight.astype("int16")).max() <= REDUCED else INTEGER_RANGE["int8"][1]
    rows = layer.per_group(patches)
    rows = rows - rows.mean(1, keepdims=True)
    parts = [
        round_compensated(part, seen.T @ seen, bound)
        for part, seen in zip(layer.rows(codes), rows, strict=True)
    ]
    return np.concatenate(parts).reshape(layer.weight.shape).astype("int8")
