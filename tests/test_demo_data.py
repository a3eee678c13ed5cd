"""The embedded demo is what it says: small, valid, accurate, and tested on images it has not seen."""

import numpy as np
import onnx
import onnxruntime
import pytest

from tvm_qplugin import demo


def test_the_model_is_small_and_valid():
    assert demo.model_path().stat().st_size < 500_000
    model = onnx.load(demo.model_path())
    onnx.checker.check_model(model, full_check=True)
    assert {"Conv", "BatchNormalization", "Clip", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Gemm"} <= {
        node.op_type for node in model.graph.node
    }
    groups = [a.i for node in model.graph.node for a in node.attribute if a.name == "group"]
    assert max(groups) > 1, "no depthwise convolution"
    weights = sum(np.prod(tensor.dims) for tensor in model.graph.initializer)
    assert 25_000 < weights < 100_000


def test_data_is_small_and_well_formed():
    assert demo.calibration_path().stat().st_size + demo.evaluation_path().stat().st_size < 200_000
    (x, y), calibration = demo.evaluation(), demo.calibration()
    assert calibration.shape == (200, 1, 8, 8) and x.shape == (450, 1, 8, 8) and y.shape == (450,)
    assert calibration.dtype == x.dtype == np.float32 and y.dtype == np.int64
    for images in (calibration, x):
        assert images.min() == 0 and images.max() == 1
    assert sorted(set(y.tolist())) == list(range(10))


def test_no_test_image_is_a_calibration_image():
    x, _ = demo.evaluation()
    assert not {image.tobytes() for image in x} & {image.tobytes() for image in demo.calibration()}


def test_accuracy():
    session = onnxruntime.InferenceSession(demo.model_path(), providers=["CPUExecutionProvider"])
    x, y = demo.evaluation()
    found = [session.run(None, {"image": image[None]})[0].argmax() for image in x]
    assert (np.array(found) == y).mean() >= 0.98


def test_split_of_the_training_script_never_overlaps():
    datasets = pytest.importorskip("sklearn.datasets", reason="extra `train` is not installed")
    images = (datasets.load_digits().images / 16.0).astype("float32")
    everything = {image.tobytes() for image in images}
    x, _ = demo.evaluation()
    for image in [*x, *demo.calibration()]:
        assert image.tobytes() in everything
