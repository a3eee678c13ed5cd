"""Tables of unary operators against LiteRT's default kernels, for every code, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tvm import relax
from tvm.ir import IRModule
from tvm.relax import BlockBuilder

from tvm_qplugin.core import lite
from tvm_qplugin.core.qparams import Array, QuantParams, rescale_multiplier
from tvm_qplugin.passes import ir, lut

CODES = np.arange(-128, 128, dtype="int8")
LOGISTIC, TANH = QuantParams.of(1 / 256, -128), QuantParams.of(1 / 128, 0)
Grids = tuple[QuantParams, QuantParams]


def grids(seed: int, count: int, spread: float = 3.0, low: float = -9.0) -> Iterator[Grids]:
    """Pairs of grids; every third ratio of scales is a power of two, which makes ties."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        zero = np.where(rng.random(2) < 0.3, rng.choice([-128, 127], 2), rng.integers(-128, 128, 2))
        scale = np.float32(2.0 ** rng.uniform(low, -2))
        step = rng.uniform(-spread, spread)
        ratio = np.float32(2.0 ** (np.rint(step) if i % 3 == 0 else step))
        yield QuantParams.of(scale, zero[0]), QuantParams.of(scale * ratio, zero[1])


def run(lite_rt: Any, code: str, pair: Grids, options: str = "", **fields: Any) -> tuple[Array, bool]:
    ends = [lite_rt.Tensor(CODES.shape, "int8", grid.scale, int(grid.zero_point)) for grid in pair]
    ran = lite_rt.run(lite_rt.operator(code, ends[:1], ends[1:], options, **fields), CODES)
    return ran.outputs[0], ran.delegated


def table_of(build: Callable[[relax.Var], list[relax.Expr]], pair: Grids) -> Array:
    """The table that the plugin makes of an expression of one dequantized tensor."""
    builder = BlockBuilder()
    q = relax.Var("q", relax.TensorType((1, 4), "int8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            leaf = builder.emit(ir.dequantize(q, pair[0]))
            result = builder.emit_output(build(builder.emit, leaf))
        builder.emit_func_output(result)
    func = ir.main_function(IRModule(builder.get().functions))
    defined = ir.definitions(func)
    leaf, last = (next(iter(defined)), list(defined)[-1])
    while isinstance(defined[last], relax.Var):
        last = defined[last]
    return lut.table(last, leaf, defined, pair)


def swish(emit: Callable[[relax.Expr], relax.Var], x: relax.Var) -> relax.Expr:
    gate = emit(relax.op.clip(emit(relax.op.add(x, relax.const(3.0))), 0.0, 6.0))
    return emit(relax.op.multiply(x, emit(relax.op.divide(gate, relax.const(6.0)))))


UNARY: dict[str, tuple[Callable[..., Any], str, dict[str, Any]]] = {
    "RELU": (lambda emit, x: emit(relax.op.nn.relu(x)), "", {}),
    "RELU6": (lambda emit, x: emit(relax.op.clip(x, 0.0, 6.0)), "", {}),
    "LEAKY_RELU": (lambda emit, x: emit(relax.op.nn.leakyrelu(x, 0.1)), "LeakyReluOptions", {"alpha": 0.1}),
    "HARD_SWISH": (swish, "", {}),
    "EXP": (lambda emit, x: emit(relax.op.exp(x)), "ExpOptions", {}),
    "GELU": (lambda emit, x: emit(relax.op.nn.gelu(x)), "GeluOptions", {"approximate": False}),
    "GELU_TANH": (lambda emit, x: emit(relax.op.nn.gelu_tanh(x)), "GeluOptions", {"approximate": True}),
}


@pytest.mark.parametrize("name", UNARY)
def test_operators(litert: Any, name: str) -> None:
    build, options, fields = UNARY[name]
    for pair in grids(1, 40):
        expected, delegated = run(litert, name.removesuffix("_TANH"), pair, options, **fields)
        np.testing.assert_array_equal(table_of(build, pair), expected)
        assert delegated == (name == "LEAKY_RELU")


@pytest.mark.parametrize(
    ("name", "out", "function"),
    [
        ("LOGISTIC", LOGISTIC, lambda emit, x: emit(relax.op.sigmoid(x))),
        ("TANH", TANH, lambda emit, x: emit(relax.op.tanh(x))),
    ],
)
def test_fixed_outputs(litert: Any, name: str, out: QuantParams, function: Callable[..., Any]) -> None:
    for grid, _ in grids(2, 60):
        expected, delegated = run(litert, name, (grid, out))
        np.testing.assert_array_equal(table_of(function, (grid, out)), expected)
        assert delegated


@pytest.mark.parametrize("alpha", [0.3, 0.01, 1e-3, 2.5, -0.3, 1e-4])
def test_leaky_relu(litert: Any, alpha: float) -> None:
    for pair in grids(3, 60, spread=6.9):
        expected, _ = run(litert, "LEAKY_RELU", pair, "LeakyReluOptions", alpha=alpha)
        np.testing.assert_array_equal(lite.leaky_relu(alpha, *pair), expected)


def test_scales_beyond_the_delegate(litert: Any) -> None:
    seen = set()
    for pair in grids(4, 200, spread=14):
        expected, delegated = run(litert, "QUANTIZE", pair, "QuantizeOptions")
        np.testing.assert_array_equal(lite.requantized(*pair), expected)
        assert delegated == (rescale_multiplier(pair[0].scale, pair[1].scale) is not None)
        seen.add(delegated)
    assert seen == {True, False}


def test_hard_swish(litert: Any) -> None:
    for pair in grids(5, 150, spread=6.5):
        table = lite.hard_swish(*pair)
        if table is None:
            with pytest.raises(RuntimeError):
                run(litert, "HARD_SWISH", pair)
        else:
            np.testing.assert_array_equal(table, run(litert, "HARD_SWISH", pair)[0])


def test_ratios_that_make_ties(litert: Any) -> None:
    """Ratios of small integers, which float32 and float64 round to different sides."""
    rng = np.random.default_rng(5)
    for (source, _), zero in zip(grids(6, 500), rng.integers(-128, 128, 500), strict=True):
        ratio = np.float32(rng.integers(1, 40) / rng.integers(1, 40))
        pair = source, QuantParams.of(source.scale * ratio, zero)
        np.testing.assert_array_equal(lite.clipped(0.0, None, *pair), run(litert, "RELU", pair)[0])
        expected, _ = run(litert, "LEAKY_RELU", pair, "LeakyReluOptions", alpha=0.001)
        np.testing.assert_array_equal(lite.leaky_relu(0.001, *pair), expected)
