"""Exported files before other judges: another project's reader, and all of LiteRT's kernel sets."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tvm_qplugin import demo
from tvm_qplugin.api import quantize
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.exporter import export_tflite, exported
from tvm_qplugin.tflite.export import Exported
from tvm_qplugin.tflite.file import TfliteModel, TfliteOperator, load

ROUNDED = {
    *("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "MEAN", "QUANTIZE"),
    *("RESIZE_BILINEAR", "LEAKY_RELU"),
}
"""Operators whose result may differ by a step between kernel sets; all others are the same in all."""


def made(nets: ModuleType, name: str, io: str) -> Exported:
    net = nets.Net()
    return exported(net.module(nets.NETS[name](net)), io=io)


def codes(file: Exported) -> Array:
    (given,) = file.inputs.values()
    return np.random.default_rng(0).integers(-128, 128, given.spec.shape).astype("int8")


def compare(litert: Any, data: bytes, x: Array) -> dict[str, int]:
    """The largest difference of every kernel set from the default one."""
    sets = {"builtin": litert.BUILTIN, "reference": litert.REFERENCE}
    wanted = litert.run(data, x).outputs
    found = {}
    for name, resolver in sets.items():
        ran = litert.run(data, x, resolver=resolver)
        assert not ran.delegated
        pairs = zip(ran.outputs, wanted, strict=True)
        found[name] = max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in pairs)
    return found


def test_all_kernel_sets_run_it(litert: Any, nets: ModuleType, net_name: str) -> None:
    """One step for each operator that rounds; exactly the same where nothing is rounded."""
    file = made(nets, net_name, "int8")
    steps = sum(count for code, count in file.operators.items() if code in ROUNDED)
    found = compare(litert, file.data, codes(file))
    if "SUM" in file.operators:  # LiteRT's reference kernel adds codes and does not rescale them
        del found["reference"]
    assert all(difference <= steps for difference in found.values()), (found, file.operators)


def test_kernel_sets_do_differ(litert: Any, nets: ModuleType) -> None:
    """Or else the test above says nothing."""
    file = made(nets, "resize bilinear", "int8")
    assert compare(litert, file.data, codes(file)) == {"builtin": 1, "reference": 1}


def test_the_demo_in_all_kernel_sets(litert: Any) -> None:
    data = export_tflite(quantize(demo.model_path(), calibration=demo.calibration()[:20], io="int8"))
    images = np.random.default_rng(0).integers(-128, 128, (20, 1, 8, 8, 1)).astype("int8")
    for image in images:
        assert max(compare(litert, data, image).values()) <= 4


@pytest.mark.parametrize("io", ["float", "int8", "uint8"])
def test_another_reader_sees_the_same(
    litert: Any, foreign: ModuleType, nets: ModuleType, net_name: str, io: str
) -> None:
    data = made(nets, net_name, io).data
    assert foreign.Model.ModelBufferHasIdentifier(data, 0)
    model, ours = foreign.Model.GetRootAsModel(data, 0), load(data)
    assert (model.Version(), model.SubgraphsLength(), model.SignatureDefsLength()) == (3, 1, 1)
    graph = model.Subgraphs(0)
    assert graph.InputsAsNumpy().tolist() == list(ours.inputs)
    assert graph.OutputsAsNumpy().tolist() == list(ours.outputs)
    assert graph.TensorsLength() == len(ours.tensors) and graph.OperatorsLength() == len(ours.operators)
    for index in range(graph.TensorsLength()):
        _tensor(foreign, model, graph.Tensors(index), ours, index)
    for index, operator in enumerate(ours.operators):
        _operator(foreign, model, graph.Operators(index), operator)


def _tensor(foreign: ModuleType, model: Any, theirs: Any, ours: TfliteModel, index: int) -> None:
    """Name, shape, type, grid and data."""
    tensor = ours.tensors[index]
    types = {number: name.lower() for name, number in vars(foreign.TensorType).items() if name.isupper()}
    shape = tuple(theirs.ShapeAsNumpy()) if theirs.ShapeLength() else ()
    assert (theirs.Name().decode(), shape, types[theirs.Type()]) == (tensor.name, tensor.shape, tensor.dtype)
    grid = theirs.Quantization()
    assert (grid is None or not grid.ScaleLength()) == (tensor.quant is None)
    if tensor.quant is not None:
        np.testing.assert_array_equal(grid.ScaleAsNumpy(), np.atleast_1d(tensor.quant.scale))
        np.testing.assert_array_equal(grid.ZeroPointAsNumpy(), np.atleast_1d(tensor.quant.zero_point))
        assert grid.QuantizedDimension() == (tensor.quant.axis or 0)
    stored = model.Buffers(theirs.Buffer())
    assert (stored.DataLength() > 0) == (tensor.data is not None)
    if tensor.data is not None:
        assert stored.DataAsNumpy().tobytes() == tensor.data.tobytes()


def _operator(foreign: ModuleType, model: Any, theirs: Any, ours: TfliteOperator) -> None:
    """Code, version, tensors and every option that this reader knows."""
    code = model.OperatorCodes(theirs.OpcodeIndex())
    assert (foreign.opcode2name(code.BuiltinCode()), code.Version()) == (ours.name, ours.version)
    assert code.DeprecatedBuiltinCode() == min(code.BuiltinCode(), 127)
    assert theirs.InputsAsNumpy().tolist() == list(ours.inputs)
    assert theirs.OutputsAsNumpy().tolist() == list(ours.outputs)
    kinds = {number: name for name, number in vars(foreign.BuiltinOptions).items() if name[0] != "_"}
    kind = kinds[theirs.BuiltinOptionsType()]
    if kind == "NONE":
        return
    table = getattr(foreign, kind)()
    table.Init(theirs.BuiltinOptions().Bytes, theirs.BuiltinOptions().Pos)
    for name, option in ours.options.items():
        read = getattr(table, re.sub(r"(?:^|_)([a-z])", lambda m: m[1].upper(), name), None)
        if read is not None and isinstance(option, int | float):
            assert read() == option, (kind, name)
