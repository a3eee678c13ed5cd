"""FuseResidual: a convolution and the addition behind it as one kernel."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax

from tvm_qplugin.core.attrs import MEMBERS, REPORT, KernelCall, TensorSpec
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.fuse_residual import FuseResidual

TARGET = tvm.target.Target({"kind": "llvm"})
SPEC = TensorSpec((1, 4, 4, 8), "uint8")
CONV = {
    "strides": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1,
    "in_zp": 3, "out_zp": 5, "lo": 0, "hi": 255,
}  # fmt: skip
ADD = {
    "a_zp": 5, "a_mul": 700_000, "b_zp": 9, "b_mul": -900_000, "shift": 20, "out_zp": 7, "lo": 1, "hi": 99,
}  # fmt: skip
SWAPPED = ADD | {"a_zp": 9, "a_mul": -900_000, "b_zp": 5, "b_mul": 700_000}
CONSTANTS = (
    np.ones((8, 1, 1, 8), "int8"),
    np.arange(8, dtype="int32"),
    np.full(8, 0.01, "float32"),
)
Step = tuple[str, str, dict[str, Any], Sequence[str]]


def module(steps: Sequence[Step], outputs: Sequence[str], **attrs: Any) -> IRModule:
    """``main(x, y)`` of steps (name, kernel, parameters, operands); convolutions have ``CONSTANTS``."""
    ty = relax.TensorType(SPEC.shape, SPEC.dtype)
    params = [relax.Var(name, ty) for name in "xy"]
    known: dict[str, relax.Var] = {v.name: v for v in params}
    bb = relax.BlockBuilder()
    with bb.function("main", params):
        with bb.dataflow():
            for name, kernel, options, operands in steps:
                tensors: list[Any] = [known[operand] for operand in operands]
                if "conv" in kernel:
                    tensors[1:1] = [ir.const(array) for array in CONSTANTS]
                func = build_kernel(kernel, options, [ir.spec_of(t) for t in tensors], SPEC)
                made = bb.add_func(func.without_attr("global_symbol"), kernel)
                known[name] = bb.emit(relax.call_tir(made, tensors, ty), name)
            out = bb.emit_output(relax.Tuple([known[name] for name in outputs]))
        bb.emit_func_output(out)
    mod = bb.get()
    mod["main"] = mod["main"].with_attrs({key: json.dumps(value) for key, value in attrs.items()})
    return relax.transform.DeadCodeElimination()(mod)


def fused(mod: IRModule, accept: bool = True) -> IRModule:
    found = FuseResidual((lambda _call, _target: accept,), TARGET)(mod)
    return relax.transform.DeadCodeElimination()(found)


def entry(variable: str, kernel: str) -> dict[str, str]:
    return {"variable": variable, "kernel": kernel}


@pytest.mark.parametrize(("operands", "params"), [(("c", "y"), ADD), (("y", "c"), SWAPPED)])
def test_either_operand_may_be_the_convolution(operands: tuple[str, str], params: dict[str, Any]) -> None:
    report = [entry("c", "qconv2d"), entry("z", "qadd")]
    before = module([("c", "qconv2d", CONV, ["x"]), ("z", "qadd", ADD, operands)], ["z"], **{REPORT: report})
    expected = module(
        [("z", "qconv2d_add", {**CONV, "add": params}, ["x", "y"])],
        ["z"],
        **{MEMBERS: {"z": ["c", "z"]}, REPORT: [entry("c", "qconv2d_add"), entry("z", "qconv2d_add")]},
    )
    tvm.ir.assert_structural_equal(fused(before), expected)


def test_of_two_convolutions_the_later_one_adds() -> None:
    convs: list[Step] = [("c", "qconv2d", CONV, ["x"]), ("d", "qconv2d", CONV, ["y"])]
    before = module([*convs, ("z", "qadd", ADD, ["c", "d"])], ["z"], **{MEMBERS: {"d": ["e", "d"]}})
    expected = module(
        [convs[0], ("z", "qconv2d_add", {**CONV, "add": SWAPPED}, ["y", "c"])],
        ["z"],
        **{MEMBERS: {"d": ["e", "d"], "z": ["d", "z"]}, REPORT: []},
    )
    tvm.ir.assert_structural_equal(fused(before), expected)


LEFT_ALONE: dict[str, tuple[list[Step], list[str]]] = {
    "also an output": ([("c", "qconv2d", CONV, ["x"]), ("z", "qadd", ADD, ["c", "y"])], ["c", "z"]),
    "read twice": ([("c", "qconv2d", CONV, ["x"]), ("z", "qadd", ADD, ["c", "c"])], ["z"]),
    "read elsewhere": (
        [("c", "qconv2d", CONV, ["x"]), ("z", "qadd", ADD, ["c", "y"]), ("w", "qadd", ADD, ["c", "x"])],
        ["z", "w"],
    ),
    "no convolution": ([("z", "qadd", ADD, ["x", "y"])], ["z"]),
    "added already": (
        [("c", "qconv2d_add", {**CONV, "add": ADD}, ["x", "y"]), ("z", "qadd", ADD, ["c", "y"])],
        ["z"],
    ),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    mod = module(*LEFT_ALONE[case])
    tvm.ir.assert_structural_equal(fused(mod), mod)


def test_the_target_decides() -> None:
    mod = module([("c", "qconv2d", CONV, ["x"]), ("z", "qadd", ADD, ["c", "y"])], ["z"])
    tvm.ir.assert_structural_equal(fused(mod, accept=False), mod)
    asked: list[KernelCall] = []
    FuseResidual((lambda call, _target: bool(asked.append(call)),), TARGET)(mod)
    (call,) = asked
    assert call.name == "qconv2d_add" and sorted(call.constants) == [1, 2, 3] and call.args[4] == SPEC
