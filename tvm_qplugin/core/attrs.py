"""Where passes and schedules meet: the tags on PrimFuncs and what they mean.

A *kernel* is a PrimFunc in destination-passing style (inputs, constants, output) with two attributes:
``qplugin.kernel``, its name, and ``qplugin.params``, a JSON object of its parameters. The numpy
reference of every name stands in ``core/oracle.py``; that file documents arguments and parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tvm_qplugin.core.qparams import Array

KERNEL = "qplugin.kernel"
PARAMS = "qplugin.params"
MERGED = "merged"
"""The kernel tag of a function that runs several kernels; parameter ``dtype``: operands of the largest."""

ANNOTATION = "qplugin.annotation"
REPORT = "qplugin.report"
"""Attribute of a lowered ``main``: its operators, a JSON list; ``variable``: what one is bound to."""

INSTRUCTION = "qplugin.instruction"
"""Attribute of a scheduled kernel: the instruction that it multiplies with."""

TUNED = "qplugin.tuned"
"""Attribute of a scheduled kernel whose knobs come from a tuning record."""

MEMBERS = "qplugin.members"
"""Attribute of a lowered ``main``: the variables that a float kernel stands for, by the last of them."""

CALLS = "qplugin.calls"
"""Attribute of a fused ``main``: for each call of a function its name and the variables that it computes."""
STEPS = "qplugin.steps"
"""Attribute of ``main``: tensors of unrolled cells by name, and for each what it is in every step."""

SCHEME = "qplugin.scheme"
"""Attribute of ``main``: how the constants of a module that computes in float are stored.

"fp16": as float16 behind ``R.astype``. "dynamic": weights as int8 behind ``R.dequantize``, and the inputs
of their layers are to be quantized at run time. "weight_int8", "weight_int4": weights of dense layers as
arguments of the kernel ``wexpand`` (``core/grouped.py``), and nothing else is quantized.
"""

DYNAMIC = "qplugin.dynamic"
"""Attribute of ``main``: names of products of two tensors, both to be quantized at run time; a JSON list."""

DYNAMIC_LAYERS = "qplugin.dynamic_layers"
"""Attribute of a QDQ ``main``: names of layers whose inputs are to be quantized at run time; a JSON list."""

Params = Mapping[str, Any]


@dataclass(frozen=True)
class TensorSpec:
    """Static shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        total = 1
        for extent in self.shape:
            total *= extent
        return total


@dataclass(frozen=True)
class KernelCall:
    """One call of a kernel: what a schedule rule sees.

    ``constants`` holds the values of those arguments that are known at compile time, by index.
    """

    name: str
    params: Params
    args: tuple[TensorSpec, ...]
    out: TensorSpec
    constants: Mapping[int, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Implementation:
    """A rule's answer: a scheduled PrimFunc and its arguments.

    Each argument is the index of one of the call's arguments, or a constant packed for the kernel.
    """

    func: Any
    args: tuple[int | Array, ...]


def encode_params(params: Params) -> str:
    """Parameters as canonical JSON, so that equal kernels get equal tags."""
    return json.dumps(dict(params), sort_keys=True)


def decode_params(text: str) -> dict[str, Any]:
    """The inverse of ``encode_params``."""
    data: dict[str, Any] = json.loads(text)
    return data
