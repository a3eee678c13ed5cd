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
    stored = stored_arguments(ir.main_function(mod))
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
        self.activated = self._activated()
        groups = [layer.members for layer in self.layers.values()]
        groups += [(*members, end) for end, members in self.activated.items()]
        inner = [var for members in groups for var in members[:-1]]
        inner += [v for end, (_, members) in self.swishes.items() for v in members if not v.same_as(end)]
        self.inside = frozenset(inner)

    def _activated(self) -> dict[relax.Var, tuple[relax.Var, ...]]:
        """Clamps that are part of the operator before them: by the clamp, that operator."""
        fusion, found = Fusion.of(self.func), {}
        taken = {v for _, members in self.swishes.values() for v in members}
        for var, value in self.bound.items():
            kind = KINDS.get(ir.op_name(value), "")
            if (
                kind in ("add", "subtract", "multiply", "mean")
                and not self._in_layer(var)
                and var not in taken
            ):
                members = fusion.members(var, kind)
                if len(members) == 2 and members[1] not in taken:
                    found[members[1]] = (var,)
        return found

    def _in_layer(self, var: relax.Var) -> bool:
        return any(var in layer.members for layer in self.layers.values())

    def _check(self) -> None:
        """Refuse what TFLite has no operator for, all at once."""
        found = []
        for var, value in self.bound.items():
            name = ir.op_name(value)
            known = (
                name in ops_float.EMITTERS or name == "relax.split" or isinstance(value, relax.TupleGetItem)
            )
            if not known:
                found.append(f"{var.name} ({name.removeprefix('relax.') or type(value).__name__})")
            elif isinstance(var.ty, relax.TensorType) and ir.spec_of(var).dtype != "float32":
                found.append(f"{var.name} ({name.removeprefix('relax.')} of {ir.spec_of(var).dtype})")
        if found:
            raise ModelError(
                f"{len(found)} operators have no float32 operator in TFLite that can be written: "
                f"{'; '.join(found)}. Replace them in the model, or use build() for model.so"
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
        head, params = var, {}
        if var in self.activated:
            (head,) = self.activated[var]
            params = dict(zip(("lo", "hi"), bounds_of(value), strict=True))
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


def _is_tensor(arg: Any) -> bool:
    return isinstance(getattr(arg, "ty", None), relax.TensorType)
