"""PadProducers: padding written by the kernel that makes a tensor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax

from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.kernels import build_kernel, output_shape
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.pad_producers import PadProducers

TARGET = tvm.target.Target({"kind": "llvm"})
SPEC = TensorSpec((1, 6, 6, 8), "uint8")
POINT = {
    "strides": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1,
    "in_zp": 7, "out_zp": 7, "lo": 0, "hi": 255,
}  # fmt: skip
SAME = POINT | {"padding": [1, 1, 1, 1], "groups": 8}
LEFT = POINT | {"padding": [0, 2, 0, 0], "groups": 8}
ADD = {
    "a_zp": 7, "a_mul": 700_000, "b_zp": 7, "b_mul": 900_000, "shift": 20, "out_zp": 7, "lo": 1, "hi": 99,
}  # fmt: skip
MEAN = {"axes": [1, 2], "keepdims": True, "multiplier": 0.02, "in_zp": 7, "out_zp": 7, "lo": 0, "hi": 255}
POOL = {"pool": [3, 3], "strides": [1, 1], "padding": [0, 0, 0, 0], "lo": 0, "hi": 255, "out_zp": 7}
MAXIMUM, AVERAGE = POOL | {"dilation": [1, 1]}, POOL | {"in_zp": 7, "count_include_pad": False}
Step = tuple[str, str, dict[str, Any], Sequence[str]]


def module(steps: Sequence[Step], outputs: Sequence[str]) -> IRModule:
    """``main(x)`` of steps (name, kernel, parameters, operands); with 8 groups windows are 3 x 3."""
    params = [relax.Var("x", relax.TensorType(SPEC.shape, SPEC.dtype))]
    known: dict[str, relax.Var] = {v.name: v for v in params}
    bb = relax.BlockBuilder()
    with bb.function("main", params):
        with bb.dataflow():
            for name, kernel, options, operands in steps:
                tensors: list[Any] = [known[operand] for operand in operands]
                if "conv" in kernel:
                    window = (1, 1, 8) if options["groups"] == 1 else (3, 3, 1)
                    weight = np.ones((8, *window), "int8")
                    constants = weight, np.arange(8, dtype="int32"), np.full(8, 0.01, "float32")
                    tensors[1:1] = [ir.const(array) for array in constants]
                specs = [ir.spec_of(t) for t in tensors]
                out = TensorSpec(output_shape(kernel, options, [s.shape for s in specs]), "uint8")
                func = build_kernel(kernel, options, specs, out).without_attr("global_symbol")
                padded = any(key.endswith("_halo") for key in options)
                made = bb.add_func(func, f"{kernel}_padded" if padded else f"{kernel}_{name}")
                ty = relax.TensorType(out.shape, out.dtype)
                known[name] = bb.emit(relax.call_tir(made, tensors, ty), name)
            result = bb.emit_output(relax.Tuple([known[name] for name in outputs]))
        bb.emit_func_output(result)
    return bb.get()


def padded(mod: IRModule, accept: Any = lambda _call, _target: True) -> IRModule:
    return relax.transform.DeadCodeElimination()(PadProducers((accept,), TARGET)(mod))


def check(before: list[Step], after: list[Step], outputs: Sequence[str] = ("z",)) -> None:
    tvm.ir.assert_structural_equal(padded(module(before, outputs)), module(after, outputs))


def halo(params: dict[str, Any], **halos: list[int]) -> dict[str, Any]:
    return params | {f"{name}_halo": values for name, values in halos.items()}


ONE = [1, 1, 1, 1]
PRODUCERS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "convolution": ("qconv2d", POINT, ["x"]),
    "addition": ("qadd", ADD, ["x", "x"]),
    "maximum": ("qmaxpool2d", MAXIMUM, ["x"]),
    "average": ("qavgpool2d", AVERAGE, ["x"]),
}


@pytest.mark.parametrize("producer", PRODUCERS)
def test_what_a_convolution_pads_is_written_before_it(producer: str) -> None:
    kernel, params, operands = PRODUCERS[producer]
    check(
        [("a", kernel, params, operands), ("z", "qconv2d", SAME, ["a"])],
        [("a", kernel, halo(params, out=ONE), operands), ("z", "qconv2d", halo(SAME, **{"in": ONE}), ["a"])],
    )


def test_all_consumers_read_the_largest_halo() -> None:
    both = [1, 2, 1, 1]
    check(
        [
            ("a", "qconv2d", POINT, ["x"]),
            ("b", "qconv2d", SAME, ["a"]),
            ("c", "qconv2d", LEFT, ["a"]),
            ("d", "qmean", MEAN, ["a"]),
            ("z", "qadd", ADD, ["a", "b"]),
        ],
        [
            ("a", "qconv2d", halo(POINT, out=both), ["x"]),
            ("b", "qconv2d", halo(SAME, **{"in": both}), ["a"]),
            ("c", "qconv2d", halo(LEFT, **{"in": both}), ["a"]),
            ("d", "qmean", halo(MEAN, **{"in": both}), ["a"]),
            ("z", "qadd", halo(ADD, a=both), ["a", "b"]),
        ],
        ("c", "d", "z"),
    )


def test_a_chain_of_convolutions() -> None:
    check(
        [("a", "qconv2d", SAME, ["x"]), ("b", "qconv2d", SAME, ["a"]), ("z", "qconv2d", SAME, ["b"])],
        [
            ("a", "qconv2d", halo(SAME, out=ONE), ["x"]),
            ("b", "qconv2d", halo(SAME, out=ONE, **{"in": ONE}), ["a"]),
            ("z", "qconv2d", halo(SAME, **{"in": ONE}), ["b"]),
        ],
    )


LEFT_ALONE: dict[str, tuple[list[Step], list[str]]] = {
    "also an output": ([("a", "qconv2d", POINT, ["x"]), ("z", "qconv2d", SAME, ["a"])], ["a", "z"]),
    "no padding": ([("a", "qconv2d", POINT, ["x"]), ("z", "qconv2d", POINT, ["a"])], ["z"]),
    "another zero point": (
        [("a", "qconv2d", POINT, ["x"]), ("z", "qconv2d", SAME | {"in_zp": 8}, ["a"])],
        ["z"],
    ),
    "a reader without halo": (
        [("a", "qconv2d", POINT, ["x"]), ("b", "qclamp", POINT, ["a"]), ("z", "qconv2d", SAME, ["a"])],
        ["b", "z"],
    ),
    "a residual": (
        [
            ("a", "qconv2d", POINT, ["x"]),
            ("b", "qconv2d", SAME, ["a"]),
            ("z", "qconv2d_add", POINT | {"add": ADD}, ["b", "a"]),
        ],
        ["z"],
    ),
    "a producer without halo": ([("a", "qclamp", POINT, ["x"]), ("z", "qconv2d", SAME, ["a"])], ["z"]),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    before, outputs = LEFT_ALONE[case]
    check(before, before, outputs)


def test_the_target_decides_about_every_kernel() -> None:
    mod = module([("a", "qconv2d", POINT, ["x"]), ("z", "qconv2d", SAME, ["a"])], ["z"])

    def reads(call: KernelCall, target: tvm.target.Target) -> bool:
        return target == TARGET and "in_halo" in call.params

    def writes(call: KernelCall, target: tvm.target.Target) -> bool:
        return target == TARGET and "out_halo" in call.params

    for accept in (reads, writes):
        tvm.ir.assert_structural_equal(padded(mod, accept), mod)
    after = PadProducers((reads, writes), TARGET)(mod)
    assert ir.spec_of(next(v for v, _ in ir.bindings(after["main"]) if v.name == "a")).shape == (1, 8, 8, 8)
