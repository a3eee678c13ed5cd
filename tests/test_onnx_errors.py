"""Whatever is wrong with an ONNX file, the answer is a ModelError that says what."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.frontend import check_canonical, load
from tvm_qplugin.onnx_file import shape_error, without_weights

FLOAT = onnx.TensorProto.FLOAT
Change = Callable[[onnx.ModelProto], None]


def small_model() -> onnx.ModelProto:
    """Conv, BatchNormalization, Clip, MaxPool, Reshape, Gemm on 1x2x6x6."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(4, 2, 3, 3)),
        "b": rng.normal(size=4),
        **{f"bn{i}": rng.uniform(0.5, 2, 4) for i in range(4)},
        "lo": np.array(0.0),
        "hi": np.array(6.0),
        "fc": rng.normal(size=(3, 36)),
        "fb": rng.normal(size=3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "bn0", "bn1", "bn2", "bn3"], ["n"], name="norm"),
        helper.make_node("Clip", ["n", "lo", "hi"], ["r"], name="clip"),
        helper.make_node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p", "shape"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fc", "fb"], ["y"], name="dense", transB=1),
    ]
    initializers = [numpy_helper.from_array(v.astype("float32"), k) for k, v in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([1, -1]), "shape"))
    graph = helper.make_graph(nodes, "g", [_info("x", [1, 2, 6, 6])], [_info("y", [1, 3])], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _info(name: str, shape: list[object], dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def _set(name: str, **attrs: object) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = _node(model, name)
        kept = [attr for attr in node.attribute if attr.name not in attrs]
        del node.attribute[:]
        node.attribute.extend(kept + [helper.make_attribute(k, v) for k, v in attrs.items()])

    return change


def _weight(name: str, value: np.ndarray | None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        if value is not None:
            model.graph.initializer.append(numpy_helper.from_array(value, name))

    return change


def _add(op: str, inputs: list[str], outputs: list[str], domain: str = "", **attrs: object) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = helper.make_node(op, inputs, outputs, name=f"new_{op}", domain=domain, **attrs)
        model.graph.node.append(node)

    return change


def _input(shape: list[object], dtype: int = FLOAT) -> Change:
    return lambda model: model.graph.input[0].CopyFrom(_info("x", shape, dtype))


def _rename(node: str, index: int, name: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        _node(model, node).input[index] = name

    return change


def _do(text: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        exec(text, {"m": model, "g": model.graph, "helper": helper, "onnx": onnx})

    return change


NAN = np.full((4, 2, 3, 3), np.nan, "float32")
INF = np.array([1, np.inf, 2], "float32")
CASES: dict[str, tuple[Change, str]] = {
    "no nodes": (_do("del g.node[:]"), "no nodes"),
    "no outputs": (_do("del g.output[:]"), "no outputs"),
    "no inputs": (_do("del g.input[:]"), "x"),
    "no opset": (_do("del m.opset_import[:]"), "operator set"),
    "two opsets": (_do("m.opset_import.add().version = 11"), "operator set"),
    "old opset": (_do("m.opset_import[0].version = 3"), "opset 3"),
    "future opset": (_do("m.opset_import[0].version = 999"), "999"),
    "no ir version": (_do("m.ClearField('ir_version')"), "not valid"),
    "unknown operator": (_add("Frobnicate", ["y"], ["z"]), r"Frobnicate: new_Frobnicate"),
    "foreign domain": (_add("Conv", ["x"], ["z"], "com.acme"), r"com\.acme::Conv: new_Conv"),
    "recurrent": (_add("LSTM", ["x", "w", "w"], ["z"], hidden_size=1), r"LSTM \(new_LSTM\).*of rank 3"),
    "control flow": (_add("If", ["x"], ["z"]), "If: new_If"),
    "weight missing": (_weight("w", None), "w"),
    "bias missing": (_weight("fb", None), "fb"),
    "weight NaN": (_weight("w", NAN), "w of Conv .conv.*NaN"),
    "bias Inf": (_weight("fb", INF), "fb of Gemm .dense.*Inf"),
    "weight rank": (_weight("w", np.ones((4, 2, 3), "float32")), "conv"),
    "weight channels": (_weight("w", np.ones((4, 3, 3, 3), "float32")), "conv"),
    "weight dtype": (_weight("w", np.ones((4, 2, 3, 3), "float64")), "Conv|conv"),
    "weight integers": (_weight("w", np.ones((4, 2, 3, 3), "int64")), "Conv|conv"),
    "weight empty": (_weight("w", np.ones((0, 2, 3, 3), "float32")), "conv"),
    "bias length": (_weight("b", np.ones(5, "float32")), "conv"),
    "dense shape": (_weight("fc", np.ones((3, 35), "float32")), "dense|Gemm"),
    "dense rank": (_weight("fc", np.ones(36, "float32")), "dense|Gemm"),
    "norm length": (_weight("bn1", np.ones(3, "float32")), "norm"),
    "norm variance": (_weight("bn3", -np.ones(4, "float32")), "norm|variance"),
    "shape impossible": (_weight("shape", np.array([1, 35])), "flat|Reshape"),
    "shape of floats": (_weight("shape", np.array([1.0, 36.0], "float32")), "flat|Reshape"),
    "shape two unknown": (_weight("shape", np.array([-1, -1])), "flat|Reshape"),
    "raw data short": (_do("g.initializer[0].raw_data = b'abc'"), "w"),
    "weight dims huge": (_do("g.initializer[0].dims[0] = 2 ** 40"), "w"),
    "weight dims negative": (_do("g.initializer[0].dims[0] = -4"), "w"),
    "weight type unknown": (_do("g.initializer[0].data_type = 77"), "77|w"),
    "weight unnamed": (_do("g.initializer[0].name = ''"), "w|name"),
    "weight twice": (_do("g.initializer.append(g.initializer[0])"), "twice: w"),
    "output twice": (_do("g.node[1].output[0] = 'c'"), "c"),
    "node writes input": (_do("g.node[1].output[0] = 'x'"), "x"),
    "output unknown": (_do("g.output[0].name = 'nowhere'"), "nowhere"),
    "cycle": (_rename("conv", 0, "r"), "sorted|cycle|r"),
    "unsorted": (_do("g.node.append(g.node[0]); del g.node[0]"), "sorted|c"),
    "input rank": (_input([1, 72]), "conv|Conv"),
    "input dynamic": (_input([1, 2, "h", "w"]), "shapes"),
    "input no shape": (_do("g.input[0].type.tensor_type.ClearField('shape')"), "shapes"),
    "input int64": (_input([1, 2, 6, 6], onnx.TensorProto.INT64), "int64"),
    "input double": (_input([1, 2, 6, 6], onnx.TensorProto.DOUBLE), "float64"),
    "input string": (_input([1, 2, 6, 6], onnx.TensorProto.STRING), "x"),
    "input huge": (_input([1, 2, 2**20, 2**20]), "2\\*\\*31"),
    "input too small": (_input([1, 2, 1, 1]), "pool"),
    "input a sequence": (_do("g.input[0].type.sequence_type.SetInParent()"), "not a tensor"),
    "stride zero": (_set("conv", strides=[0, 1]), "strides"),
    "stride negative": (_set("pool", strides=[-1, 1]), "strides|pool"),
    "dilation zero": (_set("conv", dilations=[0, 0]), "dilation"),
    "group zero": (_set("conv", group=0), "conv|group"),
    "group odd": (_set("conv", group=3), "conv"),
    "pads negative": (_set("conv", pads=[-1, 0, 0, 0]), "pads"),
    "pads count": (_set("conv", pads=[1, 1]), "pads|conv"),
    "kernel mismatch": (_set("conv", kernel_shape=[5, 5]), "conv|kernel"),
    "kernel zero": (_set("pool", kernel_shape=[0, 0]), "kernel|pool"),
    "kernel too large": (_set("pool", kernel_shape=[9, 9]), "pool|window"),
    "kernel missing": (_do("del g.node[3].attribute[:]"), "kernel"),
    "auto_pad unknown": (_set("conv", auto_pad="MAYBE"), "MAYBE|conv"),
    "attribute type": (_set("conv", strides="one"), "strides"),
    "attribute unknown": (_set("conv", colour=3), "colour"),
    "clip bound vector": (_weight("hi", np.array([6, 6, 6, 6], "float32")), "clip|Clip"),
    "clip bound empty": (_weight("hi", np.array([], "float32")), "clip|Clip"),
    "too few inputs": (_do("del g.node[0].input[1:]"), "conv|Conv|inputs"),
    "training": (_set("norm", training_mode=1), "norm|training"),
    "constant output": (_do("g.output.append(helper.make_tensor_value_info('w', 1, None))"), "w"),
    "broadcast": (_add("Add", ["y", "b"], ["z"]), "new_Add|Add"),
    "concat axis": (_add("Concat", ["y", "y"], ["z"], axis=7), "Concat"),
    "transpose perm": (_add("Transpose", ["y"], ["z"], perm=[0, 0]), "Transpose"),
    "gather outside": (_add("Gather", ["y", "shape"], ["z"], axis=9), "Gather"),
    "split sizes": (_add("Split", ["y", "shape"], ["z", "z2"], axis=1), "Split"),
    "scale negative": (_add("QuantizeLinear", ["y", "minus"], ["z"]), "QuantizeLinear|minus"),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_model_is_named(case: str) -> None:
    change, expected = CASES[case]
    model = small_model()
    change(model)
    with pytest.raises(ModelError, match=expected) as caught:
        load(model)
    assert caught.value.__cause__ is None and "Traceback" not in str(caught.value)


def test_unsupported_operators_are_named_all_at_once() -> None:
    model = small_model()
    _add("Scan", ["x", "w", "w"], ["z1"])(model)
    _add("Mystery", ["x"], ["z2"], "com.acme")(model)
    _add("Loop", ["x"], ["z3"])(model)
    with pytest.raises(ModelError) as caught:
        load(model)
    for name in ("Scan: new_Scan", "com.acme::Mystery: new_Mystery", "Loop: new_Loop"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"garbage", b"TFL3....", b"\x89PNG\r\n", b"PK\x03\x04"]
)
def test_file_that_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        load(path)


def test_file_missing_or_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="folder"):
        load(tmp_path)


@pytest.mark.parametrize("source", [None, 3, b"bytes", ["a"]])
def test_source_of_wrong_type(source: object) -> None:
    with pytest.raises(ModelError, match="is not a model"):
        load(source)  # type: ignore[arg-type]


def test_external_data_missing(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(small_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    check_canonical(load(path))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx"):
        load(path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch": 0}, "batch 0"),
        ({"batch": -1}, "batch -1"),
        ({"shapes": {"nothing": (1,)}}, "nothing"),
        ({"shapes": {"x": (1, 2, 7, 6)}}, "does not fit"),
        ({"shapes": {"x": (1, 2)}}, "does not fit"),
        ({"input_layout": "CHWN"}, "CHWN"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        load(small_model(), **options)  # type: ignore[arg-type]


def _load_or_refuse(path: Path) -> bool:
    try:
        check_canonical(load(path))
    except ModelError:
        return False
    return True


def test_truncated_file(tmp_path: Path) -> None:
    data, path = small_model().SerializeToString(), tmp_path / "model.onnx"
    for size in range(1, len(data), max(len(data) // 60, 1)):
        path.write_bytes(data[:size])
        _load_or_refuse(path)


@pytest.mark.parametrize("seed", range(8))
def test_random_corruption(tmp_path: Path, seed: int) -> None:
    """Flipped bits give a ModelError, or a model that is sound in itself; never anything else."""
    rng, path = random.Random(seed), tmp_path / "model.onnx"
    original = small_model().SerializeToString()
    for _ in range(25):
        data = bytearray(original)
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        _load_or_refuse(path)


def test_shapes_are_checked_without_copying_the_weights():
    model = small_model()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "fc")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((3, 4096), "float32"), "fc"))
    outline = without_weights(model)
    assert outline.ByteSize() < 3000 < model.ByteSize()
    assert [tensor.dims for tensor in outline.graph.initializer] == [t.dims for t in model.graph.initializer]
    assert outline.graph.node == model.graph.node and weight.raw_data
    error = shape_error(model)
    assert error is not None and "contradict" in str(error)
    weight.CopyFrom(numpy_helper.from_array(np.zeros((3, 36), "float32"), "fc"))
    assert shape_error(model) is None
