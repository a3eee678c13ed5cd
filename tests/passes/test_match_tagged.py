"""Kernels that importers put into a QDQ module, on the way through LowerInteger."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax

from tvm_qplugin.core.attrs import KERNEL, REPORT, TensorSpec
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.kernels import build_kernel
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.plan import GRIDS

X, Y = QuantParams.of(0.03, -11), QuantParams.of(0.008, 3)
PARAMS = {
    "in_scale": float(X.scale),
    "in_zp": -11,
    "out_scale": float(Y.scale),
    "out_zp": 3,
    "input_scales": [0.01] * 4,
    "recurrent_scales": [0.01] * 4,
    "cell_exponent": -12,
    "cell_clip": 0.0,
}


def module() -> IRModule:
    """quantize, qlstm, dequantize."""
    arrays = [np.ones(shape, dtype) for shape, dtype in [((4, 5, 3), "int8"), ((4, 5, 5), "int8")]]
    arrays.append(np.ones((4, 5), "int32"))
    specs = [TensorSpec((1, 2, 3), "int8"), *(TensorSpec(a.shape, str(a.dtype)) for a in arrays)]
    func = build_kernel("qlstm", PARAMS, specs, TensorSpec((1, 2, 5), "int8"))
    bb, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType((1, 2, 3), "float32"))
    kernel = bb.add_func(func.without_attr("global_symbol"), "qlstm")
    ty = relax.TensorType((1, 2, 5), "int8")
    with bb.function("main", [x]):
        with bb.dataflow():
            q = bb.emit(ir.quantize(x, X), "q")
            y = bb.emit(relax.call_tir(kernel, [q, *map(ir.const, arrays)], ty), "y")
            out = bb.emit_output(ir.dequantize(y, Y))
        bb.emit_func_output(out)
    return bb.get()


def steps(mod: IRModule) -> list[tuple[str, str]]:
    calls = [value for _, value in ir.bindings(mod["main"]) if ir.op_name(value) == "relax.call_tir"]
    return [(str(mod[call.args[0]].attrs[KERNEL]), str(call.ty.dtype)) for call in calls]


@pytest.mark.parametrize(
    ("storage", "between"),
    [("int8", []), ("uint8", [("requantize", "int8")])],
)
def test_a_kernel_keeps_its_dtypes(storage: str, between: list[tuple[str, str]]) -> None:
    mod = tvm.transform.Sequential([LowerInteger(storage)])(module())
    after = [("requantize", "uint8")] if between else []
    wanted = [("quantize", storage), *between, ("qlstm", "int8"), *after, ("dequantize", "float32")]
    assert steps(mod) == wanted


def test_the_report_and_the_grids_have_it() -> None:
    mod = tvm.transform.Sequential([LowerInteger("int8")])(module())
    entry = next(e for e in json.loads(mod["main"].attrs[REPORT]) if e["name"] == "y")
    assert (entry["op"], entry["kernel"], entry["integer"]) == ("lstm", "qlstm", True)
    assert (entry["weight_bytes"], entry["macs"]) == (160, 320)
    assert QuantParams.from_json(json.loads(mod["main"].attrs[GRIDS])["y"]).same(Y)
