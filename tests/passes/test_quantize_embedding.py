"""QuantizeEmbedding: the golden rewrite, what stays float, sizes and results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.frontend import load
from tvm_qplugin.passes.quantize_embedding import QuantizeEmbedding

TABLE = np.arange(-2048, 2048, dtype="float32").reshape(512, 8)


@I.ir_module
class Before:
    @R.function
    def main(ids: R.Tensor((1, 2), "int64")) -> R.Tensor((1, 2, 2), "float32"):
        with R.dataflow():
            y = R.take(R.const([[127.0, -127.0], [2.0, 254.0]], "float32"), ids, axis=0)
            R.output(y)
        return y


@I.ir_module
class Expected:
    @R.function
    def main(ids: R.Tensor((1, 2), "int64")) -> R.Tensor((1, 2, 2), "float32"):
        with R.dataflow():
            codes = R.take(R.const([[127, -127], [1, 127]], "int8"), ids, axis=0)
            scales = R.take(R.const([[1.0], [2.0]], "float32"), ids, axis=0)
            real = R.astype(codes, "float32")
            y = R.multiply(real, scales)
            R.output(y)
        return y


def apply(mod: Any, **options: Any) -> Any:
    return tvm.transform.Sequential([QuantizeEmbedding(**options)])(mod)


def test_golden() -> None:
    found = apply(Before, smallest=1)
    tvm.ir.assert_structural_equal(found["main"], Expected["main"], map_free_vars=True)
    tvm.ir.assert_structural_equal(apply(found, smallest=1), found)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"smallest": 1, "recipe": Recipe("mine", rules=(Rule("^y$", scheme="float"),))},
        {"smallest": 1, "recipe": Recipe("mine", rules=(Rule("^y$", scheme="fp16"),))},
    ],
)
def test_small_tables_and_those_of_the_recipe_stay(options: dict[str, Any]) -> None:
    tvm.ir.assert_structural_equal(apply(Before, **options), Before)


@pytest.mark.parametrize(
    "recipe", ["dynamic", "int8", "int16x8", Recipe("mixed", rules=(Rule(scheme="dynamic"),))]
)
def test_the_whole_way(recipe: str | Recipe) -> None:
    builder = tvm.relax.BlockBuilder()
    ids = tvm.relax.Var("ids", tvm.relax.TensorType((1, 3), "int64"))
    with builder.function("main", [ids]):
        with builder.dataflow():
            out = builder.emit_output(tvm.relax.op.take(tvm.relax.const(TABLE), ids, 0))
        builder.emit_func_output(out)
    given = np.array([[0, 511, 7]], "int64")
    artifact = build(quantize(load(builder.get()), recipe=recipe, calibration=[given]))
    found = artifact.run(given)[0]
    np.testing.assert_allclose(found, TABLE[given], atol=8.1)
    assert np.abs(found - TABLE[given]).max() > 0
