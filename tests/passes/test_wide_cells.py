"""Recurrent cells of int8 models: int16 between int8 products, and the same integers everywhere."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from onnx import helper, numpy_helper
from tvm import IRModule, relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.api import quantize
from tvm_qplugin.artifact import Artifact
from tvm_qplugin.builder import build, compile_function
from tvm_qplugin.core.attrs import ANNOTATION, KERNEL, STEPS
from tvm_qplugin.core.chain16 import CHAIN
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.recipe import find_recipe
from tvm_qplugin.core.spec import Annotation
from tvm_qplugin.exporter import export_tflite
from tvm_qplugin.frontend import load
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import Annotate
from tvm_qplugin.passes.insert_qdq import InsertQDQ
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.merge_kernels import MergeKernels
from tvm_qplugin.passes.unify_scales import UnifyScales
from tvm_qplugin.passes.wide_cells import FRONT
from tvm_qplugin.pipeline import lower_passes
from tvm_qplugin.simulator import simulate
from tvm_qplugin.targets import find_profile, tvm_target

Array = np.ndarray[Any, Any]
NARROW = 16383.5 / 255
TIME, INPUTS, HIDDEN, CLASSES = 5, 6, 8, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@I.ir_module
class Before:
    @R.function
    def main(h: R.Tensor((1, 1), "float32")) -> R.Tensor((1, 1), "float32"):
        R.func_attr({"qplugin.steps": '{"g": "g", "y": "y"}'})
        with R.dataflow():
            g = R.matmul(h, R.const([[127.0]], "float32"))
            y = R.add(g, h)
            R.output(y)
        return y


@I.ir_module
class Expected:
    @R.function
    def main(h: R.Tensor((1, 1), "float32")) -> R.Tensor((1, 1), "float32"):
        R.func_attr({"qplugin.steps": '{"g": "g", "y": "y"}'})
        with R.dataflow():
            n_q = R.quantize(h, R.const(NARROW, "float32"), R.const(-128, "int8"), axis=-1, out_dtype="int8")
            n_dq = R.dequantize(n_q, R.const(NARROW, "float32"), R.const(-128, "int8"), axis=-1)
            h_q = R.quantize(h, R.const(0.5, "float32"), R.const(0, "int16"), axis=-1, out_dtype="int16")
            h_dq = R.dequantize(h_q, R.const(0.5, "float32"), R.const(0, "int16"), axis=-1)
            w = R.dequantize(
                R.const([[127]], "int8"), R.const([1.0], "float32"), R.const([0], "int8"), axis=1
            )
            g = R.matmul(n_dq, w)
            g_q = R.quantize(g, R.const(2.0, "float32"), R.const(0, "int16"), axis=-1, out_dtype="int16")
            g_dq = R.dequantize(g_q, R.const(2.0, "float32"), R.const(0, "int16"), axis=-1)
            y = R.add(g_dq, h_dq)
            y_q = R.quantize(y, R.const(4.0, "float32"), R.const(0, "int16"), axis=-1, out_dtype="int16")
            y_dq = R.dequantize(y_q, R.const(4.0, "float32"), R.const(0, "int16"), axis=-1)
            gv = y_dq
            R.output(gv)
        return gv


def test_products_read_int8_and_give_int16() -> None:
    """An input is quantized for each of its readers."""
    ranges = {"h": (0.0, 16383.5), "g": (-65534.0, 65534.0), "y": (-131068.0, 131068.0)}
    found = tvm.transform.Sequential([Annotate(), UnifyScales(), InsertQDQ(ranges)])(Before)
    tvm.ir.assert_structural_equal(found, Expected)


def sequence_model(kind: str) -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    weights = {
        "W": rng.normal(size=(1, GATES[kind] * HIDDEN, INPUTS)),
        "R": rng.normal(size=(1, GATES[kind] * HIDDEN, HIDDEN)) / 2,
        "B": rng.normal(size=(1, 2 * GATES[kind] * HIDDEN)) / 3,
        "V": rng.normal(size=(HIDDEN, CLASSES)),
    }
    nodes = [
        helper.make_node(kind, ["x", "W", "R", "B", "", "h"], ["", "last"], hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["last", "zero"], ["flat"]),
        helper.make_node("MatMul", ["flat", "V"], ["y"]),
    ]
    shapes = {"x": (TIME, 1, INPUTS), "h": (1, 1, HIDDEN)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("y", "last")],
        [numpy_helper.from_array(v.astype("float32"), n) for n, v in weights.items()]
        + [numpy_helper.from_array(np.array([0]), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def samples() -> list[dict[str, Array]]:
    rng = np.random.default_rng(6)
    shapes = {"x": (TIME, 1, INPUTS), "h": (1, 1, HIDDEN)}
    return [{n: rng.uniform(-1, 1, s).astype("float32") for n, s in shapes.items()} for _ in range(20)]


def made(kind: str, recipe: str = "int8") -> tuple[IRModule, Artifact]:
    quantized = quantize(load(sequence_model(kind)), recipe=recipe, calibration=samples())
    return quantized, build(quantized)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize(("recipe", "least"), [("int8", 28), ("int16x8", 35)])
def test_the_whole_way(kind: str, recipe: str, least: float) -> None:
    quantized, artifact = made(kind, recipe)
    assert [op.name for op in artifact.manifest.operators if not op.integer] == []
    run = compile_function(load(sequence_model(kind)))
    exact, near = [], []
    for sample in samples():
        found = artifact.run(*sample.values())
        for a, b in zip(simulate(quantized, *sample.values()), found, strict=True):
            np.testing.assert_array_equal(a, b)
        exact.append(run(list(sample.values()))[0])
        near.append(found[0])
    signal, noise = np.square(exact).sum(), np.square(np.subtract(exact, near)).sum()
    assert 10 * np.log10(signal / noise) > least


@pytest.mark.parametrize(("function", "integer"), [("Abs", True), ("Sqrt", False)])
def test_spectra_before_a_cell_stay_float(function: str, integer: bool) -> None:
    """In int16 a front is integer, unless small values of a wide range matter in it."""
    model = sequence_model("GRU")
    model.graph.node[0].input[0] = "front"
    model.graph.node.insert(0, helper.make_node(function, ["x"], ["front"]))
    annotated = tvm.transform.Sequential([Annotate(find_recipe("int16x8"))])(load(model))
    operators = Annotation.loads(str(ir.main_function(annotated).attrs[ANNOTATION])).operators
    assert operators["front"].integer == integer
    assert integer or operators["front"].reason == FRONT


def test_steps_are_the_same_kernels() -> None:
    quantized, _ = made("LSTM")
    lowered = LowerInteger()(quantized)
    calls = [value for _, value in ir.bindings(lowered["main"]) if ir.op_name(value) == "relax.call_tir"]
    kernels = {str(value.args[0].name_hint) for value in calls}
    assert len(calls) > TIME * 10
    assert len(kernels) < 30


@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
def test_steps_count_their_weights_once(recipe: str) -> None:
    _, artifact = made("LSTM", recipe)
    products = INPUTS * 4 * HIDDEN + HIDDEN * 4 * HIDDEN + HIDDEN * CLASSES
    assert artifact.manifest.sizes["weights"] == products


def test_steps_merge_however_many_there_are() -> None:
    """What a step reads of the products of all steps is small."""

    def kernels(mod: IRModule) -> set[str]:
        calls = [v for _, v in ir.bindings(mod["main"]) if ir.op_name(v) == "relax.call_tir"]
        return {str((mod[call.args[0]].attrs or {}).get(KERNEL)) for call in calls}

    quantized, _ = made("LSTM")
    profile = find_profile("x86-64-v3")
    with tvm_target(profile) as target:
        passes = lower_passes(quantized, profile, target, merge=False)
        lowered = tvm.transform.Sequential(passes)(quantized)
    assert CHAIN in kernels(lowered)
    assert 2 * TIME * 4 * HIDDEN > 300
    assert CHAIN not in kernels(MergeKernels(bytes=300)(lowered))


def test_only_cells_are_wide_and_only_for_cpus() -> None:
    mod = load(sequence_model("GRU"))
    for wide in (True, False):
        main = Annotate(wide_cells=wide)(mod)["main"]
        tensors = Annotation.loads(str(main.attrs[ANNOTATION])).tensors
        dtypes = {name: getattr(spec, "dtype", "") for name, spec in tensors.items()}
        in_cell = "int16" if wide else "int8"
        assert (dtypes["last_hidden_t2"], dtypes["last_inputs"], dtypes["h"]) == (in_cell,) * 3
        assert (dtypes["x"], dtypes["y"]) == ("int8", "int8")


def test_a_cell_without_steps_is_not_wide() -> None:
    mod = load(sequence_model("GRU"))
    bare = ir.with_main_attr(mod, STEPS, json.dumps({}))
    tensors = Annotation.loads(str(Annotate()(bare)["main"].attrs[ANNOTATION])).tensors
    assert {getattr(spec, "dtype", "") for spec in tensors.values()} == {"int8"}


def encoder(attention: bool, head: str = "") -> IRModule:
    """Dense ``a``, softmax of products with itself (or not), dense ``b``; ``head``: what is behind ``b``."""
    rng = np.random.default_rng(3)
    bb, op = relax.BlockBuilder(), relax.op
    x = relax.Var("x", relax.TensorType((4, 64), "float32"))
    weights = [relax.const(rng.normal(size=(64, n)).astype("float32") / 8) for n in (64, 32)]
    with bb.function("main", [x]):
        with bb.dataflow():
            a = bb.emit(op.matmul(x, weights[0]), "a")
            if attention:
                scores = bb.emit(op.matmul(a, bb.emit(op.permute_dims(a), "turned")), "scores")
                a = bb.emit(op.matmul(bb.emit(op.nn.softmax(scores), "weights"), a), "mixed")
            out = bb.emit(op.matmul(a, weights[1]), "b")
            if head == "reshape":
                out = bb.emit(op.reshape(out, (8, 16)), "r")
            both = [out, bb.emit(op.nn.log_softmax(out), "s")] if head == "float too" else [out]
            if head == "float":
                both = [bb.emit(op.nn.log_softmax(out), "s")]
            result = bb.emit_output(both[0] if len(both) == 1 else relax.Tuple(both))
        bb.emit_func_output(result)
    return bb.get()


def results(mod: IRModule) -> dict[str, str]:
    annotation = Annotation.loads(str(Annotate()(mod)["main"].attrs[ANNOTATION]))
    products = {name: op for name, op in annotation.operators.items() if op.kind in ("dense", "matmul")}
    return {name: op.output_scheme for name, op in products.items() if op.integer}


@pytest.mark.parametrize("head", ["", "reshape", "float too"])
def test_results_for_attention_are_wide_but_outputs_are_not(head: str) -> None:
    found = results(encoder(True, head))
    assert found == {"a": "int8", "scores": "int16x8", "mixed": "int8", "b": "int8"}


@pytest.mark.parametrize("head", ["", "reshape", "float too", "float"])
def test_without_attention_nothing_is_wide(head: str) -> None:
    assert results(encoder(False, head)) == {"a": "int8", "b": "int8"}


def test_what_floats_read_behind_attention_is_wide() -> None:
    assert results(encoder(True, "float"))["b"] == "int16x8"


@pytest.mark.parametrize("attention", [True, False])
def test_a_classifier_keeps_its_kernel(attention: bool) -> None:
    data = [np.random.default_rng(i).normal(size=(4, 64)).astype("float32") for i in range(4)]
    quantized = quantize(load(encoder(attention)), calibration=data)
    artifact = build(quantized, merge=False)
    call = next(call for call in artifact.manifest.calls if call.tensor == "b")
    assert (call.kernel, call.dtype) == ("qdense", find_profile("host").storage)
    np.testing.assert_array_equal(artifact.run(data[0])[0], simulate(quantized, data[0])[0])


def test_export_refuses_mixed_widths(tmp_path: Any) -> None:
    quantized, _ = made("GRU")
    with pytest.raises(ModelError, match=r"no dense layer from int8 to int16.*recipe int16x8 or dynamic"):
        export_tflite(quantized, tmp_path / "m.tflite")
