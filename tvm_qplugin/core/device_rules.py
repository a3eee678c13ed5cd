"""What a device runs, as tables of rules: a row for each operator, a limit for each thing it must be.

Operators bear the names of TensorFlow Lite's schema. ``core/device_limits.py`` makes limits,
``targets/edgetpu.py`` and its neighbours are the tables, ``tflite/check.py`` applies them to a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tvm_qplugin.core.qparams import Array, QuantParams


class TensorLike(Protocol):
    """What rules know of a tensor; ``data`` is None unless it is a constant."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def quant(self) -> QuantParams | None: ...  # noqa: D102
    @property
    def data(self) -> Array | None: ...  # noqa: D102
    @property
    def unknown(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def variable(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Op:
    """One operator with its tensors; an optional input left out is None."""

    name: str
    options: Mapping[str, Any]
    inputs: tuple[TensorLike | None, ...]
    outputs: tuple[TensorLike, ...]
    version: int = 1

    @property
    def activations(self) -> tuple[TensorLike, ...]:
        """Everything that is computed: inputs that are neither constant nor state, and outputs."""
        given = [t for t in self.inputs if t is not None and t.data is None and not t.variable]
        return (*given, *self.outputs)

    def constant(self, index: int) -> Array | None:
        """The values of an input; None if it is computed or left out."""
        tensor = self.inputs[index] if index < len(self.inputs) else None
        return None if tensor is None else tensor.data

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an input; () if it is left out."""
        tensor = self.inputs[index] if index < len(self.inputs) else None
        return () if tensor is None else tensor.shape


@dataclass(frozen=True)
class Limit:
    """Something an operator must be: ``broken`` says how it is not, or None if all is well.

    ``hint`` is what would change it. ``dtype``: the data type is at fault, devices have words for that.
    """

    text: str
    broken: Callable[[Op], str | None]
    hint: str = ""
    dtype: bool = False


@dataclass(frozen=True)
class OpRule:
    """A row of a table: the operator's name in the schema, and its limits.

    ``runtime``: the version that is needed at least (0: any). ``older``: limits that hold below the
    version beside them. ``caution``: what is published too vaguely to decide; the operator
    counts as mapped, with the limit's words as a note.
    """

    name: str
    limits: tuple[Limit, ...] = ()
    runtime: int = 0
    older: tuple[tuple[Limit, int], ...] = ()
    caution: Limit | None = None


@dataclass(frozen=True)
class Words:
    """What the device's own compiler prints for each outcome."""

    mapped: str
    unsupported: str
    dtype: str
    limited: str
    after_cut: str = ""
    activations: str = ""


@dataclass(frozen=True)
class DeviceRules:
    """A device as a table.

    ``everywhere`` holds for every operator. ``one_subgraph``: after the first operator that does not
    map, nothing maps. ``on_chip_bytes``: memory for parameters (None: no such limit). ``runtimes``: the
    oldest and the newest version of its runtime or compiler (``versioned``: what it is called), ``older``:
    limits for every operator below a version. ``rewrites``: what to write instead of an operator
    without a row. ``source`` says where the rows come from.
    """

    name: str
    title: str
    source: str
    prediction: str
    words: Words
    everywhere: tuple[Limit, ...]
    rows: tuple[OpRule, ...]
    rewrites: Mapping[str, str] = field(default_factory=dict)
    default_rewrite: str = "cut the model before it and run the rest on the CPU"
    one_subgraph: bool = False
    on_chip_bytes: int | None = None
    runtimes: tuple[int, int] = (0, 0)
    versioned: str = "runtime"
    older: tuple[tuple[Limit, int], ...] = ()

    def row(self, name: str) -> OpRule | None:
        """The row of an operator."""
        return next((row for row in self.rows if row.name == name), None)
