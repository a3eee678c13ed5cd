"""Products of two activations: their plans, golden lowering, and the simulator's integers on this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.builder import build
from tvm_qplugin.core.fixed_point import quantize_multiplier, reduced_factors
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.quantize_dynamic import QuantizeDynamic
from tvm_qplugin.passes.select_kernels import kernel_of
from tvm_qplugin.simulator import simulate

A, B, OUT = QuantParams.of(0.5, 3), QuantParams.of(0.25, -7), QuantParams.of(0.75, 9)
A16, B16, OUT16 = (QuantParams.of(scale, 0, "int16") for scale in (2.0**-9, 2.0**-11, 2.0**-5))
SHAPES = ((2, 5, 32), (2, 32, 16))


def product(a: QuantParams, b: QuantParams, out: QuantParams) -> IRModule:
    """``quantize(dequantize(a) @ dequantize(b))`` of integer inputs."""
    bb = relax.BlockBuilder()
    params = [
        relax.Var(name, relax.TensorType(shape, grid.dtype))
        for name, shape, grid in zip("ab", SHAPES, (a, b), strict=True)
    ]
    with bb.function("main", params):
        with bb.dataflow():
            reals = [bb.emit(ir.dequantize(q, grid)) for q, grid in zip(params, (a, b), strict=True)]
            real = bb.emit(relax.op.matmul(*reals), "y")
            result = bb.emit_output(bb.emit(ir.quantize(real, out), "y_q"))
        bb.emit_func_output(result)
    return bb.get()


def kernels(mod: IRModule) -> dict[str, Any]:
    lowered = LowerInteger()(mod)
    found = [kernel_of(lowered, value) for _, value in ir.bindings(lowered["main"])]
    return {kernel.name: dict(kernel.params) for kernel in found if kernel is not None}


def test_bytes() -> None:
    ratio = quantize_multiplier(0.125 / 0.75)
    grids = {"a_zp": 3, "b_zp": -7, "out_zp": 9, "lo": -128, "hi": 127, "multiplier": list(ratio)}
    assert kernels(product(A, B, OUT)) == {"qmatmul": grids}


def test_bytes_to_int16() -> None:
    found = kernels(product(A, B, OUT16))["qmatmul"]
    assert (found["out_zp"], found["lo"], found["hi"]) == (0, -32768, 32767)


def test_int16() -> None:
    factor, shift = reduced_factors(2.0**-15)
    bounds = {"out_zp": 0, "lo": -32768, "hi": 32767}
    expected = {"qmatmul16": {**bounds, "factor": int(factor), "shift": int(shift)}}
    assert kernels(product(A16, B16, OUT16)) == expected


@pytest.mark.parametrize(
    "grids", [(A, B16, OUT16), (A16, B16, OUT), (A16, B16, QuantParams.of(2.0**-30, 0, "int16"))]
)
def test_others_stay_in_float(grids: tuple[QuantParams, QuantParams, QuantParams]) -> None:
    assert not {"qmatmul", "qmatmul16"} & set(kernels(product(*grids)))


@I.ir_module
class Named:
    @R.function
    def main(a: R.Tensor((3, 32), "float32"), b: R.Tensor((32, 16), "float32")) -> R.Tensor(
        (3, 16), "float32"
    ):
        R.func_attr({"qplugin.dynamic": '["y"]'})
        with R.dataflow():
            y = R.matmul(a, b)
            R.output(y)
        return y


def test_products_of_floats_that_are_named() -> None:
    assert kernels(Named) == {"dmatmul": {}}
    assert "qplugin.dynamic" not in LowerInteger()(Named)["main"].attrs
    bare = ir.with_main_attr(Named, "qplugin.dynamic", None)
    assert kernels(bare) == {}


@pytest.mark.parametrize("grids", [(A, B, OUT), (A, B, OUT16), (A16, B16, OUT16)])
def test_an_artifact_computes_what_the_simulator_does(grids: tuple[QuantParams, ...]) -> None:
    module, rng = product(*grids), np.random.default_rng(0)
    codes = [
        rng.integers(*INTEGER_RANGE[grid.dtype], shape).astype(grid.dtype)
        for shape, grid in zip(SHAPES, grids[:2], strict=True)
    ]
    artifact = build(module)
    np.testing.assert_array_equal(artifact.run(*codes)[0], simulate(module, *codes)[0])
    (operator,) = [op for op in artifact.manifest.operators if op.macs]
    assert (operator.op, operator.integer, operator.macs) == ("matmul", True, 2 * 5 * 16 * 32)


def test_an_artifact_of_floats_does_so_too() -> None:
    module = tvm.transform.Sequential([QuantizeDynamic()])(ir.with_main_attr(Named, "qplugin.dynamic", None))
    rng = np.random.default_rng(1)
    arrays: list[Array] = [rng.normal(size=shape).astype("float32") for shape in ((3, 32), (32, 16))]
    artifact = build(module)
    np.testing.assert_array_equal(artifact.run(*arrays)[0], simulate(module, *arrays)[0])
    (operator,) = artifact.manifest.operators
    assert (operator.op, operator.kernel, operator.integer) == ("matmul", "dmatmul", True)
