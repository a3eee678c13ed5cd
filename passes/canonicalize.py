"""The canonical form: how to get there, and how to tell."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.passes.canonicalize_ops import CanonicalizeOps
from tvm_qplugin.passes.einsum_products import EinsumProducts
from tvm_qplugin.passes.fold_batch_norm import FoldBatchNorm
from tvm_qplugin.passes.fold_constants import FoldConstants
from tvm_qplugin.passes.fold_pad import FoldPad
from tvm_qplugin.passes.fuse_layer_norm import FuseLayerNorm
from tvm_qplugin.passes.fuse_rms_norm import FuseRMSNorm
from tvm_qplugin.passes.note_batch_norm import NoteBatchNorm
from tvm_qplugin.passes.rebuild import (
    dtype_of,
    op_name,
    outputs_of,
    shape_of,
    straight_bindings,
    value_of,
    variables_in,
)
from tvm_qplugin.passes.sub_pixel import SubPixel
from tvm_qplugin.passes.to_nhwc import ToNHWC

IO = "qplugin.io"


def canonicalize(module: IRModule, input_layout: str = "NCHW", statistics: bool = False) -> IRModule:
    """Bring ``main`` into canonical form; a module that is in it already does not change in meaning.

    ``main`` must be straight-line, with static shapes and its weights as constants. With
    ``input_layout="NHWC"`` 4-D parameters become NHWC. ``statistics``: keep what batch norms know of their
    outputs (see ``NoteBatchNorm``). Raises ModelError.
    """
    if "main" not in [var.name_hint for var in module.get_global_vars()]:
        raise ModelError("the module has no function `main`")
    main = module["main"]
    declared = int(main.attrs["num_input"]) if main.attrs and "num_input" in main.attrs else len(main.params)
    if declared != len(main.params):
        raise ModelError("main takes its weights as parameters; bind them with relax.transform.BindParams")
    noted = [NoteBatchNorm()] if statistics else []
    folded = [FoldBatchNorm(), SubPixel(), ToNHWC(input_layout == "NHWC"), FoldPad()]
    passes = [
        EinsumProducts(),
        FoldConstants(),
        CanonicalizeOps(),
        FuseLayerNorm(),
        FuseRMSNorm(),
        *noted,
        *folded,
    ]
    module = tvm.transform.Sequential(passes)(module)
    module["main"] = (
        module["main"].with_attr("num_input", declared).with_attr(IO, _interface(main, module["main"]))
    )
    return module


def _interface(before: relax.Function, after: relax.Function) -> str:
    """Names as the model had them, shapes and dtypes as they are now."""
    old = json.loads(str(before.attrs[IO])) if before.attrs and IO in before.attrs else None
    described = {}
    for key, variables in (("inputs", list(after.params)), ("outputs", outputs_of(after))):
        names = [v.name for v in variables] if old is None else [entry["name"] for entry in old[key]]
        described[key] = [
            {"name": n, "shape": list(shape_of(v)), "dtype": dtype_of(v)}
            for n, v in zip(names, variables, strict=True)
        ]
    return json.dumps(described)


def check_canonical(module: IRModule) -> None:
    """Raise ModelError with everything about ``main`` that is not canonical.

    Canonical is: one dataflow block in A-normal form, unique names, static shapes, attributes
    ``num_input`` and ``qplugin.io``; convolutions, pools, resizing in NHWC, weights OHWI; no batch
    norm; constants on the right; four explicit pads.
    """
    problems = list(_problems(module["main"]))
    if problems:
        raise ModelError(f"main is not canonical: {'; '.join(problems)}")


def _problems(main: relax.Function) -> Iterator[str]:
    attrs = main.attrs
    if not attrs or IO not in attrs or "num_input" not in attrs:
        yield f"attributes num_input and {IO} are missing"
    elif int(attrs["num_input"]) != len(main.params):
        yield "it has parameters that are not inputs"
    blocks = main.body.blocks
    if len(blocks) > 1 or not all(isinstance(block, relax.DataflowBlock) for block in blocks):
        yield "it is not one dataflow block"
    bindings = list(straight_bindings(main))
    names = Counter([p.name for p in main.params] + [var.name for var, _ in bindings])
    yield from (f"the name {name} is used {count} times" for name, count in names.items() if count > 1)
    for out in outputs_of(main):
        if not isinstance(out, relax.Var):
            yield "it returns something else than variables"
    known = set(main.params)
    for var, value in bindings:
        yield from (f"{var.name}: {text}" for text in _of_binding(var, value))
        yield from (f"{var.name}: uses unbound {u.name}" for u in variables_in(value) if u not in known)
        known.add(var)


def _of_binding(var: Any, value: Any) -> Iterator[str]:
    if isinstance(value, relax.TupleGetItem):
        return
    if not isinstance(value, relax.Call):
        yield f"is bound to a {type(value).__name__}, not a call"
        return
    if not all(isinstance(arg, relax.Var | GenericConst | relax.Tuple | relax.ShapeExpr) or _is_number(arg)
               for arg in value.args):  # fmt: skip
        yield "has a nested call"
    if isinstance(var.ty, relax.TensorType):
        shape_of(var)
    yield from _of_operator(op_name(value), value)


def _is_number(arg: Any) -> bool:
    return bool(tvm.ir.is_prim_expr(arg)) or isinstance(arg, tvm.ir.GlobalVar)


def _of_operator(kind: str, call: Any) -> Iterator[str]:
    layouts = {
        "nn.conv2d": ("data_layout", "kernel_layout", "out_layout"),
        "nn.max_pool2d": ("layout", "out_layout"),
        "nn.avg_pool2d": ("layout", "out_layout"),
        "image.resize2d": ("layout",),
    }
    for name in layouts.get(kind, ()):
        if getattr(call.attrs, name) != ("OHWI" if name == "kernel_layout" else "NHWC"):
            yield f"{name} is {getattr(call.attrs, name)}"
    if kind in ("nn.conv2d", "nn.max_pool2d", "nn.avg_pool2d") and len(call.attrs.padding) != 4:
        yield "its pads are not four numbers"
    if kind in ("nn.batch_norm", "nn.dropout"):
        yield f"{kind} remains"
    if kind in ("add", "multiply") and value_of(call.args[0]) is not None and value_of(call.args[1]) is None:
        yield "a constant stands on the left"
