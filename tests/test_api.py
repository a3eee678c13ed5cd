"""The public names, used the way the README shows them, in a process of their own."""

import subprocess
import sys

import pytest
from tvm.ir import assert_structural_equal

import tvm_qplugin
from tvm_qplugin import demo
from tvm_qplugin.builder import SOURCE
from tvm_qplugin.core.errors import ModelError, QPluginError, RecipeError, TargetError
from tvm_qplugin.passes.expand_weights import scheme_of
from tvm_qplugin.pipeline import is_quantized

SCRIPT = """
import numpy as np
import tvm_qplugin as qp
from tvm_qplugin import demo

samples = demo.calibration()[:8]
module = qp.quantize(demo.model_path(), calibration=samples, io="int8")
artifact = qp.build(module, target="host")
x = np.zeros(artifact.manifest.inputs[0].shape, "int8")
assert (artifact.run(x)[0] == qp.simulate(module, x)[0]).all()
loaded = qp.load(demo.model_path())
table = qp.calibrate(loaded, samples)
again = qp.quantize(demo.model_path(), calibration=table)
assert callable(qp.build) and callable(qp.simulate) and callable(qp.calibrate) and callable(qp.quantize)
print("ok")
"""


def test_the_readme_way():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr


def test_every_public_name_resolves_to_a_function_or_class():
    for name in tvm_qplugin.__all__:
        assert callable(getattr(tvm_qplugin, name)), name


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"recipe": 5}, RecipeError, "a name, a JSON file"),
        ({"recipe": {"rules": [{"per_channel": "yes"}]}}, RecipeError, "true or false"),
        ({"target": ["host"]}, TargetError, "unknown"),
        ({"io": "int4"}, RecipeError, "float, int8, uint8"),
        ({"calibration": None}, QPluginError, "calibration"),
    ],
)
def test_wrong_options_are_told(options, error, words):
    with pytest.raises(error, match=words):
        tvm_qplugin.quantize(demo.model_path(), **{"calibration": demo.calibration()[:2], **options})


def test_what_is_no_module_is_told():
    with pytest.raises(ModelError, match="IRModule"):
        tvm_qplugin.build(5)


def test_rules_choose_observers():
    recipe = {"observer": "min_max", "rules": [{"op": "dense", "observer": "moving_average"}]}
    table = None

    def keep(name, value):
        nonlocal table
        table = name

    module = tvm_qplugin.quantize(
        demo.model_path(), calibration=demo.calibration()[:4], recipe=recipe, hooks=[keep]
    )
    assert table is not None
    assert module["main"] is not None
    with pytest.raises(QPluginError, match="magic"):
        tvm_qplugin.quantize(
            demo.model_path(),
            calibration=demo.calibration()[:2],
            recipe={"rules": [{"op": "dense", "observer": "magic"}]},
        )


@pytest.mark.parametrize(("recipe", "apart"), [("fp16", 0.005), ("dynamic", 0.05)])
def test_schemes_without_calibration(recipe, apart):
    module = tvm_qplugin.quantize(demo.model_path(), recipe=recipe)
    assert scheme_of(module) == recipe and not is_quantized(module)
    again = tvm_qplugin.quantize(module, recipe=recipe, calibration=demo.calibration()[:2])
    assert_structural_equal(without_source(again), without_source(module))
    image = demo.evaluation()[0][0].reshape(1, 1, 8, 8)
    artifact = tvm_qplugin.build(module)
    (wanted,) = tvm_qplugin.build(tvm_qplugin.load(demo.model_path())).run(image)
    for found in (artifact.run(image)[0], tvm_qplugin.simulate(module, image)[0]):
        assert 0 < abs(found - wanted).max() <= apart * abs(wanted).max()
    assert not artifact.manifest.tensors and artifact.manifest.recipe["scheme"] == recipe


def without_source(module):
    return module["main"].without_attr(SOURCE)


def test_other_schemes_start_from_the_expanded_constants():
    half = tvm_qplugin.quantize(demo.model_path(), recipe="fp16")
    samples = demo.calibration()[:4]
    integer = tvm_qplugin.quantize(half, calibration=samples)
    assert is_quantized(integer) and not scheme_of(integer)
    assert all(op.integer for op in tvm_qplugin.build(integer).manifest.operators)
    assert scheme_of(tvm_qplugin.quantize(half, recipe="dynamic")) == "dynamic"
    with pytest.raises(RecipeError, match="io='int8' was asked for, but scheme dynamic"):
        tvm_qplugin.quantize(half, recipe="dynamic", io="int8")
