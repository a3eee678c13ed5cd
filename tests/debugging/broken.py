"""A small classifier, and ways to break one layer of it that leave the float model as it is."""

from typing import Any

import numpy as np
from tvm import IRModule, relax

from tvm_qplugin.core.calibration import CalibrationTable, TensorRange
from tvm_qplugin.core.qparams import Array

SHAPE = (1, 8, 8, 3)
LAYOUT = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}
FACTOR = 100


def samples(count: int, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(rng.normal(0, 1, 3), 1, SHAPE).astype("float32") for _ in range(count)]


def classifier(channel: float = 1, outlier: float = 1) -> IRModule:
    """conv a, conv b, residual c, conv d, mean, dense g.

    ``channel``: one channel of ``b`` is so many times larger, and d's weights for it as many times
    smaller; ``outlier``: one output of ``d`` has weights so many times larger, and g's are as many times
    smaller (with one scale for all weights the other outputs then vanish).
    """
    rng = np.random.default_rng(3)
    bb, op = relax.BlockBuilder(), relax.op
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    weight = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])) for name, shape in _SHAPES.items()}
    bias = {name: rng.normal(size=shape[0]) * 0.2 for name, shape in _SHAPES.items()}
    weight["b"][0] *= channel
    bias["b"][0] *= channel
    weight["d"][..., 0] /= channel
    weight["d"][1] *= outlier
    bias["d"][1] *= outlier
    weight["g"][:, 1] /= outlier

    def layer(value: Any, name: str) -> Any:
        kernel = relax.const(weight[name].astype("float32"))
        value = bb.emit(op.nn.conv2d(value, kernel, padding=[1] * 4, **LAYOUT), f"{name}_conv")
        value = bb.emit(op.add(value, relax.const(bias[name].astype("float32"))), f"{name}_sum")
        return bb.emit(op.nn.relu(value), name)

    with bb.function("main", [x]):
        with bb.dataflow():
            b = layer(layer(x, "a"), "b")
            pooled = bb.emit(op.nn.max_pool2d(b, [2, 2], [2, 2], layout="NHWC"), "c")
            mean = bb.emit(op.mean(layer(pooled, "d"), [1, 2]), "f")
            out = bb.emit_output(op.matmul(mean, relax.const(weight["g"].T.astype("float32"))), "g")
        bb.emit_func_output(out)
    return bb.get()


_SHAPES = {"a": (8, 3, 3, 3), "b": (8, 3, 3, 8), "d": (12, 3, 3, 8), "g": (5, 12)}


def stretched(table: CalibrationTable, name: str) -> CalibrationTable:
    """A table in which the range of one tensor is a hundred times too wide."""
    old = table.ranges[name]
    wide = TensorRange(old.low * FACTOR, old.high * FACTOR, old.observer, old.count)
    return CalibrationTable(table.model_hash, table.samples, {**table.ranges, name: wide})
