"""Recipes that mix schemes: which grid every operator reads, and what is written between them."""

import json

import numpy as np
import pytest
import tvm
from tvm import IRModule
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.attrs import ANNOTATION, REPORT
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.core.spec import ACTIVATION, ACTIVATION16, Annotation, SharedSpec
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import Annotate
from tvm_qplugin.passes.insert_qdq import InsertQDQ
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.plan import REASONS
from tvm_qplugin.passes.quantize_dynamic import QuantizeDynamic
from tvm_qplugin.passes.quantize_float16 import QuantizeFloat16
from tvm_qplugin.passes.select_kernels import kernel_of
from tvm_qplugin.passes.unify_scales import UnifyScales


def only(**schemes: str) -> Recipe:
    """int8, but for these layers."""
    return Recipe(rules=tuple(Rule(f"^{name}$", scheme=scheme) for name, scheme in schemes.items()))


def run(mod: IRModule, *passes: tvm.transform.Pass) -> IRModule:
    return tvm.transform.Sequential([*passes])(mod)


def annotate(mod: IRModule, recipe: Recipe) -> Annotation:
    return Annotation.loads(run(mod, Annotate(recipe))["main"].attrs[ANNOTATION])


@I.ir_module
class Sums:
    """A sum that two read."""

    @R.function
    def main(x: R.Tensor((2,), "float32"), y: R.Tensor((2,), "float32")) -> R.Tuple(
        R.Tensor((2,), "float32"), R.Tensor((2,), "float32")
    ):
        with R.dataflow():
            a = R.add(x, y)
            b = R.add(a, x)
            c = R.multiply(a, x)
            R.output(b, c)
        return (b, c)


RANGES = {"x": (-1.0, 1.0), "y": (-1.0, 1.0), "a": (-2.0, 2.0), "b": (-3.0, 3.0), "c": (-2.0, 2.0)}


@pytest.mark.parametrize(
    ("wide", "extra"),
    [
        ("b", {"a as int16x8", "x as int16x8"}),
        ("a", {"a as int8", "x as int8"}),
        ("c", {"a as int16x8", "x as int16x8"}),
    ],
)
def test_every_reader_finds_its_grid(wide: str, extra: set[str]) -> None:
    found = annotate(Sums, only(**{wide: "int16x8"}))
    for op in found.operators.values():
        specs = {found.tensors[found.key(op, name)] for name in (*op.inputs, op.output)}
        assert specs == {ACTIVATION16 if op.output == wide else ACTIVATION}
    assert set(found.tensors) == {"x", "y", "a", "b", "c", *extra}
    assert sorted(found.observed()) == ["a", "b", "c", "x", "y"]


def test_a_float_tensor_that_two_schemes_read() -> None:
    found = annotate(Sums, only(b="int16x8", a="float", c="int8"))
    assert found.tensors["a"] == ACTIVATION16 and found.tensors["a as int8"] == ACTIVATION


def test_golden() -> None:
    """int16 to int8: a pair behind the pair of the producer; an input is quantized for each reader."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2,), "float32"), y: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            with R.dataflow():
                a = R.add(x, y)
                b = R.multiply(a, y)
                R.output(b)
            return b

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2,), "float32"), y: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            with R.dataflow():
                x_q = R.quantize(x, R.const(1 / 32767, "float32"), R.const(0, "int16"), out_dtype="int16")
                x_dq = R.dequantize(x_q, R.const(1 / 32767, "float32"), R.const(0, "int16"))
                y_q = R.quantize(y, R.const(1 / 32767, "float32"), R.const(0, "int16"), out_dtype="int16")
                y_dq = R.dequantize(y_q, R.const(1 / 32767, "float32"), R.const(0, "int16"))
                y8 = R.quantize(y, R.const(1 / 255, "float32"), R.const(-128, "int8"), out_dtype="int8")
                y8_dq = R.dequantize(y8, R.const(1 / 255, "float32"), R.const(-128, "int8"))
                a = R.add(x_dq, y_dq)
                a_q = R.quantize(a, R.const(2 / 32767, "float32"), R.const(0, "int16"), out_dtype="int16")
                a_dq = R.dequantize(a_q, R.const(2 / 32767, "float32"), R.const(0, "int16"))
                a8 = R.quantize(a_dq, R.const(2 / 255, "float32"), R.const(-128, "int8"), out_dtype="int8")
                a8_dq = R.dequantize(a8, R.const(2 / 255, "float32"), R.const(-128, "int8"))
                b = R.multiply(a8_dq, y8_dq)
                b_q = R.quantize(b, R.const(4 / 255, "float32"), R.const(-128, "int8"), out_dtype="int8")
                b_dq = R.dequantize(b_q, R.const(4 / 255, "float32"), R.const(-128, "int8"))
                out = b_dq
                R.output(out)
            return out

    ranges = {"x": (-1.0, 1.0), "y": (0.0, 1.0), "a": (0.0, 2.0), "b": (0.0, 4.0)}
    found = run(Before, Annotate(only(a="int16x8")), UnifyScales(), InsertQDQ(ranges))
    assert_structural_equal(found, Expected)
    lowered = run(found, LowerInteger())
    kernels = [kernel_of(lowered, value) for _, value in ir.bindings(lowered["main"])]
    names = [kernel.name for kernel in kernels if kernel]
    assert names[3:] == ["qadd16", "requantize16", "qmul", "dequantize"]


def test_movement_follows_what_it_reads() -> None:
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 3), "float32"), y: R.Tensor((3, 2), "float32")) -> R.Tensor(
            (3, 2), "float32"
        ):
            with R.dataflow():
                r = R.reshape(x, (3, 2))
                a = R.add(r, y)
                s = R.reshape(a, (6,))
                t = R.reshape(s, (3, 2))
                b = R.multiply(t, y)
                R.output(b)
            return b

    recipe = Recipe(rules=(Rule("^(a|x)$", scheme="int16x8"), Rule("^t$", scheme="int8")))
    found = annotate(Mod, recipe)
    schemes = {name: op.scheme for name, op in found.operators.items()}
    assert schemes == {"r": "int16x8", "a": "int16x8", "s": "int16x8", "t": "int16x8", "b": "int8"}
    assert "t as int8" in found.tensors
    unified = Annotation.loads(run(Mod, Annotate(recipe), UnifyScales())["main"].attrs[ANNOTATION])
    assert unified.tensors["s"] == SharedSpec("t") or unified.tensors["t"] == SharedSpec("s")
    assert unified.tensors["t as int8"] == ACTIVATION


def test_a_pool_shares_the_grid_that_it_reads() -> None:
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((1, 4, 4, 2), "float32"), y: R.Tensor((1, 4, 4, 2), "float32")) -> R.Tensor(
            (1, 2, 2, 2), "float32"
        ):
            with R.dataflow():
                a = R.add(x, y)
                p = R.nn.max_pool2d(a, pool_size=(2, 2), strides=(2, 2), layout="NHWC")
                R.output(p)
            return p

    passes = [Annotate(only(a="int16x8")), UnifyScales({"a": (-1.0, 1.0), "p": (-1.0, 1.0)})]
    found = Annotation.loads(run(Mod, *passes)["main"].attrs[ANNOTATION])
    assert {found.tensors["p"], found.tensors["a as int8"]} == {ACTIVATION, SharedSpec("p")}
    assert found.tensors["a"] == ACTIVATION16


def test_chains_are_taken_apart_where_they_are_int16() -> None:
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 3), "float32"), y: R.Tensor((2, 3), "float32")) -> R.Tensor(
            (2, 3), "float32"
        ):
            with R.dataflow():
                a = R.add(x, R.const(3.0, "float32"))
                b = R.multiply(x, a)
                s = R.add(b, y)
                c = R.add(s, R.const(1.0, "float32"))
                d = R.multiply(s, c)
                R.output(d)
            return d

    found = annotate(Mod, only(d="int16x8")).operators
    assert {name: (op.kind, op.scheme, op.members) for name, op in found.items()} == {
        "b": ("lut", "int8", ("a", "b")),
        "s": ("add", "int8", ("s",)),
        "c": ("add", "int16x8", ("c",)),
        "d": ("multiply", "int16x8", ("d",)),
    }


def test_a_layer_in_float_stays_so_between_integers() -> None:
    """Though there is a kernel for what stands between dequantize and quantize."""

    @I.ir_module
    class Chain:
        @R.function
        def main(x: R.Tensor((2,), "float32"), y: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
            with R.dataflow():
                a = R.add(x, y)
                b = R.add(a, x)
                c = R.multiply(b, y)
                R.output(c)
            return c

    mod = run(Chain, Annotate(only(b="float")), UnifyScales(), InsertQDQ(RANGES), LowerInteger())
    report = {e["name"]: e for e in json.loads(mod["main"].attrs[REPORT]) if e["kernel"] != "quantize"}
    assert report["a"]["kernel"] == "qadd" and report["c"]["kernel"] == "qmul"
    assert (report["b"]["integer"], report["b"]["reason"]) == (False, "the recipe keeps it in float")


WEIGHT = np.linspace(-1, 1, 4096, dtype="float32").reshape(64, 64)


@pytest.mark.parametrize(
    ("scheme", "store", "op"),
    [("dynamic", QuantizeDynamic, "relax.dequantize"), ("fp16", QuantizeFloat16, "relax.astype")],
)
def test_weights_of_float_layers_are_stored_small(scheme: str, store: type, op: str) -> None:
    """Those of integer layers are left alone, and no scheme of the whole module is declared."""
    bb = tvm.relax.BlockBuilder()
    x = tvm.relax.Var("x", tvm.relax.TensorType((1, 64), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            a = bb.emit(tvm.relax.op.matmul(x, ir.const(WEIGHT)), "a")
            out = bb.emit_output(tvm.relax.op.matmul(a, ir.const(WEIGHT)), "b")
        bb.emit_func_output(out)
    recipe = only(b=scheme)
    ranges = {"x": (-1.0, 1.0), "a": (-9.0, 9.0)}
    before = run(bb.get(), Annotate(recipe), UnifyScales(), InsertQDQ(ranges))
    after = run(before, store(recipe))
    func = after["main"]
    defined = {var.name: value for var, value in ir.bindings(func)}
    weights = {name: ir.definitions(func)[defined[name].args[1]] for name in "ab"}
    assert ir.op_name(weights["b"]) == op
    old = next(v for n, v in ir.bindings(before["main"]) if n.name == "a_weight_dq")
    assert_structural_equal(weights["a"], old)
    assert "qplugin.scheme" not in func.attrs
    assert json.loads(func.attrs[REASONS])["b"] == f"the recipe computes it in float (scheme {scheme})"
    assert_structural_equal(run(after, store(recipe)), after)
