"""The manifest survives its JSON form exactly and refuses anything else."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_qplugin.core.errors import ArtifactError
from tvm_qplugin.core.manifest import FORMAT, Manifest, OperatorInfo, TensorInfo
from tvm_qplugin.core.qparams import QuantParams

QPARAMS = QuantParams.of([0.1, 0.2], 0, "int8", axis=3)
MANIFEST = Manifest(
    model="net",
    inputs=(TensorInfo("x", (1, 3, 8, 8), "float32"),),
    outputs=(TensorInfo("y", (1, 10), "int8", QuantParams.of(0.5, -3).to_json()),),
    versions={"tvm": "0.27.0", "tvm_qplugin": "0.1.0", "numpy": "2.0"},
    target={"profile": "host", "tvm": {"kind": "llvm", "mattr": ["+avx2"]}},
    recipe={"name": "int8", "rules": [{"op": ".*", "spec": None}]},
    tensors={"w": QPARAMS.to_json()},
    operators=(
        OperatorInfo("conv", "conv2d", "qconv2d", True, None, (1, 8, 8, 4), 108, 6912),
        OperatorInfo("gelu", "gelu", None, False, "no integer kernel", ()),
    ),
    sizes={"model.so": 1234, "weights": 108},
    sha256={"model.so": "00ff"},
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
SHAPES = st.lists(st.integers(0, 2**40), max_size=5).map(tuple)
INFOS = st.builds(
    TensorInfo, st.text(), SHAPES, st.text(), st.none() | st.dictionaries(st.text(), JSON, max_size=2)
)


@given(
    st.builds(
        Manifest,
        st.text(),
        st.lists(INFOS, max_size=2).map(tuple),
        st.lists(INFOS, max_size=2).map(tuple),
        recipe=st.dictionaries(st.text(), JSON, max_size=3),
        sizes=st.dictionaries(st.text(), st.integers(0, 2**60), max_size=3),
    )
)
def test_round_trip_of_anything(manifest: Manifest):
    assert Manifest.loads(manifest.dumps()) == manifest


def test_round_trip_of_everything():
    again = Manifest.loads(MANIFEST.dumps())
    assert again == MANIFEST
    assert again.dumps() == MANIFEST.dumps()
    assert QuantParams.from_json(again.tensors["w"]).same(QPARAMS)
    assert again.outputs[0].params.same(QuantParams.of(0.5, -3))
    assert again.inputs[0].params is None


def test_nan_is_not_written():
    with pytest.raises(ValueError, match="JSON compliant"):
        Manifest("net", (), (), recipe={"x": float("nan")}).dumps()


def _altered(path, value):
    data = copy.deepcopy(MANIFEST.to_json())
    *parents, last = path
    node = data
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], FORMAT + 1, f"format {FORMAT + 1}, this tvm_qplugin reads format {FORMAT}"),
        (["format"], ..., "not made by tvm_qplugin"),
        (["model"], ..., "missing field model"),
        (["surprise"], 1, "unknown field surprise"),
        (["model"], 3, r"manifest.model: expected str, found '3'"),
        (["inputs"], {}, "manifest.inputs: expected a list"),
        (["inputs", 0, "shape", 2], "8", r"manifest.inputs\[0\].shape\[2\]: expected int, found '8'"),
        (["inputs", 0, "shape", 2], True, r"shape\[2\]: expected int"),
        (["operators", 1, "integer"], 0, r"manifest.operators\[1\].integer: expected bool"),
        (["operators", 0, "macs"], ..., r"manifest.operators\[0\]: missing field macs"),
        (["sizes", "model.so"], 1.5, r"manifest.sizes\['model.so'\]: expected int"),
        (["tensors", "w"], [], r"manifest.tensors\['w'\]: expected an object"),
        (["sha256"], None, "manifest.sha256: expected an object"),
    ],
)
def test_what_is_refused(path, value, message):
    with pytest.raises(ArtifactError, match=message):
        Manifest.loads(_altered(path, value))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "null", '"x"', "\x00"])
def test_not_a_manifest(text):
    with pytest.raises(ArtifactError, match="the manifest is not"):
        Manifest.loads(text)


def test_names_of_fields_stand_once_in_the_file():
    text = MANIFEST.dumps()
    assert text.count('"weight_bytes"') == 1
    assert json.loads(text)["operators"]["rows"][1][:3] == ["gelu", "gelu", None]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"columns": ["name"]}, "operators: expected columns and rows"),
        ({"columns": ["name"], "rows": [["a", "b"]]}, r"operators.rows: expected lists of 1 values"),
        ({"columns": ["name"], "rows": [["a"]]}, r"manifest.operators\[0\]: missing field"),
    ],
)
def test_tables_that_are_refused(table, message):
    with pytest.raises(ArtifactError, match=message):
        Manifest.loads(json.dumps({**MANIFEST.to_json(), "operators": table}))
