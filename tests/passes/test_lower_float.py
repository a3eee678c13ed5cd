"""LowerFloat, SelectKernels and ScheduleRest: from operators to scheduled kernels."""

import numpy as np
import tvm
from tvm import IRModule, relax, tirx
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.attrs import KERNEL, PARAMS, Implementation, KernelCall, decode_params
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import ExpandWeights, Stored, stored_arguments
from tvm_qplugin.passes.lower_float import LowerFloat
from tvm_qplugin.passes.quantize_float16 import QuantizeFloat16
from tvm_qplugin.passes.schedule_rest import SCHEDULED, ScheduleRest
from tvm_qplugin.passes.select_kernels import SelectKernels, kernel_of

TARGET = tvm.target.Target({"kind": "llvm"})


@I.ir_module
class Layer:
    @R.function
    def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 1), "float32"):
        with R.dataflow():
            a = R.matmul(x, R.const([[1.0], [2.0]], "float32"))
            b = R.add(a, R.const([3.0], "float32"))
            y = R.nn.relu(b)
            R.output(y)
        return y


def run(mod: IRModule, *passes: tvm.transform.Pass) -> IRModule:
    return tvm.transform.Sequential(list(passes))(mod)


def call_of(mod: IRModule) -> KernelCall:
    (call,) = [k for _, v in ir.bindings(mod["main"]) if (k := kernel_of(mod, v)) is not None]
    return call


def test_bias_and_clamp_go_into_the_kernel():
    call = call_of(run(Layer, LowerFloat()))
    assert call.name == "fdense" and call.params == {"lo": 0.0, "hi": None}
    assert call.constants[1].tolist() == [[1, 2]] and call.constants[2].tolist() == [3]


def test_what_is_read_twice_is_not_fused():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 2), "float32")) -> R.Tuple(
            R.Tensor((2, 1), "float32"), R.Tensor((2, 1), "float32")
        ):
            with R.dataflow():
                a = R.matmul(x, R.const([[1.0], [2.0]], "float32"))
                y = R.nn.relu(a)
                R.output(a, y)
            return (a, y)

    after = run(Mod, LowerFloat())
    assert call_of(after).params == {"lo": None, "hi": None}
    assert "relax.nn.relu" in [ir.op_name(value) for _, value in ir.bindings(after["main"])]


def test_a_module_without_layers_comes_back():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 2), "float32")) -> R.Tensor((2, 2), "float32"):
            with R.dataflow():
                y = R.matmul(x, x)
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(run(Mod, LowerFloat()), Mod)


def test_a_rule_replaces_the_kernel_and_packs_its_constants():
    seen: list[KernelCall] = []

    def rule(call: KernelCall, target: tvm.target.Target) -> Implementation:
        assert target == tvm.target.Target.current()
        seen.append(call)
        func = next(f for f in lowered.functions.values() if isinstance(f, tirx.PrimFunc))
        return Implementation(func.with_attr(SCHEDULED, True), (0, call.constants[1] * 2, 2))

    lowered = run(Layer, LowerFloat())
    after = run(lowered, SelectKernels((lambda *_: None, rule), TARGET))
    call = call_of(after)
    assert seen[0].name == call.name == "fdense" and call.constants[1].tolist() == [[2, 4]]
    (func,) = [f for f in after.functions.values() if isinstance(f, tirx.PrimFunc)]
    assert func.attrs[SCHEDULED] and func.attrs[KERNEL] == "fdense"
    assert decode_params(str(func.attrs[PARAMS])) == {}  # layers that differ in bounds only share it


def test_what_no_rule_takes_keeps_its_definition():
    lowered = run(Layer, LowerFloat())
    assert call_of(run(lowered, SelectKernels((), TARGET))).name == "fdense"


def test_only_what_is_not_scheduled_is_scheduled():
    visited: list[tirx.PrimFunc] = []

    def schedule(func: tirx.PrimFunc, _target: tvm.target.Target) -> tirx.PrimFunc:
        visited.append(func)
        return func.with_attr(SCHEDULED, True)

    mod = relax.transform.LegalizeOps()(run(Layer, LowerFloat()))
    once = run(mod, ScheduleRest(schedule, TARGET))
    assert len(visited) == 1
    run(once, ScheduleRest(schedule, TARGET))
    assert len(visited) == 1


def test_what_is_stored_as_float16_stays_so():
    half = IRModule({"main": QuantizeFloat16(smallest=2)(Layer)["main"]})
    stored = stored_arguments(half)
    call = call_of(run(half, ExpandWeights(), LowerFloat(stored)))
    assert [spec.dtype for spec in call.args] == ["float32", "float16", "float32"]
    assert call.constants[1].tolist() == [[1, 2]] and call.constants[2].tolist() == [3]


def test_infinities_are_widened_before():
    stored = {("a", 1): Stored(np.array([[1], [np.inf]], "float16"))}
    assert [spec.dtype for spec in call_of(run(Layer, LowerFloat(stored))).args] == ["float32"] * 3
