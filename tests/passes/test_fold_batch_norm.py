"""FoldBatchNorm: golden modules, and exact arithmetic on random ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal

from tvm_qplugin.passes.fold_batch_norm import FoldBatchNorm
from tvm_qplugin.passes.rebuild import op_name, straight_bindings, value_of

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(1)


def statistics(channels: int) -> list[Array]:
    """gamma, beta, mean, variance."""
    return [(RNG.uniform(0.5, 2, channels) * s).astype("float32") for s in (1, -1, 1, 1)]


def main_of(*calls: Any, shape: tuple[int, ...], keep: bool = False) -> IRModule:
    """``main`` applying ``calls`` (functions of an expression) in a row; ``keep``: returns the first too."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", params=[x]):
        with builder.dataflow():
            values = [x]
            for call in calls:
                values.append(builder.emit(call(values[-1])))
            out = builder.emit_output(relax.Tuple([values[1], values[-1]]) if keep else values[-1])
        builder.emit_func_output(out)
    return builder.get()


def norm(stats: list[Array], axis: int = 1) -> Any:
    constants = [relax.const(s) for s in stats]
    return lambda x: relax.TupleGetItem(
        relax.op.nn.batch_norm(x, *constants, axis=axis, epsilon=1e-3, training=False), 0
    )


def run(module: IRModule, x: Array) -> list[Array]:
    module = relax.transform.DecomposeOpsForInference()(module)
    vm = relax.VirtualMachine(tvm.compile(module, target=tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    out = vm["main"](tvm.runtime.tensor(x))
    return [t.numpy() for t in ([out] if hasattr(out, "numpy") else out)]


def folded_operators(module: IRModule) -> list[str]:
    return [op_name(value) for _, value in straight_bindings(FoldBatchNorm()(module)["main"])]


def exact_conv(x: Array, weight: Array, bias: Array, stats: list[Array]) -> Array:
    """1x1 convolution, bias, batch norm in float64."""
    gamma, beta, mean, var = (s.astype("float64")[None, :, None, None] for s in stats)
    y = np.einsum("nchw,oc->nohw", x.astype("float64"), weight[:, :, 0, 0].astype("float64"))
    return (y + bias[None, :, None, None] - mean) / np.sqrt(var + 1e-3) * gamma + beta


@pytest.mark.parametrize("with_bias", [False, True])
def test_after_convolution_equals_exact_arithmetic(with_bias: bool) -> None:
    weight, bias = RNG.normal(size=(5, 3, 1, 1)).astype("float32"), RNG.normal(size=5).astype("float32")
    stats, x = statistics(5), RNG.normal(size=(2, 3, 4, 4)).astype("float32")
    calls = [lambda x: relax.op.nn.conv2d(x, relax.const(weight))]
    if with_bias:
        calls.append(lambda x: relax.op.add(x, relax.const(bias.reshape(1, 5, 1, 1))))
    module = main_of(*calls, norm(stats), shape=x.shape)
    assert folded_operators(module) == ["nn.conv2d", "add"]
    expected = exact_conv(x, weight, bias * with_bias, stats)
    np.testing.assert_allclose(run(FoldBatchNorm()(module), x)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_weight_that_would_overflow_keeps_its_norm_apart() -> None:
    weight = np.full((2, 2, 1, 1), 3e38, "float32")
    stats = [np.full(2, value, "float32") for value in (100, 0, 0, 1)]
    module = main_of(lambda x: relax.op.nn.conv2d(x, relax.const(weight)), norm(stats), shape=(1, 2, 3, 3))
    assert folded_operators(module) == ["nn.conv2d", "nn.conv2d", "add"]
    constants = [value_of(call.args[1]) for _, call in straight_bindings(FoldBatchNorm()(module)["main"])]
    assert all(np.isfinite(constant).all() for constant in constants)


def test_golden() -> None:
    weight = np.ones((2, 2, 1, 1), "float32")
    gamma, beta, mean, var = (np.float32(v) for v in ([2, 4], [1, 1], [3, 0], [3.999, 3.999]))
    before = main_of(
        lambda x: relax.op.nn.conv2d(x, relax.const(weight)),
        norm([gamma, beta, mean, var]),
        shape=(1, 2, 3, 3),
    )
    scaled = weight * np.float32([1, 2]).reshape(2, 1, 1, 1)
    expected = main_of(
        lambda x: relax.op.nn.conv2d(x, relax.const(scaled)),
        lambda x: relax.op.add(x, relax.const(np.float32([-2, 1]).reshape(1, 2, 1, 1))),
        shape=(1, 2, 3, 3),
    )
    assert_structural_equal(FoldBatchNorm()(before), relax.transform.CanonicalizeBindings()(expected))


def test_depthwise() -> None:
    weight, stats = RNG.normal(size=(3, 1, 3, 3)).astype("float32"), statistics(3)
    module = main_of(
        lambda x: relax.op.nn.conv2d(x, relax.const(weight), groups=3), norm(stats), shape=(1, 3, 5, 5)
    )
    x = RNG.normal(size=(1, 3, 5, 5)).astype("float32")
    np.testing.assert_allclose(run(FoldBatchNorm()(module), x)[0], run(module, x)[0], rtol=1e-4, atol=1e-5)
    assert folded_operators(module) == ["nn.conv2d", "add"]


def test_dense() -> None:
    weight, stats = RNG.normal(size=(6, 4)).astype("float32"), statistics(4)
    module = main_of(lambda x: relax.op.matmul(x, relax.const(weight)), norm(stats), shape=(2, 6))
    x = RNG.normal(size=(2, 6)).astype("float32")
    np.testing.assert_allclose(run(FoldBatchNorm()(module), x)[0], run(module, x)[0], rtol=1e-4, atol=1e-5)
    assert folded_operators(module) == ["matmul", "add"]


@pytest.mark.parametrize(
    ("shape", "operator"),
    [((1, 3, 4, 4), "nn.conv2d"), ((2, 3, 5), "multiply"), ((2, 3), "multiply")],
    ids=["image", "sequence", "features"],
)
def test_alone_becomes_depthwise_or_multiply_and_add(shape: tuple[int, ...], operator: str) -> None:
    stats, x = statistics(3), RNG.normal(size=shape).astype("float32")
    module = main_of(norm(stats), shape=x.shape)
    assert folded_operators(module) == [operator, "add"]
    np.testing.assert_allclose(run(FoldBatchNorm()(module), x)[0], run(module, x)[0], rtol=1e-4, atol=1e-5)


def test_two_in_a_row_fold_into_one_convolution() -> None:
    weight = RNG.normal(size=(3, 3, 1, 1)).astype("float32")
    x = RNG.normal(size=(1, 3, 4, 4)).astype("float32")
    module = main_of(
        lambda x: relax.op.nn.conv2d(x, relax.const(weight)),
        norm(statistics(3)),
        norm(statistics(3)),
        shape=x.shape,
    )
    assert folded_operators(module) == ["nn.conv2d", "add"]
    np.testing.assert_allclose(run(FoldBatchNorm()(module), x)[0], run(module, x)[0], rtol=1e-4, atol=1e-4)


def test_convolution_used_elsewhere_stays() -> None:
    weight, x = (
        RNG.normal(size=(3, 3, 1, 1)).astype("float32"),
        RNG.normal(size=(1, 3, 4, 4)).astype("float32"),
    )
    module = main_of(
        lambda x: relax.op.nn.conv2d(x, relax.const(weight)), norm(statistics(3)), shape=x.shape, keep=True
    )
    assert folded_operators(module) == ["nn.conv2d", "nn.conv2d", "add"]
    for actual, expected in zip(run(FoldBatchNorm()(module), x), run(module, x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    kept = next(v for _, v in straight_bindings(FoldBatchNorm()(module)["main"]) if op_name(v) == "nn.conv2d")
    np.testing.assert_array_equal(value_of(kept.args[1]), weight)
