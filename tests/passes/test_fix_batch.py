"""FixBatch: golden modules, one sample like one of many, and what mixes samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin import demo
from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.frontend import check_canonical, load
from tvm_qplugin.passes.canonicalize import IO
from tvm_qplugin.passes.fix_batch import FixBatch


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((4, 6), "float32"), state: R.Tensor((3,), "float32")) -> R.Tensor((8, 3), "float32"):
        with R.dataflow():
            y = R.reshape(x, (8, 3))
            z = R.add(y, state)
            R.output(z)
        return z


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((1, 6), "float32"), state: R.Tensor((3,), "float32")) -> R.Tensor((2, 3), "float32"):
        with R.dataflow():
            y = R.reshape(x, (2, 3))
            z = R.add(y, state)
            R.output(z)
        return z


def test_shapes_follow_the_batch() -> None:
    assert_structural_equal(FixBatch()(Before), Expected)


def test_batch_1_stays() -> None:
    assert FixBatch()(Expected).same_as(Expected)


def test_a_sample_alone_is_a_sample_of_many() -> None:
    many = load(demo.model_path(), batch=5)
    one = FixBatch()(many)
    check_canonical(one)
    shape = tuple(int(extent) for extent in many["main"].params[0].ty.shape)
    x = np.random.default_rng(0).uniform(0, 1, shape).astype("float32")
    (wanted,) = compile_function(many)([x])
    for i in range(5):
        np.testing.assert_allclose(compile_function(one)([x[i : i + 1]])[0][0], wanted[i], rtol=1e-5)
    described = json.loads(str(one["main"].attrs[IO]))
    assert [entry["shape"][0] for side in described.values() for entry in side] == [1, 1]
    assert_structural_equal(one, load(demo.model_path()))


MIXING: dict[str, Callable[[Any], Any]] = {
    "mean": lambda x: relax.op.mean(x, [0]),
    "mean kept": lambda x: relax.op.mean(x, [0], keepdims=True),
    "transpose": lambda x: relax.op.permute_dims(x, [1, 0]),
    "slice": lambda x: relax.op.strided_slice(x, [0], [1], [3]),
    "row of all": lambda x: relax.op.reshape(x, (1, 24)),
    "softmax": lambda x: relax.op.nn.softmax(x, 0),
    "constant": lambda x: relax.op.add(x, relax.const(np.ones((4, 6), "float32"))),
    "take": lambda x: relax.op.take(x, relax.const([0, 3]), 0, mode="wrap"),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_samples_is_refused(name: str) -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 6), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(MIXING[name](x), "mixed")
        builder.emit_func_output(out)
    with pytest.raises((ModelError, RuntimeError), match="batch 4, the device runs 1, and mixed mixes the"):
        FixBatch()(IRModule({"main": builder.get()["main"]}))
