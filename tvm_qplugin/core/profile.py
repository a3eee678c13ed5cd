"""Target profiles: a device as a table that a hardware engineer can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

INT8_KINDS = frozenset(
    "conv2d dense matmul add subtract multiply maximum minimum avg_pool2d max_pool2d mean sum min concat pad "
    "reshape permute_dims strided_slice split split_item take softmax resize2d clamp prelu lut".split()
)
"""Kinds of operators with an integer kernel on every CPU; other elementwise ones are tables (``lut``)."""


@dataclass(frozen=True)
class OpCapability:
    """One kind of operator on a device, with the activation and weight dtypes that it runs in."""

    kind: str
    activations: frozenset[str] = frozenset({"int8"})
    weights: frozenset[str] = frozenset({"int8"})


@dataclass(frozen=True)
class TargetProfile:
    """What a device runs and how to make it its file.

    ``tvm`` is TVM's target as a dict ("host" values are filled in at run time), ``storage`` the dtype
    in which 8-bit activations lie in memory, ``rules`` the schedule rules (``module:function``) that are
    asked in this order, ``tunables`` those of them that have knobs to tune (functions from a call and a
    target to a ``Tunable``), ``compiler`` the C++ compiler that links (None: the host's).

    ``artifact``: what the device takes, "model.so" or "tflite". ``recipe`` and ``io`` hold where the user
    names none; ``per_channel_dense``: whether dense weights may have a scale for every output.
    ``float_passes`` rewrite a float module before calibration, ``quantized_passes`` a QDQ module
    (``module:class``, made without arguments); applied twice they change no more than applied once.
    ``fusions`` (``module:function``) tell which pairs of kernels the rules have as one, ``halos`` which
    kernels may have padding around the tensors that they read and write. ``float16``: whether the device
    has float16 arithmetic, in which models of the scheme ``fp16`` are then computed.
    """

    name: str
    description: str
    tvm: Mapping[str, Any]
    storage: str = "int8"
    rules: tuple[str, ...] = ()
    tunables: tuple[str, ...] = ()
    compiler: str | None = None
    rounding: str = "float32"
    artifact: str = "model.so"
    recipe: str = "int8"
    io: str = "float"
    per_channel_dense: bool = True
    float_passes: tuple[str, ...] = ()
    quantized_passes: tuple[str, ...] = ()
    fusions: tuple[str, ...] = ()
    halos: tuple[str, ...] = ()
    float16: bool = False
    capabilities: tuple[OpCapability, ...] = field(
        default_factory=lambda: tuple(OpCapability(kind) for kind in sorted(INT8_KINDS))
    )

    def explain(self, kind: str, dtype: str = "int8") -> str | None:
        """Why the device cannot run ``kind`` on ``dtype`` activations; None if it can."""
        known = {capability.kind: capability for capability in self.capabilities}
        capability = known.get(kind) or known.get("lut")
        if capability is None:
            return f"{self.name} has no kernel for {kind}"
        if dtype not in capability.activations:
            return f"{self.name} runs {kind} in {', '.join(sorted(capability.activations))}, not {dtype}"
        return None
