"""Bias correction and adaptive rounding of whole models."""

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax

from tvm_qplugin import recovery
from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build, compile_function
from tvm_qplugin.calibrator import calibrate
from tvm_qplugin.core.errors import CalibrationError, RecipeError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.frontend import load
from tvm_qplugin.layer_walk import LayerWalk
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.correct_bias import CorrectBias
from tvm_qplugin.passes.expand_weights import stored_arguments
from tvm_qplugin.passes.quantize_dynamic import QuantizeDynamic
from tvm_qplugin.recovery import recover, recover_stored, reservoir_for
from tvm_qplugin.samples import Reservoir
from tvm_qplugin.simulator import Simulator

RNG = np.random.default_rng(5)
SHAPE = (1, 9, 9, 4)
SAMPLES = [RNG.normal(0.4, 1, SHAPE).astype("float32") for _ in range(24)]


def weights(*shape: int) -> relax.Expr:
    """Ranges that differ between channels, and coarse ones: few large values."""
    values = RNG.normal(size=shape) * RNG.uniform(0.2, 4, (*shape[:1], *[1] * (len(shape) - 1)))
    return relax.const(np.where(RNG.random(shape) < 0.05, values * 9, values).astype("float32") * 0.2)


def network() -> IRModule:
    """Convolution, depthwise with a residual, grouped, split in float, dense."""
    builder, op = relax.BlockBuilder(), relax.op
    layouts = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))

    def conv(value: Any, name: str, *shape: int, bias: bool = True, relu: bool = True, **fields: Any) -> Any:
        value = builder.emit(op.nn.conv2d(value, weights(*shape), **layouts, **fields), f"{name}_conv")
        if bias:
            added = relax.const(RNG.normal(size=shape[0]).astype("float32"))
            value = builder.emit(op.add(value, added), f"{name}_sum" if relu else name)
        return builder.emit(op.clip(value, 0.0, 6.0), name) if relu else value

    with builder.function("main", [x]):
        with builder.dataflow():
            a = conv(x, "a", 12, 3, 3, 4, padding=[1] * 4)
            b = conv(a, "b", 12, 3, 3, 1, padding=[1] * 4, groups=12, bias=False)
            c = builder.emit(op.add(a, b), "c")
            d = conv(c, "d", 8, 1, 1, 6, groups=2, relu=False, strides=[2, 2])
            parts = builder.emit(op.split(builder.emit(op.nn.layer_norm(d, *_norm(), axes=[-1])), 2, 3))
            e = builder.emit(op.concat([parts[1], parts[0]], 3), "e")
            f = builder.emit(op.mean(e, [1, 2]), "f")
            g = builder.emit(op.matmul(f, weights(8, 5)), "g")
            out = builder.emit_output(op.nn.relu(g), "out")
        builder.emit_func_output(out)
    return builder.get()


def _norm() -> tuple[relax.Expr, relax.Expr]:
    return relax.const(np.ones(8, "float32")), relax.const(np.zeros(8, "float32"))


@pytest.fixture(scope="module")
def module() -> IRModule:
    return network()


@pytest.fixture(scope="module", params=["int8", "int16x8"])
def quantized(module: IRModule, request: pytest.FixtureRequest) -> IRModule:
    return quantize(module, recipe=request.param, calibration=SAMPLES)


def biases(module: IRModule) -> dict[str, Array]:
    """int32 biases by the layer's name, as they reach the kernels."""
    return {layer.name: layer.bias for layer in LayerWalk(module, []).layers.values()}


def test_layers_found(quantized: IRModule) -> None:
    assert list(biases(quantized)) == ["a", "b", "d", "out"]


def test_means_become_those_of_the_float_model(module: IRModule, quantized: IRModule) -> None:
    """Of the dense layer at the end, whose accumulator the oracle gives for every sample."""
    walk = LayerWalk(recover(quantized, module, SAMPLES), [[sample] for sample in SAMPLES])
    seen: dict[str, tuple[Any, list[Array]]] = {}

    def note(layer: Any, values: list[Array]) -> Any:
        seen[layer.name] = (layer, values)
        return layer

    assert len(list(walk.run(note))) == 4
    layer, values = seen["out"]
    zero, weight = layer.params.get("in_zp", 0), layer.weight.astype("int64").T
    wide = [(value.astype("int64") - zero) @ weight for value in values]
    found = (np.mean(wide, 0)[0] + layer.bias) * layer.unit
    run = compile_function(_until(module, "g"))
    wanted = np.mean([run([sample])[0][0] for sample in SAMPLES], 0)
    assert (np.abs(found - wanted) <= 0.51 * layer.unit + 1e-4 * np.abs(wanted)).all()


def _until(module: IRModule, name: str) -> IRModule:
    with ir.Emitter(module) as out:
        env: dict[Any, Any] = {}
        for var, value in ir.bindings(module["main"]):
            env[var] = out.emit(ir.substitute(value, env), var.name)
            if var.name == name:
                return out.finish([env[var]], False)
    raise AssertionError(name)


def test_wrong_biases_are_found_out(module: IRModule, quantized: IRModule) -> None:
    rng = np.random.default_rng(0)
    shifts = {name: rng.integers(-4000, 4000, bias.shape) for name, bias in biases(quantized).items()}
    spoilt = tvm.transform.Sequential([CorrectBias(shifts)])(quantized)
    wanted, found = (biases(recover(start, module, SAMPLES)) for start in (quantized, spoilt))
    for name, bias in wanted.items():
        np.testing.assert_array_equal(found[name], bias, err_msg=name)
        assert (biases(spoilt)[name] != bias).any()


@pytest.mark.parametrize("adaptive_rounding", [False, True])
def test_layers_see_what_the_corrected_model_computes(
    module: IRModule, quantized: IRModule, adaptive_rounding: bool
) -> None:
    result = recover(quantized, module, SAMPLES, adaptive_rounding=adaptive_rounding)
    artifact, oracle = build(result), Simulator(result)
    for sample in SAMPLES[:3]:
        np.testing.assert_array_equal(artifact.run(sample)[0], oracle.run(sample)[0])
    again = recover(result, module, SAMPLES)
    tvm.ir.assert_structural_equal(again, result)


def test_error_shrinks_on_other_samples(module: IRModule) -> None:
    quantized = quantize(module, calibration=SAMPLES)
    fresh = [np.random.default_rng(i).normal(0.4, 1, SHAPE).astype("float32") for i in range(100, 140)]
    run = compile_function(module)
    wanted = [run([sample])[0] for sample in fresh]
    changed = [recover(quantized, module, SAMPLES, adaptive_rounding=on) for on in (False, True)]
    errors = []
    for result in (quantized, *changed):
        found = compile_function(result)
        pairs = zip(fresh, wanted, strict=True)
        errors.append(sum(float(((found([x])[0] - y) ** 2).sum()) for x, y in pairs))
    assert errors[0] > errors[1] > errors[2]


def test_float_layers_stay(module: IRModule) -> None:
    recipe = Recipe(rules=(Rule(op="conv2d", scheme="float"), Rule(op="dense", scheme="float")))
    quantized = quantize(module, recipe=recipe, calibration=SAMPLES)
    tvm.ir.assert_structural_equal(recover(quantized, module, SAMPLES), quantized)


def test_wrong_samples(module: IRModule, quantized: IRModule) -> None:
    with pytest.raises(CalibrationError, match="needs samples, and none were given"):
        recover(quantized, module, [])
    with pytest.raises(CalibrationError, match=r"sample 1, input 'x': shape \[2\] was given"):
        recover(quantized, module, [SAMPLES[0], np.zeros(2, "float32")])


def test_a_recipe_asks_for_it(module: IRModule) -> None:
    recipe = Recipe("int8", adaptive_rounding=True, correct_bias=True)
    found = quantize(module, recipe=recipe, calibration=iter(SAMPLES))
    quantized = quantize(module, calibration=SAMPLES)
    wanted = recover(quantized, module, SAMPLES, adaptive_rounding=True)
    assert biases(found).keys() == biases(wanted).keys()
    tvm.ir.assert_structural_equal(found["main"].body, wanted["main"].body)


def test_a_table_is_not_enough(module: IRModule) -> None:
    table = calibrate(load(module), SAMPLES)
    with pytest.raises(CalibrationError, match="needs samples, and a table holds only ranges"):
        quantize(module, recipe=Recipe(correct_bias=True), calibration=table)


def test_rounding_alone_leaves_biases(module: IRModule, quantized: IRModule) -> None:
    found = recover(quantized, module, SAMPLES, adaptive_rounding=True, correct_bias=False)
    for name, bias in biases(quantized).items():
        np.testing.assert_array_equal(biases(found)[name], bias)


def test_reservoir() -> None:
    few, many = Reservoir(5), Reservoir(5)
    for i in range(3):
        few.offer(np.float32(i))
    for i in range(1000):
        many.offer(np.float32(i))
    assert few.samples == [0, 1, 2]
    assert len(many.samples) == 5 and max(many.samples) > 200 and many.seen == 1000


def test_no_more_samples_than_fit(module: IRModule, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reservoir_for(module).size == 256
    monkeypatch.setattr(recovery, "MEMORY", 8000)
    assert reservoir_for(module).size == 8000 // (4 * 9 * 9 * 4 + 3 * 9 * 9 * 12)


# --- layers in float with int8 weights


def dynamic(module: IRModule, **options: Any) -> IRModule:
    """Also of the smallest weights."""
    stored = tvm.transform.Sequential([QuantizeDynamic(smallest=1)])(module)
    return recover_stored(stored, module, SAMPLES, **options) if options else stored


def test_dynamic_layers_get_their_float_means(module: IRModule) -> None:
    """But for the rounding of their inputs, each seeing the corrected layers before it."""
    names = ["a_sum", "b_conv", "d", "g"]
    plain, corrected = dynamic(module), dynamic(module, correct_bias=True)
    wanted, before, after = (channel_means(m, names) for m in (module, plain, corrected))
    for name in names:
        assert 3 * np.abs(after[name] - wanted[name]).sum() < np.abs(before[name] - wanted[name]).sum()


def channel_means(module: IRModule, names: list[str]) -> dict[str, Array]:
    """Of the tensors that these layers have in the float module, their biases included."""
    found = recovery._channel_means(module, [_total(module, name) for name in names], [[s] for s in SAMPLES])
    return {name: found[_total(module, name)] for name in names}


def _total(module: IRModule, name: str) -> str:
    """The sum behind a product that had no bias before."""
    defined = {var.name: value for var, value in ir.bindings(module["main"])}
    return name if name in defined else next(key for key in defined if key.startswith(name))


def test_dynamic_rounding_changes_weights_only(module: IRModule) -> None:
    before, after = dynamic(module), dynamic(module, adaptive_rounding=True, correct_bias=False)
    old, new = (stored_arguments(m) for m in (before, after))
    moved = 0
    for key, constant in old.items():
        difference = new[key].array.astype("int32") - constant.array
        moved += int(np.abs(difference).sum())
        assert constant.grid.scale.tolist() == new[key].grid.scale.tolist()
    assert moved > 0


def test_recovered_dynamic_modules_run_as_the_oracle_says(module: IRModule) -> None:
    recovered = dynamic(module, correct_bias=True, adaptive_rounding=True)
    artifact, oracle = build(recovered), Simulator(recovered)
    for sample in SAMPLES[:3]:
        np.testing.assert_array_equal(artifact.run(sample)[0], oracle.run(sample)[0])


def test_dynamic_without_such_layers_comes_back(module: IRModule) -> None:
    stored = tvm.transform.Sequential([QuantizeDynamic(smallest=10**6)])(module)
    assert recover_stored(stored, module, SAMPLES).same_as(stored)


def test_dynamic_needs_samples_to_recover(module: IRModule) -> None:
    with pytest.raises(CalibrationError, match="samples"):
        quantize(module, recipe=Recipe("mine", "dynamic", correct_bias=True))
    with pytest.raises(RecipeError, match="fp16 has no use for"):
        Recipe("mine", "fp16", correct_bias=True)
