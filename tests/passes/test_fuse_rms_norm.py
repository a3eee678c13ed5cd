"""FuseRMSNorm: golden modules, other spellings, and what is none."""

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
from tvm_qplugin.passes.fuse_rms_norm import FuseRMSNorm

op = relax.op
Part = Callable[[relax.Expr], relax.Expr]


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((3, 2), "float32")) -> R.Tensor((3, 2), "float32"):
        with R.dataflow():
            p = R.power(x, R.const(2.0, "float32"))
            v = R.mean(p, axis=[-1], keepdims=True)
            e = R.add(v, R.const(0.5, "float32"))
            s = R.rsqrt(e)
            n = R.multiply(x, s)
            y = R.multiply(n, R.const([3.0, 4.0], "float32"))
            R.output(y)
        return y


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((3, 2), "float32")) -> R.Tensor((3, 2), "float32"):
        with R.dataflow():
            y = R.nn.rms_norm(x, R.const([3.0, 4.0], "float32"), axes=[-1], epsilon=0.5)
            R.output(y)
        return y


def fused(mod: IRModule) -> IRModule:
    return tvm.transform.Sequential([FuseRMSNorm()])(mod)


def test_golden() -> None:
    tvm.ir.assert_structural_equal(fused(Before), Expected, map_free_vars=True)


def norm(square: Part, by: Part, axis: int = -1, factor: float = 1.0, left: bool = False) -> IRModule:
    """``by`` makes ``1 / sqrt`` of the mean of the square of ``factor * x``; no scales."""
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3, 4), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            squared = x if factor == 1 else bb.emit(op.multiply(x, relax.const(factor, "float32")))
            mean = bb.emit(op.mean(bb.emit(square(squared)), [axis], keepdims=True))
            root = bb.emit(by(bb.emit(op.add(mean, relax.const(1e-5, "float32")))))
            made = op.multiply(root, x) if left else op.multiply(x, root)
            out = bb.emit_output(bb.emit(made, "y"))
        bb.emit_func_output(out)
    return bb.get()


def twice(x: relax.Expr) -> relax.Expr:
    return op.multiply(x, x)


def reciprocal(x: relax.Expr) -> relax.Expr:
    return op.divide(relax.const(1.0, "float32"), op.sqrt(x))


def operators(mod: IRModule) -> list[str]:
    return [name for _, value in ir.bindings(mod["main"]) if (name := ir.op_name(value))]


@pytest.mark.parametrize("square", [op.square, twice])
@pytest.mark.parametrize(("by", "left"), [(op.rsqrt, True), (reciprocal, False)])
def test_other_spellings(square: Part, by: Part, left: bool) -> None:
    mod = norm(square, by, left=left)
    made = fused(mod)
    assert operators(made) == ["relax.nn.rms_norm"]
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    (exact,), (found,) = (compile_function(m)([x]) for m in (mod, made))
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "mod",
    [
        norm(twice, op.rsqrt, axis=1),
        norm(twice, op.rsqrt, factor=2.0),
        norm(twice, op.sqrt),
        norm(op.abs, op.rsqrt),
    ],
)
def test_what_is_none_stays(mod: IRModule) -> None:
    made = operators(fused(mod))
    assert "relax.nn.rms_norm" not in made and made == operators(mod)
