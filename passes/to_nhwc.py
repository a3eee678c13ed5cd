"""Bring the function into NHWC layout, weights into OHWI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.nhwc_movement import MOVED
from tvm_qplugin.passes.nhwc_rules import ELEMENTWISE, RULES, WINDOWED
from tvm_qplugin.passes.rebuild import (
    Rebuilder,
    edit_weight,
    op_name,
    outputs_of,
    rebuild_main,
    shape_of,
    straight_bindings,
)

Expr = Any
Var = Any
TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


@tvm.transform.module_pass(opt_level=0, name="ToNHWC")
@dataclass(frozen=True)
class ToNHWC:
    """Compute images as NHWC.

    In: ``main`` in NCHW, weights OIHW constants (or their dequantization). Out: convolutions, pools and
    everything between them in NHWC, weights OHWI; ``permute_dims`` only at 4-D inputs and outputs
    (not at inputs with ``nhwc_inputs``, which then are parameters in NHWC) and around operators that
    exist in NCHW alone. A dense layer after flatten gets the rows of its weight permuted instead.
    """

    nhwc_inputs: bool = False

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, lambda func: Layouts(func, self.nhwc_inputs))


class Layouts(Rebuilder):
    """Every old variable may have a native version, an NHWC one, and one flattened from NHWC."""

    def __init__(self, func: relax.Function, nhwc_inputs: bool) -> None:
        """Take parameters as they are, or as NHWC."""
        super().__init__(func)
        self.native_of: dict[Var, Expr] = {}
        self.nhwc_of: dict[Var, Expr] = {}
        self.flat_of: dict[Var, Expr] = {}
        self.bound: dict[Var, Expr] = {}
        for param in func.params:
            if nhwc_inputs and len(shape_of(param)) == 4:
                self.nhwc_of[param] = _nhwc_param(param)
            else:
                self.native_of[param] = param
        self.images = _image_inputs(func)
        self.params = [self.nhwc_of[p] if p in self.nhwc_of else self.native_of[p] for p in func.params]

    def run(self) -> relax.Function:
        """Rewrite every binding; outputs keep their own layout."""
        for var, value in straight_bindings(self.func):
            self.bound[var] = value
            rule = RULES.get(op_name(value)) or RULES.get(type(value).__name__)
            if rule is None or not rule(self, var, value):
                self.native_of[var] = self.emit(self.mapped(value), var.name)
        return self.finish([self.native(out) for out in outputs_of(self.func)])

    def replacement(self, var: Var) -> Expr:
        """The native version."""
        return self.native(var)

    def is_nhwc(self, expr: Expr) -> bool:
        """Whether an NHWC version exists, or an input is best transposed at once."""
        return isinstance(expr, relax.Var) and (expr in self.nhwc_of or expr in self.images)

    def transposed(self, expr: Expr) -> bool:
        """Whether the native version of a tensor is the only one, and a transposition."""
        if not isinstance(expr, relax.Var) or expr in self.nhwc_of or expr in self.flat_of:
            return False
        return op_name(self.defined.get(self.native(expr))) == "permute_dims"

    def native(self, var: Var) -> Expr:
        """The version in the model's own layout, made if need be."""
        if var not in self.native_of:
            self.native_of[var] = self._to_native(var)
        return self.native_of[var]

    def _to_native(self, var: Var) -> Expr:
        if var in self.nhwc_of:
            call = relax.op.permute_dims(self.nhwc_of[var], TO_NCHW)
            return self.emit(call, self.fresh(f"{var.name}_nchw"))
        source, shape = self.flat_source(var)
        n, c, h, w = shape_of(source)
        image = relax.op.reshape(self.flat_of[var], (n, h, w, c))
        call = relax.op.reshape(relax.op.permute_dims(image, TO_NCHW), shape)
        return self.emit(call, self.fresh(f"{var.name}_native"))

    def flat_source(self, var: Var) -> tuple[Var, tuple[int, ...]]:
        """The 4-D tensor that a flat one came from, and the flat shape."""
        shape, value = shape_of(var), self.bound[var]
        while op_name(value) != "reshape":
            var = value.args[0]
            value = self.bound[var]
        return value.args[0], shape

    def nhwc(self, expr: Expr) -> Expr:
        """The NHWC version of a 4-D tensor, made if need be; constants are transposed."""
        if not isinstance(expr, relax.Var):
            return edit_weight(expr, self.defined.get, to_nhwc_array, MOVED)
        if expr not in self.nhwc_of:
            self.nhwc_of[expr] = self._to_nhwc(expr)
        return self.nhwc_of[expr]

    def _to_nhwc(self, var: Var) -> Expr:
        name, native = f"{var.name}_nhwc", self.native(var)
        weight = edit_weight(native, self.defined.get, to_nhwc_array, MOVED)
        if weight is not None:
            return self.emit(weight, self.fresh(name))
        n, c, h, w = shape_of(native)
        producer: Expr = self.defined.get(native)
        if op_name(producer) == "permute_dims":
            axes = [producer.attrs.axes[i] for i in TO_NHWC]
            origin = producer.args[0]
            same = [int(a) for a in axes] == [0, 1, 2, 3]
            return origin if same else self.emit(relax.op.permute_dims(origin, axes), self.fresh(name))
        if native not in self.params and (h * w == 1 or c == 1):
            return self.emit(relax.op.reshape(native, (n, h, w, c)), self.fresh(name))
        return self.emit(relax.op.permute_dims(native, TO_NHWC), self.fresh(name))

    def finish(self, outputs: Sequence[Expr]) -> relax.Function:
        """Like the base's, with the parameters in their new layout."""
        func = super().finish(outputs)
        if all(a is b for a, b in zip(self.params, self.func.params, strict=True)):
            return func
        return relax.Function(self.params, func.body, attrs=func.attrs)


def to_nhwc_array(value: Array) -> Array:
    """An NCHW array as NHWC."""
    return np.transpose(value, TO_NHWC)


def _nhwc_param(param: Var) -> Var:
    shape = shape_of(param)
    return relax.Var(param.name, relax.TensorType([shape[i] for i in TO_NHWC], param.ty.dtype))


def _image_inputs(func: relax.Function) -> set[Var]:
    """4-D parameters that reach an NCHW convolution, pool or resize elementwise, padded or cut only."""
    origin = {param: param for param in func.params if len(shape_of(param)) == 4}
    found = set()
    for var, value in straight_bindings(func):
        source = origin.get(value.args[0]) if op_name(value) and len(value.args) else None
        if source is not None and op_name(value) in WINDOWED:
            if _layout(value) == "NCHW":
                found.add(source)
        elif source is not None and op_name(value) in (*ELEMENTWISE, "nn.pad", "strided_slice"):
            origin[var] = source
    return found


def _layout(call: Expr) -> str:
    """The layout of a windowed operator's image."""
    return str(call.attrs.data_layout if op_name(call) == "nn.conv2d" else call.attrs.layout)
