"""Models of mixed schemes from end to end: compiled equal to the oracle, described, stored."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax

from tvm_qplugin import build, load, quantize
from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.inspection import describe_module
from tvm_qplugin.report import operators_json
from tvm_qplugin.samples import inputs_of
from tvm_qplugin.simulator import Simulator
from tvm_qplugin.stage import load_module, save_module
from tvm_qplugin.targets import find_profile

SHAPE = (1, 6, 6, 4)
LAYOUT = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}
LAYERS = ("a", "b", "c", "p", "s", "d")
SCHEMES = ("int8", "int16x8", "float", "fp16", "dynamic", "weight_int8")


def samples(count: int) -> list[Array]:
    return [np.random.default_rng(i).normal(size=SHAPE).astype("float32") for i in range(count)]


def network() -> IRModule:
    """conv a, depthwise b, residual c, pool p, sigmoid s, flatten, dense d."""
    rng = np.random.default_rng(1)
    bb, op = relax.BlockBuilder(), relax.op
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))

    def weight(*shape: int) -> Any:
        return relax.const((rng.normal(size=shape) * 0.4).astype("float32"))

    def conv(value: Any, name: str, *shape: int, groups: int = 1) -> Any:
        value = op.nn.conv2d(value, weight(*shape), padding=[1] * 4, groups=groups, **LAYOUT)
        value = bb.emit(op.add(bb.emit(value, f"{name}_conv"), weight(shape[0])), f"{name}_sum")
        return bb.emit(op.nn.relu(value), name)

    with bb.function("main", [x]):
        with bb.dataflow():
            a = conv(x, "a", 32, 3, 3, 4)
            c = bb.emit(op.add(a, conv(a, "b", 32, 3, 3, 1, groups=32)), "c")
            p = bb.emit(op.nn.max_pool2d(c, [2, 2], [2, 2], layout="NHWC"), "p")
            s = bb.emit(op.sigmoid(p), "s")
            flat = bb.emit(op.reshape(s, (1, 288)), "flat")
            out = bb.emit_output(op.matmul(flat, weight(288, 5)), "d")
        bb.emit_func_output(out)
    return bb.get()


@pytest.fixture(scope="module")
def module() -> IRModule:
    return load(network())


def recipe_of(schemes: dict[str, str]) -> Recipe:
    return Recipe("mixed", rules=tuple(Rule(f"^{name}$", scheme=scheme) for name, scheme in schemes.items()))


def _mixtures() -> list[dict[str, str]]:
    """Every scheme beside every other one, shuffled."""
    rng = np.random.default_rng(1)
    pairs = list(itertools.permutations(SCHEMES[:3], 2))
    fixed = [dict(zip(LAYERS, itertools.cycle(pair), strict=False)) for pair in pairs]
    return fixed + [{name: str(rng.choice(SCHEMES)) for name in LAYERS} for _ in range(6)]


@pytest.mark.parametrize("schemes", _mixtures(), ids=lambda schemes: "-".join(schemes.values()))
def test_compiled_equals_oracle(module: IRModule, schemes: dict[str, str]) -> None:
    quantized = quantize(module, recipe=recipe_of(schemes), calibration=samples(10))
    artifact, oracle = build(quantized), Simulator(quantized)
    for x in samples(3):
        np.testing.assert_array_equal(artifact.run(x)[0], oracle.run(x)[0])
    run = compile_function(module)
    wanted, found = (
        np.concatenate([f(x) for x in samples(10)])
        for f in (lambda x: run([x])[0], lambda x: artifact.run(x)[0])
    )
    assert 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()) > 25
    kernels = {op.name: op.kernel for op in artifact.manifest.operators}
    for name, scheme in schemes.items():
        if name in ("a", "b", "d"):
            kind = "qdense" if name == "d" else "qconv2d"
            alone = {"weight_int8": "wdense"} if name == "d" else {}
            wide = {"int8": kind, "int16x8": f"{kind}16", **alone}.get(scheme)
            assert kernels.get(name) == wide if wide else kernels.get(name) != kind


def test_the_report_shows_every_scheme(module: IRModule) -> None:
    recipe = recipe_of({"a": "int16x8", "b": "fp16", "d": "dynamic"})
    manifest = describe_module(quantize(module, recipe=recipe, calibration=samples(4)), find_profile("host"))
    found = {entry["name"]: entry for entry in operators_json(manifest) if entry["kernel"] != "quantize"}
    assert (found["a"]["scheme"], found["c"]["scheme"], found["d"]["scheme"]) == ("int16x8", "int8", "float")
    assert found["d"]["weight_bytes"] == 288 * 5
    assert found["d"]["reason"] == "the recipe computes it in float (scheme dynamic)"
    assert (
        sum(e["weight_bytes"] for e in found.values() if e["reason"] and "fp16" in e["reason"]) == 2 * 32 * 10
    )


def test_dynamic_layers_of_an_integer_model_quantize_at_run_time(module: IRModule, tmp_path: Any) -> None:
    recipe = recipe_of({"a": "dynamic", "d": "dynamic"})
    quantized = quantize(module, recipe=recipe, calibration=samples(10))
    save_module(quantized, tmp_path)
    artifact, oracle = build(load_module(tmp_path)), Simulator(quantized)
    for x in samples(3):
        np.testing.assert_array_equal(artifact.run(x)[0], oracle.run(x)[0])
    found = {op.name: (op.kernel, op.integer, op.weight_bytes) for op in artifact.manifest.operators}
    assert found["d"] == ("ddense", True, 288 * 5) and found["a_conv"] == ("dconv2d", True, 32 * 9 * 4)
    assert found["c"][0] == "qadd"
    portable = build(quantized, target="x86-64")
    np.testing.assert_allclose(portable.run(x)[0], oracle.run(x)[0], rtol=0, atol=0.05)
    assert {op.name: op.integer for op in portable.manifest.operators}["d"] is False


def test_what_is_saved_is_small(module: IRModule, tmp_path: Any) -> None:
    recipe = recipe_of({"d": "fp16"})
    quantized = quantize(module, recipe=recipe, calibration=samples(4))
    save_module(quantized, tmp_path)
    again = load_module(tmp_path)
    x = samples(1)[0]
    np.testing.assert_array_equal(Simulator(again).run(x)[0], Simulator(quantized).run(x)[0])
    assert inputs_of(again) == inputs_of(quantized)


@pytest.mark.parametrize(
    ("rule", "bytes_"),
    [
        (Rule("^d$", scheme="weight_int8"), 288 * 5 + 4 * 5),
        (Rule("^d$", scheme="weight_int4"), 288 * 5 // 2 + 2 * 9 * 5),
        (Rule("^d$", scheme="weight_int4", group=100), 288 * 5 // 2 + 2 * 3 * 5),
    ],
)
def test_weights_alone_beside_integers(module: IRModule, tmp_path: Any, rule: Rule, bytes_: int) -> None:
    quantized = quantize(module, recipe=Recipe("mixed", rules=(rule,)), calibration=samples(4))
    save_module(quantized, tmp_path)
    again = load_module(tmp_path)
    artifact, oracle = build(again), Simulator(again)
    for x in samples(3):
        np.testing.assert_array_equal(artifact.run(x)[0], oracle.run(x)[0])
        np.testing.assert_array_equal(oracle.run(x)[0], Simulator(quantized).run(x)[0])
    (layer,) = (op for op in artifact.manifest.operators if op.name == "d")
    assert (layer.kernel, layer.integer, layer.weight_bytes) == ("wdense", False, bytes_)
    (planned,) = (op for op in describe_module(again, find_profile("host")).operators if op.name == "d")
    assert planned.weight_bytes == bytes_


@pytest.mark.parametrize("profile", ["host", "x86-64"])
def test_requantizing_unsigned_storage(module: IRModule, profile: str) -> None:
    """Integers that x86 stores as uint8 go to int16 and back."""
    quantized = quantize(module, recipe=recipe_of({"b": "int16x8", "s": "int16x8"}), calibration=samples(4))
    artifact = build(quantized, target=profile, merge=False)
    dtypes = {call.dtype for call in artifact.manifest.calls if call.kernel == "requantize16"}
    assert dtypes == {find_profile(profile).storage, "int16"}
    x = samples(1)[0]
    np.testing.assert_array_equal(artifact.run(x)[0], Simulator(quantized).run(x)[0])


def test_recovered(module: IRModule) -> None:
    """Bias correction and adaptive rounding reach the layers of every integer scheme."""
    rules = recipe_of({"b": "int16x8", "d": "float"}).rules
    recipe = Recipe("mixed", rules=rules, correct_bias=True, adaptive_rounding=True)
    quantized = quantize(module, recipe=recipe, calibration=samples(8))
    x = samples(1)[0]
    np.testing.assert_array_equal(build(quantized).run(x)[0], Simulator(quantized).run(x)[0])
    assert json.loads(json.dumps(recipe.to_json())) == recipe.to_json() | {
        "rules": list(recipe.to_json()["rules"])
    }


@pytest.mark.parametrize("scheme", ["dynamic", "fp16", "weight_int8", "weight_int4"])
@pytest.mark.parametrize("other", ["dynamic", "fp16", "weight_int8", "weight_int4", "float"])
def test_every_storage_scheme_beside_another(module: IRModule, scheme: str, other: str) -> None:
    quantized = quantize(module, recipe=Recipe("small", scheme, rules=(Rule("^d$", scheme=other),)))
    artifact, oracle = build(quantized), Simulator(quantized)
    for x in samples(2):
        np.testing.assert_allclose(artifact.run(x)[0], oracle.run(x)[0], rtol=0, atol=1e-5)
    (kernel,) = (op.kernel for op in artifact.manifest.operators if op.name == "d")
    assert kernel == {
        "dynamic": "ddense",
        "fp16": "fdense",
        "weight_int8": "wdense",
        "weight_int4": "wdense",
    }.get(other)


def test_a_storage_recipe_with_another_rule(module: IRModule) -> None:
    recipe = Recipe("small", "dynamic", rules=(Rule("^d$", scheme="fp16"),))
    found = describe_module(quantize(module, recipe=recipe), find_profile("host"))
    assert {op.name: op.weight_bytes for op in found.operators}["d"] == 2 * 288 * 5
    assert sum(op.weight_bytes == 32 * 9 * 4 for op in found.operators) == 1
