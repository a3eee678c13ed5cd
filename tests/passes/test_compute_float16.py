"""ComputeFloat16: what is computed in float16, where it is cast, and how near the results are."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin import demo
from tvm_qplugin.api import quantize
from tvm_qplugin.artifact import Artifact
from tvm_qplugin.builder import build
from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.passes.compute_float16 import ComputeFloat16
from tvm_qplugin.schedules.cpu_conv import rule
from tvm_qplugin.targets import find_profile

UNIT = 2.0**-11
"""The relative error of one rounding to float16."""


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[1.0, 0.1], [2.0, -3.0]], "float32"))
            b = R.nn.relu(R.add(a, R.const([3.0, 4.0], "float32")))
            c = R.nn.softmax(b)
            y = R.add(c, b)
            R.output(y)
        return y


@I.ir_module
class After:
    @R.function
    def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
        with R.dataflow():
            x_float16 = R.astype(x, "float16")
            a = R.matmul(x_float16, R.const([[1.0, 0.1], [2.0, -3.0]], "float16"))
            lv = R.add(a, R.const([3.0, 4.0], "float16"))
            b = R.nn.relu(lv)
            b_float32 = R.astype(b, "float32")
            c = R.nn.softmax(b_float32)
            c_float16 = R.astype(c, "float16")
            y = R.add(c_float16, b)
            y_float32 = R.astype(y, "float32")
            R.output(y_float32)
        return y_float32


def run(mod: IRModule) -> IRModule:
    """The pass, without the name that it gives an output anew."""
    return tvm.transform.Sequential([ComputeFloat16(), relax.transform.CanonicalizeBindings()])(mod)


def test_tensors_are_cast_once_and_functions_stay_in_float32():
    assert_structural_equal(run(Before), After)


def test_constants_that_float16_cannot_hold_keep_their_operator():
    @I.ir_module
    class Large:
        @R.function
        def main(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            with R.dataflow():
                y = R.multiply(x, R.const([7e4, 1.0], "float32"))
                R.output(y)
            return y

    assert_structural_equal(run(Large), Large)


def test_products_of_two_tensors_stay_in_float32():
    @I.ir_module
    class Square:
        @R.function
        def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
            with R.dataflow():
                y = R.matmul(x, x)
                R.output(y)
            return y

    assert_structural_equal(run(Square), Square)


def convolution(depth: int) -> KernelCall:
    rng = np.random.default_rng(depth)
    weight, bias = rng.standard_normal((40, 3, 3, depth)), rng.standard_normal(40)
    params = {"strides": [1, 1], "padding": [1] * 4, "dilation": [1, 1], "groups": 1, "lo": 0.0, "hi": None}
    constants = {1: weight.astype("float16"), 2: bias.astype("float16")}
    specs = [
        TensorSpec((1, 6, 6, depth), "float16"),
        *(TensorSpec(a.shape, "float16") for a in constants.values()),
    ]
    return KernelCall("fconv2d", params, tuple(specs), TensorSpec((1, 6, 6, 40), "float16"), constants)


def library(call: KernelCall, target: tvm.target.Target) -> tuple[tvm.runtime.Module, list[np.ndarray]]:
    with target:
        made = rule(call, target)
    assert made is not None
    module = tvm.IRModule({"main": made.func.with_attr("global_symbol", "main")})
    return tvm.tirx.build(module, target=target), list(made.args[1:])


@pytest.mark.parametrize("depth", [1, 16, 60])
def test_sums_stay_within_the_bound_of_their_roundings(depth: int):
    """Of n roundings: n * u / (1 - n * u) times the sum of magnitudes (Higham, chapter 3)."""
    call = convolution(depth)
    x = np.random.default_rng(1).standard_normal((1, 6, 6, depth)).astype("float16")
    host = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})
    made, packed = library(call, host)
    out = tvm.runtime.tensor(np.zeros((1, 6, 6, 40), "float16"))
    made["main"](tvm.runtime.tensor(x), *map(tvm.runtime.tensor, packed), out)
    exact, magnitude = (reference(call, x, change) for change in (np.asarray, np.abs))
    count = 2 * 9 * depth + 2
    bound = count * UNIT / (1 - count * UNIT) * magnitude
    assert (np.abs(out.numpy() - np.maximum(exact, 0)) <= bound).all()


def reference(call: KernelCall, x: np.ndarray, change) -> np.ndarray:
    """The convolution and its bias in float64, of values or magnitudes."""
    image = np.pad(change(x.astype("float64")), ((0, 0), (1, 1), (1, 1), (0, 0)))
    weight, bias = (change(call.constants[i].astype("float64")) for i in (1, 2))
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (1, 2))
    return np.einsum("nhwcij,oijc->nhwo", windows, weight) + bias


def test_float16_instructions_are_generated_where_there_are_some():
    """Compiled only: this says nothing of a run."""
    target = tvm.target.Target({"kind": "llvm", "mcpu": "sapphirerapids"})
    text = library(convolution(16), target)[0].inspect_source("asm")
    assert text.count("vfmadd231ph") > 4 and "vcvt" not in text


@pytest.fixture(scope="module")
def artifacts() -> list[Artifact]:
    """The demo's model in float32 and, on a profile that says so, in float16."""
    module = quantize(demo.model_path(), recipe="fp16")
    half = replace(find_profile("host"), name="float16", float16=True)
    return [build(module), build(module, target=half)]


def test_a_model_computes_in_float16(artifacts: list[Artifact]):
    reasons = [{op.reason for op in a.manifest.operators if op.op in ("conv2d", "dense")} for a in artifacts]
    assert reasons == [{f"computed in {kind}, stored as float16"} for kind in ("float32", "float16")]
    images, labels = demo.evaluation()
    found = [np.concatenate([a.run(image[None])[0] for image in images[:200]]) for a in artifacts]
    assert [f.dtype for f in found] == ["float32", "float32"]
    right = [(f.argmax(1) == labels[:200]).mean() for f in found]
    assert right[0] - right[1] <= 0.0003
    noise = np.square(found[0] - found[1]).sum() / np.square(found[0]).sum()
    assert 0 < noise < 1e-4
