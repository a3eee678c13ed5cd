"""LowerInteger: QDQ islands as tagged kernels, and the report."""

import json
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.attrs import KERNEL, PARAMS, REPORT, decode_params
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.plan import REASONS


def lower(mod: IRModule, storage: str = "int8") -> IRModule:
    return tvm.transform.Sequential([LowerInteger(storage)])(mod)


def kernels(mod: IRModule) -> list[str]:
    """The kernels that ``main`` calls, or the operators that it has instead."""
    found = []
    for _, value in ir.bindings(mod["main"]):
        name = ir.op_name(value)
        if name:
            found.append(str(mod[value.args[0]].attrs[KERNEL]) if name == "relax.call_tir" else name)
    return found


def report(mod: IRModule) -> list[dict[str, Any]]:
    return json.loads(mod["main"].attrs[REPORT])


@I.ir_module
class Relu:
    @R.function
    def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 3), "float32"):
        with R.dataflow():
            q = R.quantize(x, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
            a = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
            b = R.nn.relu(a)
            r = R.quantize(b, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
            y = R.dequantize(r, R.const(0.5, "float32"), R.const(1, "int8"))
            R.output(y)
        return y


def test_an_island():
    assert kernels(lower(Relu)) == ["quantize", "qclamp", "dequantize"]


def test_the_report_names_every_operator():
    entries = report(lower(Relu))
    assert [(e["name"], e["op"], e["integer"]) for e in entries] == [
        ("x", "quantize", True),
        ("b", "clamp", True),
        ("y", "dequantize", True),
    ]


def test_storage_moves_codes_by_128():
    mod = lower(Relu, "uint8")
    params = [
        decode_params(str(f.attrs[PARAMS])) for f in mod.functions.values() if KERNEL in (f.attrs or {})
    ]
    assert {p["lo"] for p in params if "scale" not in p} == {129}
    values = [value for _, value in ir.bindings(mod["main"]) if ir.op_name(value)]
    assert [str(v.ty.dtype) for v in values] == ["uint8", "uint8", "float32"]


def test_equal_kernels_are_one_function():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((4,), "float32"), y: R.Tensor((4,), "float32")) -> R.Tuple(
            R.Tensor((4,), "int8"), R.Tensor((4,), "int8")
        ):
            with R.dataflow():
                q = R.quantize(x, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
                r = R.quantize(y, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
                R.output(q, r)
            return (q, r)

    assert len([f for f in lower(Mod).functions.values() if isinstance(f, tvm.tirx.PrimFunc)]) == 1


def test_transpositions_at_the_edges_join_quantize_and_dequantize():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 3), "float32"):
            with R.dataflow():
                t = R.permute_dims(x, (1, 0))
                q = R.quantize(t, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
                a = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
                y = R.permute_dims(a, (1, 0))
                R.output(y)
            return y

    assert kernels(lower(Mod)) == ["quantize", "dequantize"]


def test_a_part_on_another_grid_is_requantized():
    @I.ir_module
    class Mod:
        @R.function
        def main(q: R.Tensor((2,), "int8"), r: R.Tensor((2,), "int8")) -> R.Tensor((4,), "int8"):
            with R.dataflow():
                a = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
                b = R.dequantize(r, R.const(0.25, "float32"), R.const(0, "int8"))
                c = R.concat((a, b), axis=0)
                d = R.quantize(c, R.const(0.5, "float32"), R.const(1, "int8"), out_dtype="int8")
                R.output(d)
            return d

    assert kernels(lower(Mod)) == ["requantize", "relax.concat"]
    assert kernels(lower(Mod, "uint8")) == ["requantize", "requantize", "relax.concat", "requantize"]


def test_a_float_island_keeps_its_reason():
    @I.ir_module
    class Mod:
        @R.function
        def main(q: R.Tensor((2, 3), "int8")) -> R.Tensor((2,), "float32"):
            with R.dataflow():
                a = R.dequantize(q, R.const(0.5, "float32"), R.const(1, "int8"))
                s = R.prod(a, axis=[1])
                t = R.nn.relu(s)
                R.output(t)
            return t

    Mod["main"] = Mod["main"].with_attr(REASONS, json.dumps({"t": "because"}))
    entries = {e["name"]: e for e in report(lower(Mod))}
    assert not entries["s"]["integer"] and entries["s"]["reason"] == "prod has no integer kernel"
    assert entries["t"]["reason"] == "because"


def test_a_split_in_float_is_reported():
    @I.ir_module
    class Mod:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")) -> R.Tensor((2, 1), "float32"):
            with R.dataflow():
                a = R.split(x, [1], axis=1)
                b = a[0]
                R.output(b)
            return b

    (entry,) = report(lower(Mod))
    assert (entry["op"], entry["shape"], entry["integer"]) == ("split", [2, 1], False)


def test_a_float_module_stays_as_it_is():
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            out = bb.emit_output(relax.op.add(x, relax.const(np.float32(1))))
        bb.emit_func_output(out)
    assert kernels(lower(bb.get())) == ["relax.add"]
