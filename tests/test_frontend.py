"""The frontend against onnxruntime: one small model per operator, whole models, quantized models."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tvm
from onnx import helper, numpy_helper
from onnxruntime import quantization
from tvm import IRModule, relax

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.frontend import check_canonical, load
from tvm_qplugin.passes.rebuild import op_name, outputs_of, shape_of, straight_bindings, value_of

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


def rand(*shape: int) -> Array:
    return RNG.normal(size=shape).astype("float32")


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    weights: Mapping[str, Any],
    outputs: Sequence[str] = ("y",),
    opset: int = 13,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(module: IRModule, *inputs: Array) -> list[Array]:
    vm = relax.VirtualMachine(tvm.compile(module, target=tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    out = vm["main"](*[tvm.runtime.tensor(x) for x in inputs])
    return [t.numpy() for t in ([out] if hasattr(out, "numpy") else out)]


def reference(model: onnx.ModelProto, *inputs: Array) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return list(session.run(None, {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)}))


def same_as_reference(model: onnx.ModelProto, *inputs: Array, atol: float = 1e-4) -> IRModule:
    module = load(model)
    check_canonical(module)
    for expected, actual in zip(reference(model, *inputs), run(module, *inputs), strict=True):
        assert expected.shape == actual.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=atol)
    return module


def operators(module: IRModule) -> list[str]:
    return [op_name(value) for _, value in straight_bindings(module["main"])]


IMAGE = (1, 4, 9, 7)
CONV = {"w": rand(6, 4, 3, 3), "b": rand(6)}
# operator, inputs beside x, attributes, weights, opset
SINGLE: dict[str, tuple[str, list[str], dict[str, Any], dict[str, Any], int]] = {
    "conv": ("Conv", ["w", "b"], {"pads": [1, 0, 2, 1], "strides": [2, 1]}, CONV, 13),
    "conv dilated": ("Conv", ["w"], {"pads": [2, 2, 2, 2], "dilations": [2, 2]}, CONV, 11),
    "conv same upper": ("Conv", ["w", "b"], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, CONV, 9),
    "conv same lower": ("Conv", ["w", "b"], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, CONV, 9),
    "conv valid": ("Conv", ["w", "b"], {"auto_pad": "VALID"}, CONV, 9),
    "conv grouped": ("Conv", ["w", "b"], {"group": 2}, {"w": rand(6, 2, 3, 3), "b": rand(6)}, 13),
    "depthwise": ("Conv", ["w", "b"], {"group": 4}, {"w": rand(8, 1, 3, 3), "b": rand(8)}, 13),
    "conv transpose": ("ConvTranspose", ["w"], {"strides": [2, 2]}, {"w": rand(4, 3, 2, 2)}, 13),
    "max pool": ("MaxPool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, {}, 12),
    "max pool ceil": ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, {}, 12),
    "max pool dilated": ("MaxPool", [], {"kernel_shape": [2, 2], "dilations": [2, 3]}, {}, 12),
    "average pool": ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {}, 11),
    "average pool ceil": (
        "AveragePool",
        [],
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
        {},
        19,
    ),
    "average pool pad counted": (
        "AveragePool",
        [],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        {},
        11,
    ),
    "average pool same": ("AveragePool", [], {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}, {}, 11),
    "global average": ("GlobalAveragePool", [], {}, {}, 13),
    "global max": ("GlobalMaxPool", [], {}, {}, 13),
    "mean": ("ReduceMean", [], {"axes": [2, 3], "keepdims": 0}, {}, 13),
    "mean of channels": ("ReduceMean", [], {"axes": [1], "keepdims": 1}, {}, 13),
    "mean opset 18": ("ReduceMean", ["axes"], {}, {"axes": np.array([-1, -2])}, 18),
    "clip": ("Clip", ["lo", "hi"], {}, {"lo": np.float32(-1), "hi": np.float32(1)}, 13),
    "clip below": ("Clip", ["lo"], {}, {"lo": np.float32(0)}, 13),
    "clip opset 9": ("Clip", [], {"min": -0.5, "max": 0.5}, {}, 9),
    "batch norm": ("BatchNormalization", list("abcd"), {}, {k: abs(rand(4)) for k in "abcd"}, 9),
    "leaky relu": ("LeakyRelu", [], {"alpha": 0.2}, {}, 13),
    "prelu": ("PRelu", ["s"], {}, {"s": rand(4, 1, 1)}, 13),
    "prelu of an image": ("PRelu", ["s"], {}, {"s": rand(1, 4, 1, 1)}, 16),
    "prelu with one slope": ("PRelu", ["s"], {}, {"s": rand(1)}, 13),
    "prelu along the width": ("PRelu", ["s"], {}, {"s": rand(IMAGE[3])}, 13),
    "prelu of pixels": ("PRelu", ["s"], {}, {"s": rand(*IMAGE[1:])}, 13),
    "elu": ("Elu", [], {"alpha": 0.7}, {}, 13),
    "sigmoid": ("Sigmoid", [], {}, {}, 13),
    "tanh": ("Tanh", [], {}, {}, 13),
    "erf": ("Erf", [], {}, {}, 13),
    "hard sigmoid": ("HardSigmoid", [], {"alpha": 1 / 6}, {}, 13),
    "hard swish": ("HardSwish", [], {}, {}, 14),
    "softmax": ("Softmax", [], {"axis": 1}, {}, 13),
    "softmax opset 11": ("Softmax", [], {"axis": 2}, {}, 11),
    "add channel": ("Add", ["c"], {}, {"c": rand(4, 1, 1)}, 13),
    "add column": ("Add", ["c"], {}, {"c": rand(7)}, 13),
    "multiply scalar": ("Mul", ["c"], {}, {"c": np.full((1, 1, 1), 3, "float32")}, 13),
    "divide": ("Div", ["c"], {}, {"c": np.float32(7)}, 13),
    "pow": ("Pow", ["c"], {}, {"c": np.float32(2)}, 13),
    "pad": ("Pad", ["p", "v"], {}, {"p": np.array([0, 1, 2, 0, 0, 3, 0, 1]), "v": np.float32(2)}, 13),
    "pad negative": ("Pad", ["p"], {}, {"p": np.array([0, 0, -2, 0, 0, 1, 0, -1])}, 13),
    "pad reflect": ("Pad", ["p"], {"mode": "reflect"}, {"p": np.array([0, 0, 2, 1, 0, 0, 1, 2])}, 13),
    "pad edge": ("Pad", ["p"], {"mode": "edge"}, {"p": np.array([0, 0, 2, 1, 0, 0, 1, 2])}, 13),
    "slice": (
        "Slice",
        ["s", "e", "a", "u"],
        {},
        {"s": np.array([0, -6]), "e": np.array([4, 99]), "a": np.array([1, 2]), "u": np.array([2, 1])},
        13,
    ),
    "slice backwards": (
        "Slice",
        ["s", "e", "a", "u"],
        {},
        {"s": np.array([-1]), "e": np.array([-99]), "a": np.array([2]), "u": np.array([-2])},
        13,
    ),
    "slice opset 9": ("Slice", [], {"starts": [1], "ends": [3], "axes": [1]}, {}, 9),
    "gather scalar": ("Gather", ["i"], {"axis": 1}, {"i": np.array(-1)}, 13),
    "gather vector": ("Gather", ["i"], {"axis": 1}, {"i": np.array([3, 0, -2])}, 13),
    "gather matrix": ("Gather", ["i"], {"axis": 3}, {"i": np.array([[0, 1], [5, 2]])}, 13),
    "transpose": ("Transpose", [], {"perm": [0, 2, 3, 1]}, {}, 13),
    "reshape": ("Reshape", ["s"], {}, {"s": np.array([0, -1, 7])}, 13),
    "flatten": ("Flatten", [], {"axis": 2}, {}, 13),
    "unsqueeze": ("Unsqueeze", ["a"], {}, {"a": np.array([0, -1])}, 13),
    "expand": ("Expand", ["s"], {}, {"s": np.array([2, 1, 1, 1])}, 13),
    "tile": ("Tile", ["r"], {}, {"r": np.array([1, 2, 1, 3])}, 13),
    "gather elements": ("GatherElements", ["i"], {"axis": 3}, {"i": np.array([[[[0, -1], [2, 1]]]])}, 13),
    "einsum": ("Einsum", ["w"], {"equation": "bchw,oc->bohw"}, {"w": rand(6, 4)}, 13),
    "squeeze": ("Squeeze", ["a"], {}, {"a": np.array([0])}, 13),
    "resize nearest": ("Resize", ["r", "s"], {}, {"r": rand(0), "s": np.float32([1, 1, 2, 2])}, 11),
    "resize linear": (
        "Resize",
        ["r", "q", "z"],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"r": rand(0), "q": rand(0), "z": np.array([1, 4, 5, 20])},
        13,
    ),
    "resize half pixel": (
        "Resize",
        ["r", "q", "z"],
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"r": rand(0), "q": rand(0), "z": np.array([1, 4, 18, 21])},
        13,
    ),
    "upsample": ("Upsample", ["s"], {"mode": "nearest"}, {"s": np.float32([1, 1, 2, 3])}, 9),
    "depth to space": ("DepthToSpace", [], {"blocksize": 2}, {}, 13),
    "space of depth, crd": ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}, {}, 13),
    "instance norm": ("InstanceNormalization", ["a", "b"], {}, {"a": rand(4), "b": rand(4)}, 13),
}


@pytest.mark.parametrize("after_conv", [False, True], ids=["input", "conv"])
@pytest.mark.parametrize("case", SINGLE)
def test_operator(case: str, after_conv: bool) -> None:
    """Each operator on the model's input, and on the result of a convolution (which is in NHWC)."""
    op, extra, attrs, weights, opset = SINGLE[case]
    nodes = [helper.make_node(op, ["t", *extra], ["y"], **attrs)]
    first = _before(after_conv)
    eye = np.eye(4, dtype="float32")[..., None, None]
    model = model_of([first, *nodes], {"x": IMAGE}, {"k": eye, **weights}, opset=opset)
    x = rand(*IMAGE)
    same_as_reference(model, x)


def _before(conv: bool) -> onnx.NodeProto:
    return helper.make_node("Conv", ["x", "k"], ["t"]) if conv else helper.make_node("Relu", ["x"], ["t"])


WHOLE = {
    "mobilenet_v1_0.25_224": 2,
    "mobilenet_v1_0.75_224": 1,
    "mobilenet_v2_1.0_224": 1,
    "resnet20_cifar10": 1,
    "resnet56_cifar10": 1,
    "tiny_resnet8_cifar10": 1,
    "tiny_kws_dscnn": 1,
    "tiny_vww_mobilenetv1_025_96": 1,
    "tiny_ad_autoencoder": 0,
    "deeplabv3_mnv2_dm05_257": 2,
    "fastestdet_coco_352": 2,
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_model_is_canonical(shared_data: Path, name: str) -> None:
    """Imports in well under two seconds (mobilenet_v2: 0.4 s); transpositions only at the edges."""
    start = time.perf_counter()
    module = load(shared_data / "models" / f"{name}.onnx")
    print(f"{name}: imported in {time.perf_counter() - start:.2f} s")
    check_canonical(module)
    transposed = operators(module).count("permute_dims")
    assert transposed == min(WHOLE[name], 1) + (name.startswith(("deeplab", "fastest")))
    allowed = {"nn.conv2d", "add", "nn.relu", "clip", "nn.max_pool2d", "nn.avg_pool2d", "mean", "matmul"}
    allowed |= {"reshape", "permute_dims", "nn.softmax", "sigmoid", "concat", "image.resize2d"}
    assert set(operators(module)) <= allowed | {"strided_slice", "nn.pad"}


@pytest.mark.parametrize("name", ["tiny_resnet8_cifar10", "tiny_kws_dscnn", "tiny_ad_autoencoder"])
def test_whole_model_equals_onnxruntime(shared_data: Path, name: str) -> None:
    model = onnx.load(shared_data / "models" / f"{name}.onnx")
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    same_as_reference(model, rand(*shape))


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_every_whole_model_equals_onnxruntime(shared_data: Path, name: str) -> None:
    model = onnx.load(shared_data / "models" / f"{name}.onnx")
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    for _ in range(2):
        same_as_reference(model, rand(*shape))


def small_net(opset: int = 13) -> onnx.ModelProto:
    """Conv, BatchNormalization, Clip, residual Add, pool, Flatten, Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c.1"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c.1", "g", "e", "m", "v"], ["2n"]),
        helper.make_node("Clip", ["2n", "lo", "hi"], ["act/1"]),
        helper.make_node("Conv", ["act/1", "w2"], ["c2"]),
        helper.make_node("Add", ["c2", "act/1"], ["sum"]),
        helper.make_node("MaxPool", ["sum"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc", "fb"], ["y"], transB=1, alpha=0.5, beta=2.0),
    ]
    weights: dict[str, Any] = {"w": rand(4, 3, 3, 3), "b": rand(4), "w2": rand(4, 4, 1, 1)}
    weights |= {"fc": rand(5, 4 * 3 * 4), "fb": rand(5), "lo": np.float32(0), "hi": np.float32(6)}
    weights |= {k: abs(rand(4)) + 0.5 for k in "gemv"}
    return model_of(nodes, {"x": ("N", 3, 6, 8)}, weights, opset=opset)


def test_small_net_has_the_expected_form() -> None:
    module = same_as_reference(small_net(), rand(1, 3, 6, 8))
    bound = {str(var.name): value for var, value in straight_bindings(module["main"])}
    assert [name for name in bound] == [
        "x_nhwc", "t_2n_conv2d", "t_2n", "act_1", "c2", "sum", "pool", "flat", "y_matmul", "y",
    ]  # fmt: skip
    assert shape_of(bound["t_2n_conv2d"].args[1]) == (4, 3, 3, 3)
    assert shape_of(bound["t_2n"].args[1]) == (4,)
    assert shape_of(bound["y_matmul"].args[1]) == (48, 5)
    assert op_name(bound["act_1"]) == "clip"
    assert op_name(bound["flat"]) == "reshape"
    assert int(module["main"].attrs["num_input"]) == 1


def test_interface_keeps_the_names_of_the_model() -> None:
    model = small_net()
    model.graph.output[0].name = "a.b/c:0"
    model.graph.node[-1].output[0] = "a.b/c:0"
    io = json.loads(str(load(model)["main"].attrs["qplugin.io"]))
    assert io["inputs"] == [{"name": "x", "shape": [1, 3, 6, 8], "dtype": "float32"}]
    assert io["outputs"] == [{"name": "a.b/c:0", "shape": [1, 5], "dtype": "float32"}]


def test_batch_option() -> None:
    x = rand(3, 3, 6, 8)
    model = small_net()
    module = load(model, batch=3)
    np.testing.assert_allclose(run(module, x)[0], reference(model, x)[0], rtol=1e-4, atol=1e-4)


def test_unknown_sizes_are_given_by_shapes() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ("N", 3, "h", "w")}, {})
    with pytest.raises(ModelError, match="shapes"):
        load(model)
    assert shape_of(load(model, shapes={"x": (2, 3, 4, 5)})["main"].params[0]) == (2, 3, 4, 5)


def test_nhwc_inputs() -> None:
    model, x = small_net(), rand(1, 3, 6, 8)
    module = load(model, input_layout="NHWC")
    check_canonical(module)
    assert "permute_dims" not in operators(module)
    assert json.loads(str(module["main"].attrs["qplugin.io"]))["inputs"][0]["shape"] == [1, 6, 8, 3]
    actual = run(module, np.ascontiguousarray(x.transpose(0, 2, 3, 1)))[0]
    np.testing.assert_allclose(actual, reference(model, x)[0], rtol=1e-4, atol=1e-4)


def test_initializers_that_are_also_inputs() -> None:
    model = small_net()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    module = load(model)
    assert len(module["main"].params) == 1


def test_weights_as_constant_nodes() -> None:
    model, x = small_net(), rand(1, 3, 6, 8)
    expected = reference(model, x)[0]
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes = list(model.graph.node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(constants + nodes)
    np.testing.assert_allclose(run(load(model), x)[0], expected, rtol=1e-4, atol=1e-4)


def test_identity_and_dropout_vanish() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Dropout", ["i"], ["d", "mask"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    assert operators(same_as_reference(model_of(nodes, {"x": IMAGE}, {}), rand(*IMAGE))) == ["nn.relu"]


def test_masks_are_bool_of_any_rank() -> None:
    model = model_of([helper.make_node("Where", ["m", "x", "w"], ["y"])], {"x": IMAGE}, {"w": np.float32(2)})
    model.graph.input.append(helper.make_tensor_value_info("m", onnx.TensorProto.BOOL, [1, 1, 9, 7]))
    same_as_reference(model, rand(*IMAGE), rand(1, 1, 9, 7) > 0)


def test_shape_arithmetic_is_folded() -> None:
    """What exporters write for ``x.view(x.size(0), -1)``."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["c", "target"], ["y"]),
    ]
    weights = {"w": CONV["w"], "zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    module = same_as_reference(model_of(nodes, {"x": IMAGE}, weights), rand(*IMAGE))
    assert operators(module) == ["permute_dims", "nn.conv2d", "reshape", "reshape", "permute_dims", "reshape"]


def test_channel_shuffle_becomes_slices() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Reshape", ["c", "s1"], ["r1"]),
        helper.make_node("Transpose", ["r1"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "s2"], ["r2"]),
        helper.make_node("Gather", ["r2", "one"], ["odd"], axis=0),
        helper.make_node("Relu", ["odd"], ["y"]),
    ]
    weights = {
        "w": CONV["w"],
        "s1": np.array([3, 2, 35]),
        "s2": np.array([2, -1, 3, 7, 5]),
        "one": np.array(1),
    }
    module = same_as_reference(model_of(nodes, {"x": IMAGE}, weights), rand(*IMAGE))
    assert operators(module) == ["permute_dims", "nn.conv2d", "strided_slice", "nn.relu", "permute_dims"]


def test_transpositions_of_the_model_cancel() -> None:
    """A model exported from NHWC: Transpose, Conv, Transpose."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["a", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Transpose", ["r"], ["y"], perm=[0, 2, 3, 1]),
    ]
    module = same_as_reference(model_of(nodes, {"x": (1, 9, 7, 4)}, CONV), rand(1, 9, 7, 4))
    assert operators(module) == ["nn.conv2d", "add", "nn.relu"]


def test_conv_1d() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 2], strides=[2]),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[3]),
        helper.make_node("AveragePool", ["p"], ["y"], kernel_shape=[2], pads=[0, 1]),
    ]
    model = model_of(nodes, {"x": (2, 3, 20)}, {"w": rand(5, 3, 4), "b": rand(5)})
    assert "nn.conv2d" in operators(same_as_reference(model, rand(2, 3, 20)))


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [(5,), (1, 5), (2, 5), ()])
def test_gemm(trans_a: int, trans_b: int, bias: tuple[int, ...]) -> None:
    node = helper.make_node(
        "Gemm", ["x", "w", "c"], ["y"], transA=trans_a, transB=trans_b, alpha=0.5, beta=3.0
    )
    weights = {"w": rand(*((5, 7) if trans_b else (7, 5))), "c": np.asarray(rand(*bias))}
    shape = (7, 2) if trans_a else (2, 7)
    module = same_as_reference(model_of([node], {"x": shape}, weights), rand(*shape))
    weight = dict(straight_bindings(module["main"]))
    assert [shape_of(v.args[1]) for v in weight.values() if op_name(v) == "matmul"] == [(7, 5)]


def squeezed_if(condition: list[onnx.NodeProto]) -> onnx.ModelProto:
    """How torch exports ``relu(conv(x).squeeze(1))`` where it does not know the shape."""
    made = [
        [helper.make_node("Squeeze", ["c", "axis"], ["s"])],
        [helper.make_node("Identity", ["c"], ["i"])],
    ]
    results = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("s", "i")]
    branches = [helper.make_graph(nodes, "b", [], [out]) for nodes, out in zip(made, results, strict=True)]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        *condition,
        helper.make_node("If", ["is"], ["f"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Relu", ["f"], ["y"]),
    ]
    weights = {
        "w": rand(1, 4, 3, 3),
        "one": np.array(1),
        "zero": np.array(0.0, "float32"),
        "axis": np.array([1]),
    }
    return model_of(nodes, {"x": IMAGE}, weights)


@pytest.mark.parametrize(("axis", "rank"), [(1, 3), (2, 4)])
def test_if_of_a_shape_becomes_its_branch(axis: int, rank: int) -> None:
    condition = [
        helper.make_node("Constant", [], ["at"], value_int=axis),
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("Gather", ["shape", "at"], ["extent"]),
        helper.make_node("Equal", ["extent", "one"], ["is"]),
    ]
    module = same_as_reference(squeezed_if(condition), rand(*IMAGE))
    assert len(shape_of(outputs_of(module["main"])[0])) == rank


def test_if_of_values_is_refused() -> None:
    condition = [
        helper.make_node("ReduceMax", ["c"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "zero"], ["is"]),
    ]
    with pytest.raises(ModelError, match=r"^If \(f\) cannot .*: its condition is computed from the input"):
        load(squeezed_if(condition))


def test_several_outputs_and_split() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Split", ["c", "sizes"], ["s1", "s2"], axis=1),
        helper.make_node("Sigmoid", ["s1"], ["y"]),
        helper.make_node("Concat", ["s2", "y"], ["z"], axis=1),
    ]
    weights = {"w": CONV["w"], "sizes": np.array([2, 4])}
    same_as_reference(model_of(nodes, {"x": IMAGE}, weights, ["y", "z", "c"]), rand(*IMAGE))


def test_relax_module_as_source() -> None:
    """Canonicalising twice changes nothing in meaning, and imports of others are accepted."""
    from tvm.relax.frontend.onnx import from_onnx

    model, x = small_net(), rand(1, 3, 6, 8)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    once = load(model)
    twice = load(once)
    check_canonical(twice)
    np.testing.assert_array_equal(run(twice, x)[0], run(once, x)[0])
    del model.graph.node[2]  # TVM imports Clip as opaque functions
    model.graph.node[2].input[0] = model.graph.node[3].input[1] = "2n"
    other = load(from_onnx(model))
    np.testing.assert_allclose(run(other, x)[0], reference(model, x)[0], rtol=1e-4, atol=1e-4)


class _Reader:
    def __init__(self, samples: list[Array]) -> None:
        self.samples = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        sample = next(self.samples, None)
        return None if sample is None else {"x": sample}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activation", ["QInt8", "QUInt8"])
def test_quantized_by_onnxruntime(tmp_path: Path, activation: str, per_channel: bool) -> None:
    onnx.save(small_net(), tmp_path / "float.onnx")
    quantization.quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        _Reader([rand(1, 3, 6, 8) for _ in range(4)]),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=getattr(quantization.QuantType, activation),
        weight_type=quantization.QuantType.QInt8,
    )
    model, x = onnx.load(tmp_path / "int8.onnx"), rand(1, 3, 6, 8)
    module = load(model)
    check_canonical(module)
    np.testing.assert_allclose(run(module, x)[0], reference(model, x)[0], rtol=0, atol=1e-5)
    for _, value in straight_bindings(module["main"]):
        if op_name(value) in ("quantize", "dequantize"):
            assert all(value_of(arg) is not None for arg in value.args[1:])
        if op_name(value) in ("nn.conv2d", "matmul"):
            assert isinstance(value.args[1], relax.Var)


def test_float_weights_quantized_in_the_model_become_integers() -> None:
    """What PyTorch's fake-quantized layers are exported as: QuantizeLinear of a float weight, per channel."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        helper.make_node("QuantizeLinear", ["w", "sw", "zw"], ["wq"], axis=0),
        helper.make_node("DequantizeLinear", ["wq", "sw", "zw"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "b"], ["y"]),
    ]
    weights = {**CONV, "sx": np.float32(0.05), "zx": np.uint8(128)}
    weights |= {"sw": abs(rand(6)) / 50 + 0.01, "zw": np.zeros(6, "int8")}
    module = same_as_reference(model_of(nodes, {"x": IMAGE}, weights), rand(*IMAGE))
    bound = {str(var.name): value for var, value in straight_bindings(module["main"])}
    weight = next(v for v in bound.values() if op_name(v) == "dequantize" and value_of(v.args[0]) is not None)
    assert str(weight.args[0].ty.dtype) == "int8" and shape_of(weight.args[0]) == (6, 3, 3, 4)
