"""Files in which int8 and int16 layers meet, in LiteRT against the oracle: the same integers, exactly."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.exporter import export_tflite
from tvm_qplugin.quantizer import quantize_module


def net_of(nets: ModuleType) -> Any:
    """Two convolutions, a residual, a pool, a dense layer, softmax."""
    net = nets.Net((1, 6, 8, 8))
    first = net("Relu", net("Conv", "x", net.normal(6, 6, 3, 3), net.normal(6), pads=[1] * 4))
    second = net("Conv", first, net.normal(6, 6, 3, 3), net.normal(6), pads=[1] * 4)
    total = net("Add", first, second)
    flat = net("Flatten", net("MaxPool", total, kernel_shape=[2, 2], strides=[2, 2]))
    dense = net("Gemm", flat, net.normal(96, 10), net.normal(10))
    return net, net.floats(net("Softmax", dense, axis=1))


def quantized(net: Any, module: Any, *rules: Rule) -> Any:
    return quantize_module(
        module, recipe=Recipe("mixed", rules=rules), calibration=[net.sample(i) for i in range(3)]
    )


WIDE = "int16x8"
MIXTURES = {
    "convolutions": (Rule(op="conv2d", scheme=WIDE),),
    "all but convolutions": (Rule(scheme=WIDE), Rule(op="conv2d", scheme="int8")),
    "add": (Rule(op="add", scheme=WIDE),),
    "pool and dense": (Rule(op="max_pool2d", scheme=WIDE), Rule(op="dense", scheme=WIDE)),
    "softmax": (Rule(op="softmax", scheme=WIDE),),
    "all but softmax": (Rule(scheme=WIDE), Rule(op="softmax", scheme="int8")),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_layer(litert: Any, nets: ModuleType, mixture: str) -> None:
    net, module = net_of(nets)
    made = quantized(net, module, *MIXTURES[mixture])
    found = nets.differing(litert, made, [net.sample(4)], [net.sample(5)], every_layer=True)
    assert set(found.values()) == {0}, found
    model = litert.schema.ModelT.InitFromPackedBuf(export_tflite(made))
    kinds = litert.schema.TensorType
    types = {tensor.type for tensor in model.subgraphs[0].tensors}
    assert {kinds.INT8, kinds.INT16} <= types
    assert litert.Builtin.QUANTIZE in {code.builtinCode for code in model.operatorCodes}


def test_float_layers_are_refused_by_name(nets: ModuleType) -> None:
    net, module = net_of(nets)
    made = quantized(net, module, Rule(op="add", scheme="float"), Rule(op="dense", scheme=WIDE))
    with pytest.raises(ModelError, match=r"computed in float.*the recipe keeps it in float"):
        export_tflite(made)


def test_integer_ends_have_the_width_that_they_are_computed_in(litert: Any, nets: ModuleType) -> None:
    net, module = net_of(nets)
    made = quantized(net, module, Rule(op="softmax", scheme=WIDE))
    graph = litert.schema.ModelT.InitFromPackedBuf(export_tflite(made, io="int8")).subgraphs[0]
    kinds = litert.schema.TensorType
    assert [graph.tensors[i].type for i in graph.inputs] == [kinds.INT8]
    assert [graph.tensors[i].type for i in graph.outputs] == [kinds.INT16]
