"""SubPixel: a golden module, and transposed convolutions of every geometry in numbers and in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal

import tvm_qplugin as qp
from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.frontend import load
from tvm_qplugin.passes.rebuild import op_name, straight_bindings
from tvm_qplugin.passes.sub_pixel import SubPixel

op = relax.op
Expr = Any
RNG = np.random.default_rng(0)
SHAPE = (2, 4, 5, 6)


def module_of(*calls: Any) -> IRModule:
    """One call after the other on an image."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            value: Expr = x
            for call in calls[:-1]:
                value = builder.emit(call(value))
            result = builder.emit_output(calls[-1](value))
        builder.emit_func_output(result)
    return builder.get()


def weight_of(*shape: int) -> Array:
    return RNG.normal(size=shape).astype("float32")


def transposed(weight: Array, **attrs: Any) -> Any:
    return lambda x: op.nn.conv2d_transpose(x, relax.const(weight), **attrs)


def operators(module: IRModule) -> list[str]:
    return [op_name(value) for _, value in straight_bindings(module["main"])]


def test_golden() -> None:
    weight, bias = weight_of(4, 3, 2, 2), weight_of(1, 3, 1, 1)
    # A pixel of a block takes the channels of its phase, each of one tap.
    blocks = weight.transpose(2, 3, 1, 0).reshape(12, 4, 1, 1)
    expected = module_of(
        lambda x: op.nn.conv2d(x, relax.const(blocks), padding=[0, 0, 0, 0]),
        lambda x: op.add(x, relax.const(np.tile(bias, (1, 4, 1, 1)))),
        op.nn.relu,
        lambda x: op.reshape(x, (2, 1, 2, 2, 3, 5, 6)),
        lambda x: op.permute_dims(x, [0, 1, 4, 5, 2, 6, 3]),
        lambda x: op.reshape(x, (2, 3, 10, 12)),
    )
    given = transposed(weight, strides=(2, 2)), lambda x: op.add(x, relax.const(bias)), op.nn.relu
    assert_structural_equal(SubPixel()(module_of(*given)), expected)


GEOMETRIES = {
    "blocks": ((4, 3, 2, 2), {"strides": (2, 2)}),
    "overlapping": ((4, 3, 4, 4), {"strides": (2, 2), "padding": (1, 1, 1, 1)}),
    "one more row": ((4, 3, 3, 3), {"strides": (2, 2), "padding": (1,) * 4, "output_padding": (1, 1)}),
    "a row less": ((4, 3, 3, 3), {"strides": (2, 2), "padding": (1, 1, 1, 1)}),
    "uneven pads": ((4, 3, 3, 4), {"strides": (2, 1), "padding": (0, 2, 1, 1), "output_padding": (1, 0)}),
    "kernel smaller than stride": ((4, 3, 2, 1), {"strides": (3, 2)}),
    "no stride": ((4, 3, 3, 3), {"padding": (1, 1, 1, 1)}),
    "depthwise": ((4, 1, 4, 4), {"strides": (2, 2), "padding": (1, 1, 1, 1), "groups": 4}),
    "grouped": ((4, 3, 5, 5), {"strides": (3, 3), "padding": (1, 1, 1, 1), "groups": 2}),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_values_are_the_same(name: str) -> None:
    shape, attrs = GEOMETRIES[name]
    module = module_of(transposed(weight_of(*shape), **attrs))
    x = weight_of(*SHAPE)
    made = SubPixel()(module)
    assert "nn.conv2d" in operators(made)
    assert "nn.conv2d_transpose" not in operators(made)
    (found,), (wanted,) = compile_function(made)([x]), compile_function(module)([x])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_dilated_ones_stay() -> None:
    module = module_of(transposed(weight_of(4, 3, 3, 3), dilation=(2, 2)))
    assert_structural_equal(SubPixel()(module), module)


def test_what_others_read_as_well_comes_after_the_pixels() -> None:
    weight = weight_of(4, 3, 2, 2)
    module = module_of(transposed(weight, strides=(2, 2)), lambda x: op.add(x, x), op.nn.relu)
    shuffle = ["reshape", "permute_dims", "reshape"]
    assert operators(SubPixel()(module)) == ["nn.conv2d", *shuffle, "add", "nn.relu"]


def test_int8_has_no_float_operator() -> None:
    norm = [relax.const(np.abs(weight_of(6)) + 0.5) for _ in range(4)]
    module = module_of(
        transposed(weight_of(4, 6, 4, 4), strides=(2, 2), padding=(1, 1, 1, 1)),
        lambda x: op.nn.batch_norm(x, *norm, axis=1, training=False),
        lambda x: relax.TupleGetItem(x, 0),
        op.nn.relu,
        lambda x: op.nn.conv2d(x, relax.const(weight_of(5, 6, 3, 3))),
    )
    x = weight_of(*SHAPE)
    quantized = qp.quantize(load(module), calibration=[x])
    artifact = qp.build(quantized)
    assert [o.name for o in artifact.manifest.operators if not o.integer] == []
    assert sum(o.kernel == "qconv2d" for o in artifact.manifest.operators) == 2
    np.testing.assert_array_equal(artifact.run(x)[0], qp.simulate(quantized, x)[0])
