"""Files of one UNIDIRECTIONAL_SEQUENCE_LSTM with random weights, in float and in int8."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvm_qplugin.core.qparams import Array

EMPTY = (0,)
GATE_INPUTS = {"input": slice(1, 5), "recurrent": slice(5, 9), "bias": slice(12, 16)}


@dataclass(frozen=True)
class Lstm:
    """One case: sizes, and for int8 the scales and zero points of input and output."""

    batch: int = 1
    steps: int = 7
    inputs: int = 5
    cells: int = 6
    quantized: bool = True
    in_scale: float = 0.03
    in_zp: int = -11
    out_scale: float = 1 / 128
    out_zp: int = 0
    cell_exponent: int = -12
    cell_clip: float = 0.0
    gain: float = 1.0
    seed: int = 0

    def with_(self, **changed: Any) -> Lstm:
        """The same with other fields."""
        return replace(self, **changed)


def weights(case: Lstm) -> dict[str, list[Array]]:
    """Floats of every gate in the order of the file: input, forget, cell, output."""
    rng = np.random.default_rng(case.seed)
    shapes = {
        "input": (case.cells, case.inputs),
        "recurrent": (case.cells, case.cells),
        "bias": (case.cells,),
    }
    return {
        key: [case.gain * rng.uniform(-1, 1, shape).astype("float32") for _ in range(4)]
        for key, shape in shapes.items()
    }


def file_of(
    lite: Any,
    case: Lstm,
    extra: dict[int, Any] | None = None,
    code: str = "UNIDIRECTIONAL_SEQUENCE_LSTM",
    **options: Any,
) -> bytes:
    """The file; ``extra`` puts other tensors (None: none) into slots of the operator."""
    tensors: dict[str, Any] = {"x": _activation(lite, case, (case.batch, case.steps, case.inputs), True)}
    slots = [""] * 24
    slots[0] = "x"
    for kind, arrays in weights(case).items():
        for gate, array in enumerate(arrays):
            slot = GATE_INPUTS[kind].start + gate
            tensors[f"{kind}{gate}"] = _constant(lite, case, kind, array, tensors.get(f"input{gate}"))
            slots[slot] = f"{kind}{gate}"
    tensors |= _states(lite, case)
    slots[18:20] = "hidden", "cell"
    for slot, tensor in (extra or {}).items():
        slots[slot] = "" if tensor is None else f"extra{slot}"
        tensors |= {} if tensor is None else {f"extra{slot}": tensor}
    tensors = {name: tensor for name, tensor in tensors.items() if name in slots}
    tensors["y"] = _activation(lite, case, (case.batch, case.steps, case.cells), False)
    middle = tuple(f"intermediate{i}" for i in range(5)) if case.quantized else ()
    for name in middle:
        tensors[name] = replace(tensors["y"], shape=EMPTY)
    fields = {"fusedActivationFunction": 4, "cellClip": case.cell_clip, "timeMajor": False, **options}
    kind = "".join(part.title() for part in code.split("_")[:2]) + "LSTMOptions"
    node = lite.Node(getattr(lite.Builtin, code), tuple(slots), ("y",), kind, fields, 1, middle)
    return bytes(lite.write(tensors, [node], ["x"], ["y"]))


def _activation(lite: Any, case: Lstm, shape: tuple[int, ...], source: bool) -> Any:
    if not case.quantized:
        return lite.Tensor(shape, "float32")
    grid = (case.in_scale, case.in_zp) if source else (case.out_scale, case.out_zp)
    return lite.Tensor(shape, "int8", *grid)


def _constant(lite: Any, case: Lstm, kind: str, array: Array, weight: Any) -> Any:
    if not case.quantized:
        return lite.constant(array, "float32")
    if kind == "bias":
        scale = np.float32(case.in_scale) * np.float32(weight.scale)
        return lite.constant(np.rint(array / scale), "int32", scale)
    scale = np.float32(np.abs(array).max() / 127)
    return lite.constant(np.rint(array / scale), "int8", scale)


def _states(lite: Any, case: Lstm) -> dict[str, Any]:
    shape = (case.batch, case.cells)
    hidden = replace(_activation(lite, case, shape, False), variable=True)
    kind = ("int16", 2.0**case.cell_exponent) if case.quantized else ("float32", None)
    return {"hidden": hidden, "cell": lite.Tensor(shape, *kind, variable=True)}
