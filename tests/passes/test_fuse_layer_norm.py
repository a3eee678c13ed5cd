"""FuseLayerNorm: golden modules, other spellings, and what is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.builder import compile_function
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.fuse_layer_norm import FuseLayerNorm

op = relax.op
Part = Callable[[relax.Expr], relax.Expr]


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((3, 2), "float32")) -> R.Tensor((3, 2), "float32"):
        with R.dataflow():
            m = R.mean(x, axis=[-1], keepdims=True)
            c = R.subtract(x, m)
            p = R.power(c, R.const(2.0, "float32"))
            v = R.mean(p, axis=[-1], keepdims=True)
            e = R.add(v, R.const(0.5, "float32"))
            s = R.sqrt(e)
            n = R.divide(c, s)
            g = R.multiply(n, R.const([3.0, 4.0], "float32"))
            y = R.add(g, R.const([5.0, 6.0], "float32"))
            R.output(y)
        return y


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((3, 2), "float32")) -> R.Tensor((3, 2), "float32"):
        with R.dataflow():
            y = R.nn.layer_norm(
                x, R.const([3.0, 4.0], "float32"), R.const([5.0, 6.0], "float32"), axes=[-1], epsilon=0.5
            )
            R.output(y)
        return y


def fused(mod: IRModule) -> IRModule:
    return tvm.transform.Sequential([FuseLayerNorm()])(mod)


def test_golden() -> None:
    tvm.ir.assert_structural_equal(fused(Before), Expected, map_free_vars=True)


def number(value: float) -> relax.Expr:
    return relax.const(value, "float32")


def norm(square: Part, by: Part, axis: int = -1, scales: int = 4) -> IRModule:
    """``by`` makes ``1 / sqrt`` of the variance; the difference is computed twice, as some exporters do."""
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3, 4), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            mean = bb.emit(op.mean(x, [axis], keepdims=True))
            centred, again = bb.emit(op.subtract(x, mean)), bb.emit(op.subtract(x, mean))
            variance = bb.emit(op.mean(bb.emit(square(again)), [axis], keepdims=True))
            total = bb.emit(op.add(variance, number(1e-5)))
            made = bb.emit(op.multiply(centred, bb.emit(by(total))))
            weights = np.arange(1, scales + 1, dtype="float32")
            made = bb.emit(op.multiply(made, relax.const(weights)))
            out = bb.emit_output(bb.emit(op.add(made, relax.const(weights / 2)), "y"))
        bb.emit_func_output(out)
    return bb.get()


def twice(x: relax.Expr) -> relax.Expr:
    return op.multiply(x, x)


def reciprocal(x: relax.Expr) -> relax.Expr:
    return op.divide(number(1.0), op.sqrt(x))


def operators(mod: IRModule) -> list[str]:
    return [name for _, value in ir.bindings(mod["main"]) if (name := ir.op_name(value))]


@pytest.mark.parametrize("square", [op.square, twice])
@pytest.mark.parametrize("by", [op.rsqrt, reciprocal])
def test_other_spellings(square: Part, by: Part) -> None:
    mod = norm(square, by)
    made = fused(mod)
    assert operators(made) == ["relax.nn.layer_norm"]
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    (exact,), (found,) = (compile_function(m)([x]) for m in (mod, made))
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "mod",
    [
        norm(twice, op.rsqrt, axis=1),
        norm(twice, op.rsqrt, scales=1),
        norm(twice, op.sqrt),
        norm(op.abs, op.rsqrt),
        norm(lambda x: op.power(x, number(3.0)), op.rsqrt),
    ],
)
def test_what_is_none_stays(mod: IRModule) -> None:
    made = operators(fused(mod))
    assert "relax.nn.layer_norm" not in made and made == operators(mod)
