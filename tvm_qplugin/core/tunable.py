"""What can be tuned: a kernel call together with the knobs of the rule that serves it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tvm_qplugin.core.attrs import Implementation, KernelCall

Value = int | str
Knobs = Mapping[str, Value]

SPEED_PARAMS = ("strides", "padding", "dilation", "groups", "in_halo", "out_halo")


class Tunable(Protocol):
    """A call as one rule serves it, open for the values of its knobs.

    ``isa`` names the instructions that the kernel uses; ``choices`` are the values of every knob, all
    combinations at most some ten thousand. Each setting that is ``valid`` gives the oracle's results exactly.
    """

    @property
    def isa(self) -> str:
        """Name of the instruction set."""
        ...

    @property
    def choices(self) -> Mapping[str, Sequence[Value]]:
        """The values that each knob can take; never empty."""
        ...

    def default(self) -> Knobs:
        """What the rule chooses by itself."""
        ...

    def suggestions(self) -> Sequence[Knobs]:
        """Settings to measure first, the most promising first."""
        ...

    def valid(self, knobs: Knobs) -> bool:
        """Whether a kernel should be built from these values."""
        ...

    def features(self, knobs: Knobs) -> Sequence[float]:
        """What the cost model learns from: for one rule, always as many numbers."""
        ...

    def implement(self, knobs: Knobs) -> Implementation | None:
        """The kernel; None when the rule leaves the call to another one."""
        ...


def task_of(call: KernelCall, isa: str) -> str:
    """What records of a call are found by, as canonical JSON: all that decides about speed, no values."""
    params = {name: call.params[name] for name in SPEED_PARAMS if call.params.get(name)}
    specs = [[list(spec.shape), spec.dtype] for spec in (*call.args, call.out)]
    return canonical({"kernel": call.name, "specs": specs, "params": params, "isa": isa})


def is_setting(knobs: Knobs, tunable: Tunable) -> bool:
    """Whether the rule, as it is now, has these knobs and these values, and takes them together."""
    choices = tunable.choices
    known = knobs.keys() == choices.keys() and all(value in choices[name] for name, value in knobs.items())
    return known and tunable.valid(knobs)


def macs_of(call: KernelCall) -> int:
    """Multiply-adds of a convolution or dense layer."""
    outputs, halo = call.out.size, call.params.get("out_halo")
    if halo:
        n, height, width, channels = call.out.shape
        outputs = n * (height - halo[0] - halo[2]) * (width - halo[1] - halo[3]) * channels
    return outputs * math.prod(call.args[1].shape[1:])


def canonical(data: Any) -> str:
    """JSON in which equal objects have equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def is_knobs(data: Any) -> bool:
    """Whether decoded JSON has the form of a setting."""
    return isinstance(data, dict) and all(type(value) in (int, str) for value in data.values())
