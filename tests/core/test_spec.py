"""Specifications and the annotation that carries them."""

import numpy as np
import pytest

from tvm_qplugin.core.spec import (
    ACTIVATION,
    ACTIVATION16,
    FIXED,
    WEIGHT,
    Annotation,
    FixedSpec,
    OpAnnotation,
    QuantSpec,
    SharedSpec,
)


def test_activations_cover_their_range():
    params = ACTIVATION.params(-1.0, 3.0)
    assert params.dtype == "int8" and params.axis is None
    assert float(params.dequantize(np.int8(-128))) == pytest.approx(-1, abs=0.02)
    assert float(params.dequantize(np.int8(127))) == pytest.approx(3, abs=0.02)


def test_weights_are_symmetric_and_narrow():
    params = WEIGHT.params(np.float32([-127, -1]), np.float32([5, 254]))
    np.testing.assert_array_equal(params.scale, [1, 2])
    assert not params.zero_point.any() and params.axis == 0


@pytest.mark.parametrize("name", FIXED)
def test_fixed_parameters(name: str):
    params = FIXED[name].params()
    ends = params.dequantize(np.int8([-128, 127]))
    assert ends[0] == (-1 if name == "tanh" else 0) and 0.99 < ends[1] < 1


def test_an_annotation_survives_its_attribute():
    weight = QuantSpec(symmetric=True, axis=0, narrow=True)
    operators = {
        "y": OpAnnotation("conv2d", "y", ("x",), ("a", "y"), weight),
        "z": OpAnnotation("softmax", "z", ("y",), ("z",), integer=False, reason="it is so"),
    }
    tensors = {"x": ACTIVATION, "y": SharedSpec("x"), "z": FixedSpec(1 / 256, -128)}
    annotation = Annotation(operators, tensors)
    assert Annotation.loads(annotation.dumps()) == annotation


def test_what_is_fixed_is_not_observed():
    annotation = Annotation({}, {"x": ACTIVATION, "y": SharedSpec("x"), "z": FIXED["tanh"]})
    assert annotation.observed() == ["x", "y"]
    assert annotation.with_tensors({"z": ACTIVATION}).observed() == ["x", "y", "z"]


def test_a_product_reads_one_scheme_and_gives_another():
    op = OpAnnotation("dense", "y", ("x",), ("y",), scheme="int8", result="int16x8")
    tensors = {"x": ACTIVATION16, "x as int8": ACTIVATION, "y": ACTIVATION16, "y as int8": ACTIVATION}
    annotation = Annotation({"y": op}, tensors)
    assert Annotation.loads(annotation.dumps()) == annotation
    assert (annotation.key(op, "x"), annotation.key(op, "y")) == ("x as int8", "y")
    reader = OpAnnotation("dense", "z", ("y",), ("z",))
    assert (annotation.key(reader, "y"), reader.output_scheme) == ("y as int8", "int8")
