"""EqualizeLayers and AbsorbBias: golden modules, and that functions stay what they are on samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.builder import compile_function
from tvm_qplugin.calibrator import observe
from tvm_qplugin.equalization import equalize
from tvm_qplugin.passes.absorb_bias import AbsorbBias
from tvm_qplugin.passes.equalize_layers import HEADROOM, EqualizeLayers
from tvm_qplugin.passes.layer_pairs import layer_pairs

RNG = np.random.default_rng(11)
SHAPE = (1, 8, 8, 3)
SAMPLES = [RNG.normal(0.2, 1, SHAPE).astype("float32") for _ in range(12)]


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[4.0, 0.5], [1.0, -0.25]], "float32"))
            b = R.add(a, R.const([[8.0, 3.0]], "float32"))
            c = R.clip(b, 0.0, 6.0)
            d = R.matmul(c, R.const([[1.0, -0.25], [2.0, 1.0]], "float32"))
            R.output(d)
        return d


@I.ir_module
class Balanced:
    """Factors 2 and 0.5: both weights of a channel reach to 2 and 1; the clip has no bound any more."""

    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[2.0, 1.0], [0.5, -0.5]], "float32"))
            b = R.add(a, R.const([[4.0, 6.0]], "float32"))
            c = R.nn.relu(b)
            d = R.matmul(c, R.const([[2.0, -0.5], [1.0, 0.5]], "float32"))
            R.output(d)
        return d


@I.ir_module
class Bounded:
    """Channel 0 reaches 6 and keeps its factor, channel 1 grows from 0.675 to 5.4."""

    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[4.0, 4.0], [1.0, -2.0]], "float32"))
            b = R.add(a, R.const([[8.0, 24.0]], "float32"))
            c = R.clip(b, 0.0, 6.0)
            d = R.matmul(c, R.const([[1.0, -0.25], [0.25, 0.125]], "float32"))
            R.output(d)
        return d


@I.ir_module
class Absorbed:
    """Channel 1 is at least 2: so much less of it, and 2 * [2, 1] more behind it; channel 0 may exceed 6."""

    @R.function
    def main(x: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[4.0, 0.5], [1.0, -0.25]], "float32"))
            b = R.add(a, R.const([[8.0, 1.0]], "float32"))
            c = R.clip(b, 0.0, 6.0)
            p = R.matmul(c, R.const([[1.0, -0.25], [2.0, 1.0]], "float32"))
            d = R.add(p, R.const([4.0, 2.0], "float32"))
            R.output(d)
        return d


def run(mod: IRModule, *passes: Any) -> IRModule:
    return tvm.transform.Sequential(passes)(mod)


def test_weights_are_balanced() -> None:
    assert_structural_equal(run(Before, EqualizeLayers()), Balanced)


def test_peaks_are_balanced_below_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"c": np.array([6.0, 0.125 * HEADROOM * 6])}
    monkeypatch.setattr("tvm_qplugin.passes.equalize_layers._of_peaks", lambda *_: np.array([1.5, 0.01]))
    assert_structural_equal(run(Before, EqualizeLayers(peaks)), Bounded)


def test_biases_are_absorbed() -> None:
    ranges = {"c": (np.array([1.0, 2.0]), np.array([9.0, 4.0]))}
    assert_structural_equal(run(Before, AbsorbBias(ranges)), Absorbed)


@pytest.mark.parametrize("ranges", [{}, {"c": (np.array([-1.0, 0.0]), np.array([2.0, 2.0]))}])
def test_nothing_to_absorb(ranges: dict[str, Any]) -> None:
    assert_structural_equal(run(Before, AbsorbBias(ranges)), Before)


def network(clamp: Any = relax.op.nn.relu) -> IRModule:
    """conv, depthwise, conv with a residual, grouped, pool, mean, dense; channels of very different range."""
    builder, op = relax.BlockBuilder(), relax.op
    rng = np.random.default_rng(1)
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))

    def conv(value: Any, name: str, *shape: int, active: bool = True, **fields: Any) -> Any:
        weight = rng.normal(size=shape) * 2.0 ** rng.uniform(-4, 2, (shape[0], 1, 1, 1))
        layout = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}
        call = op.nn.conv2d(value, relax.const(weight.astype("float32")), **layout, **fields)
        product = builder.emit(call, f"{name}_conv")
        bias = relax.const(rng.normal(0.5, 1, shape[0]).astype("float32"))
        total = builder.emit(op.add(product, bias), f"{name}_sum" if active else name)
        return builder.emit(clamp(total), name) if active else total

    with builder.function("main", [x]):
        with builder.dataflow():
            a = conv(x, "a", 8, 3, 3, 3, padding=[1] * 4)
            b = conv(a, "b", 8, 3, 3, 1, padding=[1] * 4, groups=8)
            c = conv(b, "c", 8, 1, 1, 8, active=False)
            d = conv(builder.emit(op.add(c, a), "sum"), "d", 8, 1, 1, 8)
            e = conv(
                builder.emit(op.nn.max_pool2d(d, (2, 2), layout="NHWC"), "pool"), "e", 6, 1, 1, 4, groups=2
            )
            f = builder.emit(op.mean(e, [1, 2]), "f")
            out = builder.emit_output(
                op.matmul(f, relax.const(rng.normal(size=(6, 5)).astype("float32"))), "out"
            )
        builder.emit_func_output(out)
    return builder.get()


def outputs(mod: IRModule) -> np.ndarray[Any, Any]:
    compiled = compile_function(mod)
    return np.concatenate([compiled([x])[0] for x in SAMPLES])


def relu6(value: Any) -> Any:
    return relax.op.clip(value, 0.0, 6.0)


def test_pairs() -> None:
    found = [(p.first.output.name, p.second.output.name, p.local) for p in layer_pairs(network()["main"])]
    assert found == [("b", "c", True), ("d", "e", False), ("e", "out", False)]


def test_relu_lets_factors_pass() -> None:
    before, after = network(), run(network(), EqualizeLayers())
    with pytest.raises(ValueError, match="StructuralEqual"):
        assert_structural_equal(before, after)
    np.testing.assert_allclose(outputs(after), outputs(before), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clamp", [relax.op.nn.relu, relu6], ids=["relu", "relu6"])
def test_the_same_on_the_samples(clamp: Any) -> None:
    before = network(clamp)
    after = equalize(before, SAMPLES)
    np.testing.assert_allclose(outputs(after), outputs(before), rtol=1e-4, atol=1e-4)
    names = [p.first.output.name for p in layer_pairs(before["main"])]
    old, new = (observe(mod, SAMPLES, names, "per_channel") for mod in (before, after))
    for name in names:
        assert new[name].high.max() <= old[name].high.max() * 1.001
    assert sum(_spread(new[n].high) for n in names) < 0.7 * sum(_spread(old[n].high) for n in names)


def _spread(high: np.ndarray[Any, Any]) -> float:
    return float(np.log(high.max() / np.maximum(high, 1e-3 * high.max())).mean())


def test_no_pairs() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.nn.relu(x))
        builder.emit_func_output(out)
    assert_structural_equal(equalize(builder.get(), []), builder.get())
