"""Limits for the tables of devices: each function makes one, with its words and its remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tvm_qplugin.core.device_rules import Limit, Op, TensorLike
from tvm_qplugin.core.qparams import Array

NAME_LENGTH = 32


def called(tensor: TensorLike) -> str:
    """A tensor's name, short enough for a message: converters join the names of what they fused."""
    name = tensor.name.split(";")[0]
    return name if len(name) <= NAME_LENGTH else f"...{name[-NAME_LENGTH:]}"


def activations_in(dtypes: Sequence[str], quantized: bool = True, exempt: Sequence[str] = ()) -> Limit:
    """Activations of these types; integer ones with scale and zero point if ``quantized``.

    ``exempt`` operators put out indices: only their inputs count.
    """
    names = " or ".join(dtypes)

    def broken(op: Op) -> str | None:
        count = len(op.activations) - len(op.outputs) * (op.name in exempt)
        for tensor in op.activations[:count]:
            if tensor.dtype not in dtypes:
                return f"{called(tensor)} is {tensor.dtype}"
            if quantized and "float" not in tensor.dtype and tensor.quant is None:
                return f"{called(tensor)} has no scale"
        return None

    text = f"activations are {names}" + (" with scale and zero point" if quantized else "")
    return Limit(text, broken, "quantize the model to full int8 (`tvm-qplugin quantize`)", dtype=True)


def weights_in(dtypes: Sequence[str], index: int = 1) -> Limit:
    """The weight has one of these types."""

    def broken(op: Op) -> str | None:
        weight = op.inputs[index] if index < len(op.inputs) else None
        return f"{called(weight)} is {weight.dtype}" if weight and weight.dtype not in dtypes else None

    text = f"weights are {' or '.join(dtypes)}"
    return Limit(text, broken, "quantize the model to full int8 (`tvm-qplugin quantize`)", dtype=True)


def static_sizes() -> Limit:
    """No dimension is open, but for a batch that the file proposes a size for."""

    def broken(op: Op) -> str | None:
        for tensor in op.activations:
            if -1 in tensor.shape or any(tensor.unknown):  # dimension 0 is the batch
                return f"{called(tensor)} has an open size: {_text(tensor.shape)}"
        return None

    return Limit("tensor sizes are constant", broken, "export the model with a fixed shape and batch 1")


def three_innermost() -> Limit:
    """Only the three innermost dimensions exceed 1."""

    def broken(op: Op) -> str | None:
        wide = [t for t in op.activations if any(extent != 1 for extent in t.shape[:-3])]
        return f"{called(wide[0])} has shape {_text(wide[0].shape)}" if wide else None

    return Limit("only the three innermost dimensions exceed 1", broken, "use batch 1")


def rank_at_most(rank: int) -> Limit:
    """No tensor has more dimensions."""

    def broken(op: Op) -> str | None:
        tensors = [t for t in (*op.inputs, *op.outputs) if t is not None]
        deep = [t for t in tensors if len(t.shape) > rank]
        return f"{called(deep[0])} has {len(deep[0].shape)} dimensions" if deep else None

    return Limit(f"at most {rank} dimensions", broken, "merge dimensions with a reshape")


def batch_one() -> Limit:
    """Images have batch 1."""

    def broken(op: Op) -> str | None:
        many = [t for t in op.activations if len(t.shape) == 4 and t.shape[0] != 1]
        return f"{called(many[0])} has batch {many[0].shape[0]}" if many else None

    return Limit("batch 1", broken, "export the model with batch 1")


def per_tensor_activations(per_axis: Sequence[str]) -> Limit:
    """Scales per channel only in these operators."""

    def broken(op: Op) -> str | None:
        tensors = [t for t in (*op.inputs, *op.outputs) if t is not None and t.quant is not None]
        found = [t for t in tensors if t.quant is not None and t.quant.axis is not None]
        return f"{called(found[0])} has a scale per channel" if found and op.name not in per_axis else None

    text = f"scales per channel only in {', '.join(per_axis)}"
    return Limit(text, broken, "quantize this operator per tensor")


def constant(*indices: int) -> Limit:
    """These inputs are stored in the file (or left out)."""

    def broken(op: Op) -> str | None:
        computed = [op.inputs[i] for i in indices if i < len(op.inputs) and op.constant(i) is None]
        names = [called(tensor) for tensor in computed if tensor is not None]
        return f"{names[0]} is computed" if names else None

    return Limit("parameters are constant", broken, "fold the parameter into a constant before the export")


def fused_activation_in(*names: str) -> Limit:
    """The fused activation is one of these ("NONE" for none at all)."""

    def broken(op: Op) -> str | None:
        given = str(op.options.get("fused_activation_function", "NONE"))
        return f"has {given} fused" if given not in names else None

    text = "no fused activation" if names == ("NONE",) else f"fused activation is {', '.join(names)}"
    return Limit(text, broken, "write the activation as an operator of its own")


def one_scale(index: int = 1) -> Limit:
    """The weight has one scale for all channels."""

    def broken(op: Op) -> str | None:
        weight = op.inputs[index] if index < len(op.inputs) else None
        if weight is None or weight.quant is None or weight.quant.axis is None:
            return None
        return f"{called(weight)} has {weight.quant.scale.size} scales"

    hint = 'quantize this layer per tensor: a rule {"op": "dense", "per_channel": false} in the recipe'
    return Limit("weights have one scale", broken, hint)


def version_at_most(version: int) -> Limit:
    """The operator's version in the file is not newer."""

    def broken(op: Op) -> str | None:
        return f"has version {op.version}" if op.version > version else None

    text = f"version of the operator at most {version}"
    return Limit(text, broken, "write the file with `tvm-qplugin export`, which uses old versions")


def option_in(option: str, values: Sequence[object], hint: str = "", text: str = "") -> Limit:
    """An option has one of these values."""

    def broken(op: Op) -> str | None:
        given = op.options.get(option, values[0])
        return f"{option} is {given}" if given not in values else None

    return Limit(text or f"{option} is {' or '.join(map(str, values))}", broken, hint)


def options_between(low: int, high: int, *options: str, hint: str = "") -> Limit:
    """Options lie within a range."""

    def broken(op: Op) -> str | None:
        wrong = [name for name in options if not low <= op.options.get(name, low) <= high]
        return f"{wrong[0]} is {op.options[wrong[0]]}" if wrong else None

    return Limit(f"{' and '.join(options)} from {low} to {high}", broken, hint)


def equal_options(first: str, second: str, text: str, hint: str = "") -> Limit:
    """Two options are the same."""

    def broken(op: Op) -> str | None:
        a, b = op.options.get(first, 1), op.options.get(second, 1)
        return f"{first} is {a}, {second} is {b}" if a != b else None

    return Limit(text, broken, hint)


def when(condition: Callable[[Op], bool], limit: Limit, text: str) -> Limit:
    """A limit that counts only under a condition."""
    return replace(limit, text=text, broken=lambda op: limit.broken(op) if condition(op) else None)


def where(text: str, broken: Callable[[Op], str | None], hint: str = "") -> Limit:
    """A limit in its own words."""
    return Limit(text, broken, hint)


def one_dimensional(side: str, elements: int | None = None) -> Limit:
    """Only the last dimension of the "input" or "output" exceeds 1, and it has at most so many elements."""

    def broken(op: Op) -> str | None:
        tensor = op.inputs[0] if side == "input" else op.outputs[0]
        if tensor is None:
            return None
        if any(extent != 1 for extent in tensor.shape[:-1]):
            return f"{called(tensor)} has shape {_text(tensor.shape)}"
        count = math.prod(tensor.shape)
        return f"{called(tensor)} has {count} elements" if elements and count > elements else None

    text = f"{side} is 1-D" + (f" with at most {elements} elements" if elements else "")
    return Limit(text, broken, "reshape so that only the last dimension exceeds 1")


def axes_not(which: str, index: int | None = 1, option: str = "axis") -> Limit:
    """The axes (a constant input, or an option) leave out the "batch", or are "x/y" only."""

    def broken(op: Op) -> str | None:
        rank = len(op.outputs[0].shape) if index is None else max(len(op.shape(0)), len(op.shape(1)))
        axes = axes_of(op, index, option, rank)
        wrong = [a for a in axes if a == 0] if which == "batch" else [a for a in axes if a in (0, rank - 1)]
        return f"works on axis {wrong[0]} of {rank}" if wrong and rank > 1 else None

    text = "not along the batch dimension" if which == "batch" else "along x and y only"
    return Limit(text, broken, "move the data to another axis, or use batch 1 and reshape")


def axes_of(op: Op, index: int | None, option: str, rank: int) -> tuple[int, ...]:
    """Axes counted from the front."""
    given = op.options.get(option, 0) if index is None else op.constant(index)
    return tuple(int(a) % max(rank, 1) for a in np.ravel([] if given is None else given))


def last_dim_multiple(factor: int) -> Limit:
    """A reduction along z needs a multiple of channels."""

    def broken(op: Op) -> str | None:
        rank, depth = len(op.shape(0)), op.shape(0)[-1] if op.shape(0) else 1
        reduced = rank - 1 in axes_of(op, 1, "axis", rank)
        return f"reduces {depth} channels" if reduced and depth % factor else None

    return Limit(
        f"a reduction along z has a multiple of {factor} channels", broken, "pad the channels with 0"
    )


def spatial_at_most(elements: int, text: str, hint: str) -> Limit:
    """At most so many elements in y and x of an image."""

    def broken(op: Op) -> str | None:
        count = math.prod(op.shape(0)[1:3]) if len(op.shape(0)) == 4 else 0
        return f"reduces {op.shape(0)[1]}x{op.shape(0)[2]}" if count > elements else None

    return Limit(text, broken, hint)


def pads_not(which: str) -> Limit:
    """Padding (input 1) leaves out the "batch", or is along "x/y" only."""

    def broken(op: Op) -> str | None:
        pads = op.constant(1)
        if pads is None or len(op.shape(0)) < 2:
            return None
        axes = (0,) if which == "batch" else (0, len(pads) - 1)
        wrong = [axis for axis in axes if np.any(pads[axis])]
        return f"pads axis {wrong[0]} by {pads[wrong[0]].tolist()}" if wrong else None

    text = "not the batch dimension" if which == "batch" else "pads x and y only"
    return Limit(text, broken, "pad another axis, or pad before the model")


def weight_sum_at_most(limit: int) -> Limit:
    """The absolute weights of each output channel, without their zero points, sum to at most ``limit``."""

    def broken(op: Op) -> str | None:
        weight = op.inputs[1] if len(op.inputs) > 1 else None
        if weight is None or weight.data is None:
            return None
        largest = int(_channel_sums(op, weight, weight.data).max(initial=0))
        return f"{called(weight)} sums to {largest}" if largest > limit else None

    return Limit(f"absolute weights of a channel sum to at most {limit}", broken, "split the layer's input")


def _channel_sums(op: Op, weight: TensorLike, data: Array) -> Array:
    zero = 0 if weight.quant is None else int(weight.quant.zero_point.reshape(-1)[0])
    values = np.abs(data.astype("int64") - zero)
    axis = values.ndim - 1 if op.name == "DEPTHWISE_CONV_2D" else 0
    return values.sum(axis=tuple(i for i in range(values.ndim) if i != axis))


def kernel_at_most(height: int, area: int) -> Limit:
    """The kernel of a convolution is at most so high, and has at most so many taps."""

    def broken(op: Op) -> str | None:
        h, w = op.shape(1)[1:3] if len(op.shape(1)) == 4 else (1, 1)
        return f"has a kernel of {h}x{w}" if h > height or h * w > area else None

    return Limit(f"kernel height 1 to {height}, height x width at most {area}", broken, "use smaller kernels")


def _text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
