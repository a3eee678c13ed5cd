"""MergeKernels: which calls become one, what the function holds, and that integers stay the same."""

import json
from itertools import pairwise

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

import tvm_qplugin as qp
from tvm_qplugin import demo, measure
from tvm_qplugin.builder import compile_module
from tvm_qplugin.calls import calls_of
from tvm_qplugin.core.attrs import CALLS, REPORT
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.merge_kernels import SHARED, SHARED_MACS, MergeKernels
from tvm_qplugin.pipeline import executable_passes

# fmt: off


@T.prim_func(private=True, s_tir=True)
def double(x: T.Buffer((64,), "int32"), y: T.Buffer((64,), "int32")):
    T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
    for i in range(64):
        with T.sblock("double"):
            k = T.axis.spatial(64, i)
            y[k] = x[k] * 2


@T.prim_func(private=True, s_tir=True)
def total(x: T.Buffer((64,), "int32"), y: T.Buffer((64,), "int32"), z: T.Buffer((64,), "int32")):
    T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
    flat = T.decl_buffer((64,), "int32", data=x.data)
    for i in T.serial(64):
        z[i] = flat[i] + y[i]


@I.ir_module
class TwiceMerged:
    @T.prim_func(private=True, s_tir=True)
    def merged(p0: T.Buffer((64,), "int32"), p1: T.Buffer((64,), "int32")):
        T.func_attr({"qplugin.kernel": "merged", "qplugin.params": "{\"dtype\": \"int32\"}", "tirx.is_scheduled": True, "tirx.noalias": True})  # noqa: E501
        with T.sblock("root"):
            slot0 = T.sblock_alloc_buffer((80,), "int32")
            T.evaluate(slot0.data)
            with T.sblock("double"):
                T.reads()
                T.writes()
                x = T.decl_buffer((64,), "int32", data=p0.data)
                y = T.decl_buffer((64,), "int32", data=slot0.data)
                for i in range(64):
                    with T.sblock("double"):
                        k = T.axis.spatial(64, i)
                        y[k] = x[k] * 2
            with T.sblock("double"):
                T.reads()
                T.writes()
                x = T.decl_buffer((64,), "int32", data=slot0.data)
                y = T.decl_buffer((64,), "int32", data=p1.data)
                for i in range(64):
                    with T.sblock("double"):
                        k = T.axis.spatial(64, i)
                        y[k] = x[k] * 2
            T.evaluate(slot0.data)

    @R.function
    def main(x: R.Tensor((64,), "int32")) -> R.Tensor((64,), "int32"):
        R.func_attr({"qplugin.calls": "[[\"merged\", [\"a\", \"b\"]]]"})
        cls = TwiceMerged
        with R.dataflow():
            b = R.call_tir(cls.merged, (x,), R.Tensor((64,), "int32"))
            gv: R.Tensor((64,), "int32") = b
            R.output(gv)
        return gv


# fmt: on

X = np.arange(64, dtype="int32")
TENSOR = relax.TensorType((64,), "int32")


def straight(text: str, *outputs: str) -> tvm.IRModule:
    """``main(x)`` of bindings as in "a = double x, b = relu a"."""
    builder, env = relax.BlockBuilder(), {"x": relax.Var("x", TENSOR)}
    with builder.function("main", [env["x"]]):
        with builder.dataflow():
            for binding in text.split(", "):
                name, _, what, *args = binding.split()
                env[name] = builder.emit(bound(builder, what, [env[arg] for arg in args]), name)
            found = [builder.emit_output(env[name], name) for name in outputs]
        builder.emit_func_output(found[0] if len(found) == 1 else relax.Tuple(found))
    return builder.get()


def bound(builder: relax.BlockBuilder, what: str, args: list[relax.Expr]) -> relax.Expr:
    """What a binding is bound to."""
    if what == "relu":
        return relax.op.nn.relu(*args)
    func = {"double": double, "total": total}[what]
    return relax.call_tir(builder.add_func(func, what), args, TENSOR)


TWICE = straight("a = double x, b = double a", "b")
ESCAPING = straight("a = double x, b = double a, c = total a b", "a", "c")


def chain(length: int) -> tvm.IRModule:
    """``length`` times the function ``double``."""
    names = ["x", *(f"v{i}" for i in range(length))]
    text = [f"{new} = double {old}" for old, new in pairwise(names)]
    return straight(", ".join(text), names[-1])


def functions(mod: tvm.IRModule) -> list[str]:
    """What ``main`` calls, in order."""
    values = [value for _, value in ir.bindings(mod["main"])]
    return [value.args[0].name_hint for value in values if ir.op_name(value) == "relax.call_tir"]


def results(mod: tvm.IRModule) -> list[np.ndarray]:
    """Those of ``main`` for X, of kernels as they are."""
    passes = [relax.transform.LegalizeOps(), *executable_passes()]
    built = relax.build(tvm.transform.Sequential(passes)(mod), "llvm", relax_pipeline=None)
    found = relax.VirtualMachine(built, tvm.cpu())["main"](tvm.runtime.tensor(X))
    return [field.numpy() for field in ([found] if hasattr(found, "numpy") else found)]


def test_a_function_used_twice():
    assert_structural_equal(MergeKernels()(TWICE), TwiceMerged)


def test_values_read_outside_are_results():
    after = MergeKernels()(ESCAPING)
    (function,) = functions(after)
    assert len(after[function].params) == 3
    assert len(after[function].body.block.alloc_buffers) == 1
    a, c = results(after)
    np.testing.assert_array_equal(a, 2 * X)
    np.testing.assert_array_equal(c, 6 * X)


def test_one_kernel_stays_and_others_end_a_run():
    text = "a = double x, b = double a, c = relu b, d = double c, e = relu d, f = double e, g = double f"
    after = MergeKernels()(straight(text, "g"))
    calls = json.loads(after["main"].attrs[CALLS])
    assert [names for _, names in calls] == [["a", "b"], ["d"], ["f", "g"]]
    np.testing.assert_array_equal(results(after)[0], 32 * X)


def test_large_kernels_stay_alone():
    assert_structural_equal(MergeKernels(bytes=2 * X.nbytes - 1)(TWICE), TWICE)
    assert functions(MergeKernels(bytes=2 * X.nbytes)(TWICE)) == ["merged"]
    after = MergeKernels(bytes=2 * X.nbytes)(ESCAPING)
    assert functions(after) == ["merged", "total"]
    np.testing.assert_array_equal(results(after)[1], 6 * X)


def test_kernels_of_many_multiply_adds_stay_alone():
    report = [{"variable": name, "macs": macs} for name, macs in (("a", 5), ("b", 5), ("c", 6))]
    mod = ir.with_main_attr(ESCAPING, REPORT, json.dumps(report))
    assert functions(MergeKernels(macs=5)(mod)) == ["merged", "total"]
    assert functions(MergeKernels(macs=6)(mod)) == ["merged"]


@pytest.mark.parametrize(
    ("length", "macs", "merged"),
    [(SHARED, SHARED_MACS + 1, True), (SHARED + 1, SHARED_MACS, True), (SHARED + 1, SHARED_MACS + 1, False)],
)
def test_what_many_layers_share_is_compiled_once(length: int, macs: int, merged: bool):
    report = [{"variable": f"v{i}", "macs": macs} for i in range(length)]
    mod = ir.with_main_attr(chain(length), REPORT, json.dumps(report))
    assert (functions(MergeKernels()(mod)) == ["merged"]) == merged


@pytest.mark.parametrize(("most", "sizes"), [(2, [2, 2, 1]), (3, [3, 2]), (5, [5])])
def test_a_function_runs_a_bounded_number_of_kernels(most, sizes):
    after = MergeKernels(kernels=most)(chain(5))
    np.testing.assert_array_equal(results(after)[0], 32 * X)
    assert [len(names) for _, names in json.loads(after["main"].attrs[CALLS])] == sizes


def test_what_functions_pass_on_is_one_tensor():
    text = "a = double x, b = double a, c = total a b, d = total b c, e = total a d, f = double e"
    after = MergeKernels(kernels=3)(straight(text, "f"))
    assert functions(after) == ["merged", "merged1"]
    assert [len(after[name].params) for name in functions(after)] == [2, 2]
    np.testing.assert_array_equal(results(after)[0], 2 * (2 + 4 + 6) * X)


def test_what_others_read_or_is_large_is_passed_on_alone(monkeypatch):
    text = "a = double x, b = double a, c = total a b, d = total b c, e = total a d, f = total c e"
    after = MergeKernels(kernels=3)(straight(text, "a", "f"))
    assert [len(after[name].params) for name in functions(after)] == [3, 3]
    for found, factor in zip(results(after), (2, 2 + 4 + 6 + 6), strict=True):
        np.testing.assert_array_equal(found, factor * X)
    monkeypatch.setattr("tvm_qplugin.passes.merge_kernels.PACKED", X.nbytes - 1)
    alone = MergeKernels(kernels=3)(straight(text, "a", "f"))
    assert [len(alone[name].params) for name in functions(alone)] == [4, 4]
    np.testing.assert_array_equal(results(alone)[1], 18 * X)


def test_equal_constants_are_one_operand():
    builder, x = relax.BlockBuilder(), relax.Var("x", TENSOR)
    with builder.function("main", [x]):
        with builder.dataflow():
            value = x
            for seed in (3, 5, 3):
                value = builder.emit(bound(builder, "total", [value, ir.const(np.full(64, seed, "int32"))]))
            value = builder.emit_output(value)
        builder.emit_func_output(value)
    after = MergeKernels()(builder.get())
    (function,) = functions(after)
    assert len(after[function].params) == len(["x", "threes", "fives", "result"])
    np.testing.assert_array_equal(results(after)[0], X + 11)


def test_tensors_of_different_times_share_memory():
    after = MergeKernels()(chain(8))
    (function,) = functions(after)
    assert len(after[function].body.block.alloc_buffers) == 2


@pytest.fixture(scope="module", params=["int8", "int16x8", None])
def quantized(request) -> tvm.IRModule:
    module = qp.load(demo.model_path())
    if request.param is None:
        return module
    return qp.quantize(module, calibration=demo.calibration()[:8], recipe=request.param)


def test_numbers_are_those_of_separate_kernels(quantized):
    together, apart = qp.build(quantized), qp.build(quantized, merge=False)
    assert len(together.manifest.calls) < len(apart.manifest.calls) / 2
    x = demo.calibration()[:1]
    for threads in range(1, min(measure_cores(), 2) + 1):
        np.testing.assert_array_equal(together.run(x, threads=threads)[0], apart.run(x, threads=threads)[0])


def measure_cores() -> int:
    return len(measure.cores())


def test_calls_name_all_layers(quantized):
    lowered = [compile_module(quantized, merge=merge)[1] for merge in (True, False)]
    together, apart = (calls_of(mod) for mod in lowered)
    assert any(call.kernel == "merged" for call in together)
    entries = json.loads(lowered[0]["main"].attrs[REPORT])
    found, wanted = ([i for call in calls for i in call.operators] for calls in (together, apart))
    assert [i for i in found if i in wanted] == wanted
    assert {entries[i]["op"] for i in set(found) - set(wanted)} <= {"reshape"}  # a view where it is alone
    assert together[-1].tensor == apart[-1].tensor
    kinds = {type(mod[name]) for mod in lowered for name in functions(mod)}
    assert kinds == {tirx.PrimFunc}
