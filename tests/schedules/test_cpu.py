from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.target import Target

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.schedules import cpu_conv, cpu_lut
from tvm_qplugin.schedules.cpu import SCHEDULED, UNSCHEDULED, schedule_cpu
from tvm_qplugin.schedules.cpu_blocks import architecture

R = relax.op
HOST = Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu(), "num-cores": 2})
OLDEST = Target({"kind": "llvm", **({"mcpu": "x86-64"} if architecture(HOST) == "x86_64" else {})})
A76 = Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"})


def quantize(shape: tuple[int, ...], **params: Any) -> tvm.tirx.PrimFunc:
    out = TensorSpec(shape, "uint8")
    params = {"scale": 0.1, "out_zp": 7, "lo": 0, "hi": 255, **params}
    return build_kernel("quantize", params, [TensorSpec(shape, "float32")], out)


def island(shapes: list[tuple[int, ...]], make: Callable[..., Any]) -> tvm.IRModule:
    """What TVM's own passes make of float operators: one fused PrimFunc, or a few."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(f"x{i}", relax.TensorType(s, "float32")) for i, s in enumerate(shapes)]
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(make(*variables)))
        builder.emit_func_output(result)
    steps = [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern()]
    steps += [relax.transform.FuseOps(), relax.transform.FuseTIR()]
    with HOST:
        return tvm.transform.Sequential(steps)(builder.get())


def scheduled(mod: tvm.IRModule, target: Target) -> tvm.IRModule:
    functions = mod.functions.items()
    return tvm.IRModule(
        {gv: schedule_cpu(f, target) if isinstance(f, tvm.tirx.PrimFunc) else f for gv, f in functions}
    )


def run(mod: tvm.IRModule, target: Target, arrays: list[Array]) -> Array:
    machine = relax.VirtualMachine(relax.build(mod, target), tvm.cpu())
    return machine["main"](*[tvm.runtime.tensor(a) for a in arrays]).numpy()


ISLANDS: dict[str, tuple[list[tuple[int, ...]], Callable[..., Any]]] = {
    "softmax": ([(3, 40, 64)], R.nn.softmax),
    "layer_norm": ([(33, 128), (128,), (128,)], lambda x, g, b: R.nn.layer_norm(x, g, b, axes=[-1])),
    "matmul": ([(20, 48), (48, 64), (64,)], lambda x, w, b: R.nn.relu(R.add(R.matmul(x, w), b))),
    "odd matmul": ([(7, 13), (13, 21)], R.matmul),
    "matmul transposed": ([(20, 48), (64, 48)], lambda x, w: R.matmul(x, R.permute_dims(w))),
    "silu": ([(1, 56, 56, 24)], lambda x: R.multiply(x, R.sigmoid(x))),
    "gate": ([(1, 1, 1, 24), (1, 20, 20, 24)], lambda g, x: R.multiply(R.sigmoid(g), x)),
    "concat": ([(1, 9, 9, 24), (1, 9, 9, 5)], lambda x, y: R.concat([x, y], 3)),
    "states of all steps": (
        [(1, 20)] * 5,
        lambda *x: R.permute_dims(R.reshape(R.concat(x, 0), (5, 1, 20)), [1, 0, 2]),
    ),
    "concat of three": ([(1, 56, 56, c) for c in (24, 8, 40)], lambda *x: R.concat(x, 3)),
    "transpose": ([(1, 20, 20, 33)], lambda x: R.permute_dims(x, [0, 3, 1, 2])),
    "conv nhwc": (
        [(1, 14, 14, 16), (24, 3, 3, 16)],
        lambda x, w: R.nn.conv2d(x, w, padding=1, data_layout="NHWC", kernel_layout="OHWI"),
    ),
    "conv nchw": ([(1, 16, 14, 14), (24, 16, 3, 3)], lambda x, w: R.nn.conv2d(x, w, padding=1)),
    "max_pool": ([(1, 16, 20, 20)], lambda x: R.nn.max_pool2d(x, [3, 3], [2, 2], [1, 1])),
    "mean": ([(2, 7, 7, 96)], lambda x: R.mean(x, [1, 2])),
    "sum to a scalar": ([(8, 64)], lambda x: R.sum(x)),
    "argmax": ([(8, 64)], lambda x: R.argmax(x, 1)),
    "cumsum": ([(8, 64)], lambda x: R.cumsum(x, 1)),
}


@pytest.mark.parametrize("name", ISLANDS)
@pytest.mark.parametrize("target", [HOST, OLDEST], ids=["host", "oldest"])
def test_float_islands_keep_their_values(name: str, target: Target) -> None:
    shapes, make = ISLANDS[name]
    mod = island(shapes, make)
    arrays = [np.random.default_rng(i).standard_normal(s).astype("float32") for i, s in enumerate(shapes)]
    expected, result = run(mod, target, arrays), run(scheduled(mod, target), target, arrays)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_small_tensors_stay_serial_and_large_ones_do_not() -> None:
    assert "T.parallel" not in str(schedule_cpu(quantize((1, 16, 16, 15)), HOST))
    assert "T.parallel" in str(schedule_cpu(quantize((1, 112, 112, 24)), HOST))
    one_core = Target({"kind": "llvm", "num-cores": 1})
    assert "T.parallel" not in str(schedule_cpu(quantize((1, 112, 112, 24)), one_core))


def test_contiguous_axes_become_one_loop() -> None:
    script = str(schedule_cpu(quantize((1, 16, 16, 15)), HOST))
    assert "range(3840)" in script


def test_the_inside_of_a_halo_has_loops_of_its_own() -> None:
    spec = TensorSpec((1, 3, 64, 64), "float32")
    params = {"scale": 0.1, "out_zp": 7, "lo": 0, "hi": 255, "axes": [0, 2, 3, 1], "out_halo": [1, 1, 1, 1]}
    func = build_kernel("quantize", params, [spec], TensorSpec((1, 66, 66, 3), "uint8"))
    assert "range(1, 65)" in str(schedule_cpu(func, HOST))


@pytest.mark.parametrize(("channels", "cut"), [((96, 64), True), ((5, 3), False)])
def test_long_pieces_of_a_concatenation_have_loops_of_their_own(channels: tuple[int, int], cut: bool) -> None:
    mod = island([(1, 30, 30, c) for c in channels], lambda x, y: R.concat([x, y], 3))
    assert ("partition" in scheduled(mod, HOST).script()) == cut


@pytest.mark.parametrize(("steps", "size", "cut"), [(28, 20, True), (28, 7, False), (66, 20, False)])
def test_each_of_some_states_has_a_loop_of_its_own(steps: int, size: int, cut: bool) -> None:
    mod = island([(1, size)] * steps, lambda *x: R.reshape(R.concat(x, 0), (steps, 1, size)))
    assert (scheduled(mod, HOST).script().count("_partition") > steps - 3) == cut


def test_a_scheduled_function_is_returned_as_it_is() -> None:
    func = schedule_cpu(quantize((4, 4)), HOST)
    assert func.attrs[SCHEDULED] and schedule_cpu(func, HOST).same_as(func)


def test_what_cannot_be_scheduled_says_why() -> None:
    mod = island(*ISLANDS["argmax"])
    (func,) = (f for f in scheduled(mod, HOST).functions.values() if isinstance(f, tvm.tirx.PrimFunc))
    assert func.attrs[SCHEDULED] and "not a single store" in func.attrs[UNSCHEDULED]


def call(groups: int = 1, **changes: Any) -> KernelCall:
    weight = np.ones((8, 3, 3, 8 // groups), "int8")
    window = {"strides": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": groups}
    params = {**window, "in_zp": 0, "out_zp": 0, "lo": 0, "hi": 255}
    arrays = {1: weight, 2: np.zeros(8, "int32"), 3: np.ones(8, "float32")}
    specs = (TensorSpec((1, 9, 9, 8), "uint8"), *(TensorSpec(a.shape, str(a.dtype)) for a in arrays.values()))
    fields = {"params": params, "constants": arrays, **changes}
    return KernelCall("qconv2d", args=specs, out=TensorSpec((1, 9, 9, 8), "uint8"), **fields)


def test_the_convolution_rule_leaves_what_it_does_not_know() -> None:
    assert cpu_conv.rule(call(), HOST) is not None
    assert cpu_conv.rule(call(groups=8), HOST) is not None
    assert cpu_conv.rule(call(groups=2), HOST) is None
    assert cpu_conv.rule(call(constants={}), HOST) is None
    large = {1: call().constants[1], 2: np.full(8, 2**31 - 1, "int32"), 3: call().constants[3]}
    assert cpu_conv.rule(call(constants=large, params={**call().params, "in_zp": -1}), HOST) is None


def test_kernels_compile_for_arm() -> None:
    specs = (TensorSpec((1, 100), "int8"), TensorSpec((256,), "uint8"))
    lookup = cpu_lut.rule(KernelCall("qlut", {}, specs, TensorSpec((1, 100), "uint8")), A76)
    convolution = cpu_conv.rule(call(), A76)
    assert lookup is not None and convolution is not None
    assert "tbx" in tvm.compile(lookup.func, target=A76).mod.inspect_source("asm")
    assert "smlal" in tvm.compile(convolution.func, target=A76).mod.inspect_source("asm")
