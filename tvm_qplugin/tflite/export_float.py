"""Walks a canonical module that computes in float and writes a TFLite operator for each of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import IRModule, relax

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import ExpandWeights, Stored, stored_arguments
from tvm_qplugin.passes.float_layers import FloatLayer, bounds_of, layers_of
from tvm_qplugin.passes.match_hard_swish import hard_swishes
from tvm_qplugin.passes.op_kinds import KINDS, Fusion
from tvm_qplugin.tflite import ops_float
from tvm_qplugin.tflite.export import Export, Exported
from tvm_qplugin.tflite.float_node import FloatNode
from tvm_qplugin.tflite.writer import Value

ACTIVATED = ("add", "subtract", "multiply", "mean")
"""Operators without weights that a clamp may be part of."""


def export_float(
    mod: IRModule,
    *,
    per_channel_dense: bool = True,
    keep_layout: bool = False,
    signature: str = "serving_default",
    every_layer: bool = False,
) -> Exported:
    """The file of a canonical float module, or of one of the schemes ``fp16`` and ``dynamic``.

    Constants of ``fp16`` become FLOAT16 with DEQUANTIZE, weights of ``dynamic`` INT8 inputs of
    CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED, which then quantize their other input at run time.
    ``every_layer`` as in ``export_lowered``. Raises ModelError for operators without a counterpart.
    """
    stored = stored_arguments(mod)
    expanded = tvm.transform.Sequential([ExpandWeights()])(mod)
    return FloatExport(expanded, stored, per_channel_dense, keep_layout).run(signature, every_layer)


class FloatExport(Export):
    """``stored``: the constants that are stored small, by reader and argument."""

    integer = False

    def __init__(
        self,
        mod: IRModule,
        stored: Mapping[tuple[str, int], Stored],
        per_channel_dense: bool,
        keep_layout: bool,
    ) -> None:
        super().__init__(mod, per_channel_dense, keep_layout)
        self.stored, self.parts = stored, dict[relax.Var, list[Value]]()
        self.layers, self.swishes = layers_of(self.func, stored), hard_swishes(self.func)
        swishing = [v for end, (_, members) in self.swishes.items() for v in members if not v.same_as(end)]
        self.inside = {v for layer in self.layers.values() for v in layer.members[:-1]}.union(swishing)
        self.activated = self._activated()
        self.inside.update(self.activated.values())

    def _activated(self) -> dict[relax.Var, relax.Var]:
        """Clamps that are part of the operator before them: by the clamp, that operator."""
        fusion = Fusion.of(self.func)
        taken = self.inside.union(self.layers, self.swishes)
        found: dict[relax.Var, relax.Var] = {}
        for var, value in self.bound.items():
            kind = KINDS.get(ir.op_name(value), "")
            if kind in ACTIVATED and var not in taken:
                members = fusion.members(var, kind)
                if len(members) == 2 and members[1] not in self.inside:
                    found[members[1]] = var
        return found

    def _check(self) -> None:
        """Refuse what TFLite has no operator for, all at once."""
        wrong = [
            f"{var.name} ({kind})" for var, value in self.bound.items() if (kind := _unknown(var, value))
        ]
        if wrong:
            raise ModelError(
                f"{len(wrong)} operators have no float32 operator in TFLite that can be written: "
                f"{'; '.join(wrong)}. Replace them in the model, or use build() for model.so"
            )

    def _fill(self) -> None:
        for var, value in self.bound.items():
            if var in self.inside:
                continue
            if isinstance(value, relax.TupleGetItem):
                self.env[var] = self.parts[value.tuple_value][value.index]
            elif ir.op_name(value) == "relax.split":
                names = {self.bound[v].index: v.name for v in self.users.get(var, [])}
                self.parts[var] = ops_float.split(self._of(var, var, [value.args[0]], {}), value, names)
            else:
                self.env[var] = self._emit(var, value)

    def _emit(self, var: relax.Var, value: Any) -> Value:
        if var in self.dropped:
            return self.env[value.args[0]]
        if var in self.layers:
            return self._layer(var, self.layers[var])
        if var in self.swishes:
            return ops_float.hard_swish(self._of(var, var, [self.swishes[var][0]], {}), value)
        head = self.activated.get(var, var)
        params = {} if head.same_as(var) else dict(zip(("lo", "hi"), bounds_of(value), strict=True))
        call = self.bound[head]
        fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else call.args[:1]
        args = [*fields, *(arg for arg in call.args[1:] if _is_tensor(arg))]
        return ops_float.EMITTERS[ir.op_name(call)](self._of(var, head, args, params), call)

    def _layer(self, var: relax.Var, layer: FloatLayer) -> Value:
        args = (self._argument(layer.source), layer.weight, layer.bias)
        spec = ir.spec_of(var)
        node = FloatNode(self.writer, var.name, layer.params, args, spec, {}, {}, layer.halves, layer.grid)
        if layer.kernel == "fdense":
            self._check_dense(node)
        return ops_float.EMITTERS[ir.op_name(layer.head)](node, layer.head)

    def _of(self, var: relax.Var, head: relax.Var, args: list[Any], params: dict[str, Any]) -> FloatNode:
        halves = frozenset(i for i in range(len(args)) if (head.name, i) in self.stored)
        values = tuple(map(self._argument, args))
        return FloatNode(self.writer, var.name, params, values, self._spec(var), {}, {}, halves)

    def _spec(self, var: relax.Var) -> TensorSpec:
        """Shape and dtype of the output; a split has several."""
        return ir.spec_of(var) if isinstance(var.ty, relax.TensorType) else TensorSpec((), "float32")


def _unknown(var: relax.Var, value: Any) -> str:
    """What a binding does that cannot be written; empty if it can."""
    name = ir.op_name(value)
    if name not in {*ops_float.EMITTERS, "relax.split"} and not isinstance(value, relax.TupleGetItem):
        return name.removeprefix("relax.") or type(value).__name__
    dtype = ir.spec_of(var).dtype if isinstance(var.ty, relax.TensorType) else "float32"
    return "" if dtype == "float32" else f"{name.removeprefix('relax.')} of {dtype}"


def _is_tensor(arg: Any) -> bool:
    return isinstance(getattr(arg, "ty", None), relax.TensorType)
