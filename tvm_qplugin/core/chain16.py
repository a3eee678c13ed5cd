"""``qchain16``: elementwise kernels of int16 that follow each other, computed element by element as one.

Parameters: ``shape`` of the output and ``nodes``, each with ``kernel``, ``params``, ``dtype``, ``args``. An
argument is ``["node", n]``, what an earlier node gives; ``["arg", n, offset]``, elements of an array of the
call from ``offset`` on, in the order of memory; or ``["arg", n]``, a table. The last node is the output.
``vectorized`` of a node counts from the chain's first element.

| kernel | as |
|---|---|
| requantize16, qadd16, qmul16 | ``oracle16.py``, on tensors of one size |
| qlut | ``oracle.py``, of int16; its second argument is the table |
| logistic16, tanh16 | ``interpolated.py`` on ``scale``; the second argument is ``gate_table()`` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from tvm_qplugin.core import interpolated
from tvm_qplugin.core.attrs import Params
from tvm_qplugin.core.oracle16 import ORACLE16
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array

CHAIN = "qchain16"
LARGEST_FACTOR = 2**15 - 1
"""Of ``interpolated.distance_factor``, so that what it gives fits int32."""

Node = Mapping[str, Any]
GATES: dict[str, Callable[[Array, float], Array]] = {
    "logistic16": interpolated.logistic,
    "tanh16": interpolated.tanh,
}


@cache
def gate_table() -> Array:
    """Entries of ``interpolated.sigmoid_table``, the way to the next in the upper half: int32 [256]."""
    table = interpolated.sigmoid_table()
    steps = np.diff(table, append=table[-1])
    return np.asarray(steps * 2**16 + table).astype("int64").astype("int32")


def gate_of(table: Array, scale: float) -> str | None:
    """The gate that gives ``table`` [65536] of codes on ``scale``, if ``gate_table`` can serve it."""
    if scale in (interpolated.Q3_12, 2 * interpolated.Q3_12):
        return None
    if interpolated.distance_factor(scale)[0] > LARGEST_FACTOR:
        return None
    codes = np.arange(-(2**15), 2**15)
    return next((name for name in GATES if np.array_equal(_gate(name, codes, scale), table)), None)


def _gate(name: str, codes: Array, scale: float) -> Array:
    return np.clip(GATES[name](codes.astype("int64"), scale), -(2**15), 2**15 - 1)


def qchain16(p: Params, *arrays: Array, dtype: str) -> Array:
    """The last node's values."""
    size, values = int(np.prod(p["shape"])), list[Array]()

    def operand(ref: Sequence[Any]) -> Array:
        return values[ref[1]] if ref[0] == "node" else arrays[ref[1]].reshape(-1)[ref[2] : ref[2] + size]

    for node in p["nodes"]:
        values.append(_value(node, operand, arrays))
    return values[-1].astype(dtype).reshape(p["shape"])


def _value(node: Node, operand: Callable[[Sequence[Any]], Array], arrays: Sequence[Array]) -> Array:
    kernel, first = str(node["kernel"]), operand(node["args"][0])
    if kernel in GATES:
        return _gate(kernel, first, node["params"]["scale"])
    if kernel == "qlut":
        lowest = INTEGER_RANGE[str(first.dtype)][0]
        return np.asarray(arrays[node["args"][1][1]][first.astype("int64") - lowest])
    return ORACLE16[kernel](node["params"], *map(operand, node["args"]), node["dtype"])
