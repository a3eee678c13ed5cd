"""RewriteHardSwish: golden modules, and how far the integers are from the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal

from tvm_qplugin.core.attrs import KERNEL
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.rewrite_hard_swish import RewriteHardSwish
from tvm_qplugin.simulator import Simulator, simulate

Expr = Any
GRID, OUT = QuantParams.of(0.05, 10), QuantParams.of(0.03, -100)
GATE = QuantParams.of(np.float32(6 / 255), -128)
op = relax.op


def module_of(body: Callable[..., Expr], grid: QuantParams = GRID, out: QuantParams = OUT) -> IRModule:
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((1, 256), grid.dtype))
    with builder.function("main", [q]):
        with builder.dataflow():
            y = body(builder.emit, builder.emit(ir.dequantize(q, grid)), out)
            result = builder.emit_output(ir.quantize(y, out))
        builder.emit_func_output(result)
    return builder.get()


def swish(emit: Callable[..., Expr], x: Expr, _out: QuantParams) -> Expr:
    gate = emit(op.clip(emit(op.add(x, relax.const(np.float32(3)))), 0.0, 6.0))
    return emit(op.multiply(emit(op.multiply(x, gate)), relax.const(np.float32(1 / 6))))


def swish_by_division(emit: Callable[..., Expr], x: Expr, _out: QuantParams) -> Expr:
    gate = emit(op.clip(emit(op.add(x, relax.const(np.float32(3)))), 0.0, 6.0))
    return emit(op.multiply(x, emit(op.divide(gate, relax.const(np.float32(6))))))


def steps(emit: Callable[..., Expr], x: Expr, out: QuantParams) -> Expr:
    def number(value: float) -> Expr:
        grid = QuantParams.of(np.float32(value / 127), 0)
        return emit(ir.dequantize(ir.const(np.full((1,), 127, "int8")), grid))

    def on_grid(value: Expr, grid: QuantParams) -> Expr:
        return emit(ir.dequantize(emit(ir.quantize(emit(value), grid)), grid))

    gate = on_grid(op.clip(emit(op.add(x, number(3.0))), 0.0, 6.0), GATE)
    product = on_grid(
        op.multiply(x, gate), QuantParams.of(out.scale * np.float32(6), out.zero_point, out.dtype)
    )
    return emit(op.multiply(product, number(1 / 6)))


@pytest.mark.parametrize("written", [swish, swish_by_division])
def test_every_step_is_quantized(written: Callable[..., Expr]) -> None:
    assert_structural_equal(RewriteHardSwish()(module_of(written)), module_of(steps))


def test_others_stay() -> None:
    module = module_of(lambda emit, x, _out: emit(op.nn.silu(x)))
    assert_structural_equal(RewriteHardSwish()(module), module)


def exact(x: Array) -> Array:
    return np.asarray(x * np.clip(x + 3, 0, 6) / 6)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_the_error_is_as_stated(dtype: str) -> None:
    codes = np.arange(256).reshape(1, 256) + np.iinfo(dtype).min
    for low, high in [(-6.0, 6.0), (-4.0, 8.0), (-1.0, 1.0), (0.0, 20.0), (-10.0, 0.5)]:
        grid = QuantParams.from_range(low, high, dtype)
        x = grid.dequantize(codes).astype("float64")
        out = QuantParams.from_range(exact(x).min(), exact(x).max(), dtype)
        module = RewriteHardSwish()(module_of(swish, grid, out))
        real = out.dequantize(simulate(module, codes.astype(dtype))[0])
        error = np.abs(real - np.clip(exact(x), *out.dequantize(np.array([codes.min(), codes.max()]))))
        assert (error <= float(out.scale) / 2 + np.abs(x) / 510 + 1e-4).all()


def test_every_step_is_integer() -> None:
    lowered = Simulator(RewriteHardSwish()(module_of(swish))).module
    calls = [value for _, value in ir.bindings(lowered["main"]) if ir.op_name(value) == "relax.call_tir"]
    assert [str(lowered[call.args[0]].attrs[KERNEL]) for call in calls] == ["qadd", "qmul", "qmul"]
