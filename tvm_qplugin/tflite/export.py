"""Walks a lowered module and writes a TFLite operator, or a few, for every kernel."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.core.attrs import REPORT, TensorSpec
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.kernels import extra_constants
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.canonicalize import IO
from tvm_qplugin.passes.plan import FUNCTIONS, grids_of
from tvm_qplugin.passes.select_kernels import kernel_of
from tvm_qplugin.tflite import ops_arithmetic, ops_lstm, ops_table, ops_window
from tvm_qplugin.tflite.node import Node
from tvm_qplugin.tflite.ops_movement import MOVEMENTS, permutation
from tvm_qplugin.tflite.writer import Value, Writer

Emitter = Callable[[Node], Value]

EMITTERS: dict[str, Emitter] = {
    "quantize": ops_arithmetic.quantize,
    "dequantize": ops_arithmetic.dequantize,
    "requantize": ops_arithmetic.requantize,
    "qadd": ops_arithmetic.add,
    "qmul": ops_arithmetic.multiply,
    "qmatmul": ops_arithmetic.matmul,
    "qmean": ops_arithmetic.mean,
    "qsum": ops_arithmetic.total,
    "qreduce": ops_arithmetic.reduction,
    "qextreme": ops_arithmetic.extreme,
    "qprelu": ops_arithmetic.prelu,
    "qsoftmax": ops_arithmetic.softmax,
    "qclamp": ops_arithmetic.clamp,
    "qlut": ops_table.table,
    "qlstm": ops_lstm.lstm,
    "qconv2d": ops_window.conv2d,
    "qdense": ops_window.dense,
    "qavgpool2d": ops_window.average_pool,
    "qmaxpool2d": ops_window.max_pool,
    "qpad": ops_window.pad,
    "qresize2d": ops_window.resize,
    "requantize16": ops_arithmetic.requantize16,
    "qadd16": ops_arithmetic.add16,
    "qmul16": ops_arithmetic.multiply,
    "qmatmul16": ops_arithmetic.matmul,
    "qmean16": ops_arithmetic.mean,
    "qsum16": ops_arithmetic.total,
    "qsoftmax16": ops_arithmetic.softmax,
    "qconv2d16": ops_window.conv2d,
    "qdense16": ops_window.dense,
    "qresize2d16": ops_window.resize16,
}
"""What writes each kernel of ``core/oracle.py``; the float kernels have none."""

_CONVERSIONS = ("quantize", "dequantize", "requantize", "requantize16")
_TO_NHWC, _TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]


@dataclass(frozen=True)
class Exported:
    """A file, and which inputs and outputs it takes and gives as NHWC where the module has NCHW.

    ``inputs`` and ``outputs`` are those of the signature, ``operators`` counts the file's by TFLite's names,
    ``layers`` names the tensors that follow the model's own outputs (see ``every_layer``).
    """

    data: bytes
    nhwc_inputs: tuple[bool, ...]
    nhwc_outputs: tuple[bool, ...]
    layers: tuple[str, ...]
    inputs: dict[str, Value]
    outputs: dict[str, Value]
    operators: dict[str, int]


def export_lowered(
    mod: IRModule,
    *,
    per_channel_dense: bool = True,
    keep_layout: bool = False,
    signature: str = "serving_default",
    every_layer: bool = False,
) -> Exported:
    """The file of a module that ``LowerInteger(storage="int8")`` made.

    With ``every_layer`` each tensor that an operator computes is an output of the file, for comparisons.
    Raises ModelError for float operators, and for what TFLite cannot compute with the same integers.
    """
    return Export(mod, per_channel_dense, keep_layout).run(signature, every_layer)


class Export:
    """One run: the tensors of the file by variable of the function."""

    integer = True

    def __init__(self, mod: IRModule, per_channel_dense: bool, keep_layout: bool) -> None:
        self.mod, self.per_channel_dense = mod, per_channel_dense
        self.func = ir.main_function(mod)
        self.bound = {v: e for v, e in ir.bindings(self.func) if not isinstance(e, relax.Var | relax.Tuple)}
        self.outputs = ir.output_vars(self.func)
        users = ir.consumers(self.func)
        self.users = {var: [v for v in found if v in self.bound] for var, found in users.items()}
        self.writer = Writer(self.integer)
        self.grids = self._grids()
        self.functions = self._attribute(FUNCTIONS)
        self.env: dict[relax.Var, Value] = {}
        self.images: set[relax.Var] = set()
        self.dropped: set[relax.Var] = set()
        if not keep_layout:
            self._drop_layout()

    def run(self, signature: str, every_layer: bool) -> Exported:
        """Write inputs, then every binding, then the outputs."""
        self._check()
        for param in self.func.params:
            self.env[param] = self._input(param)
        self._fill()
        names = self._attribute(IO)
        inputs = _named(names.get("inputs"), list(self.func.params), self.env)
        outputs = _named(names.get("outputs"), self.outputs, self.env)
        own = {value.index for value in outputs.values()}
        hidden = [v for v in self.env if every_layer and self.env[v].index not in own | self._before()]
        layers = {var.name: self.env[var] for var in hidden if var not in self.dropped}
        taps = {f"layer {name}": value for name, value in layers.items()}
        data = self.writer.finish(inputs, {**outputs, **taps}, signature)
        nhwc = [tuple(var in self.images for var in side) for side in (self.func.params, self.outputs)]
        counts = self.writer.counts()
        return Exported(data, nhwc[0], nhwc[1], tuple(layers), inputs, outputs, counts)

    def _fill(self) -> None:
        """Write every binding."""
        for var, value in self.bound.items():
            self.env[var] = self._emit(var, value)

    def _before(self) -> set[int]:
        """The tensors that are there before the first operator."""
        return {self.env[param].index for param in self.func.params}

    def _attribute(self, key: str) -> dict[str, Any]:
        return dict(json.loads(str((self.func.attrs or {}).get(key, "{}"))))

    def _grids(self) -> dict[str, QuantParams]:
        """What lowering wrote down; data that is only moved before its first use has the same grid."""
        grids = grids_of(self.func)
        for var, value in reversed(self.bound.items()):
            if ir.op_name(value) in MOVEMENTS and var.name in grids:
                for used in ir.variables(value):
                    grids.setdefault(used.name, grids[var.name])
        return grids

    def _drop_layout(self) -> None:
        """Leave out the transpositions at the very beginning and end: a TFLite file has images as NHWC."""
        for param in self.func.params:
            users = self.users.get(param, [])
            if users and param not in self.outputs and all(self._axes(v) == _TO_NHWC for v in users):
                self.dropped.update(users)
                self.images.add(param)
        for var in self.outputs:
            last = self._last_movement(var)
            if last is not None and self._axes(last) == _TO_NCHW:
                self.dropped.add(last)
                self.images.add(var)

    def _last_movement(self, var: relax.Var) -> relax.Var | None:
        """The transposition before an output, with nothing but conversions behind it."""
        if self.users.get(var) or var not in self.bound:
            return None
        while self._axes(var) is None:
            kernel = kernel_of(self.mod, self.bound[var])
            before = ir.variables(self.bound[var])
            if kernel is None or kernel.name not in _CONVERSIONS or before[0] not in self.bound:
                return None
            var = before[0]
            if len(self.users[var]) > 1 or var in self.outputs:
                return None
        return var

    def _axes(self, var: relax.Var) -> list[int] | None:
        """The transposition that a binding is, or does on the way."""
        value: Any = self.bound.get(var)
        if ir.op_name(value) == "relax.permute_dims":
            return permutation(value)
        kernel = kernel_of(self.mod, value) if value is not None else None
        axes = kernel.params.get("axes") if kernel and kernel.name in ("quantize", "dequantize") else None
        return None if axes is None else [int(axis) for axis in axes]

    def _check(self) -> None:
        """Refuse float operators all at once, by name and with the reasons that lowering gave."""
        report = self._attribute_list(REPORT)
        reasons = {entry["name"]: entry for entry in report if not entry["integer"]}
        found = []
        for var, value in self.bound.items():
            kernel = kernel_of(self.mod, value)
            if ir.op_name(value) in MOVEMENTS or (kernel is not None and kernel.name in EMITTERS):
                continue
            entry = reasons.get(var.name, {})
            kind = entry.get("op") or ir.op_name(value).removeprefix("relax.") or type(value).__name__
            found.append(f"{var.name} ({kind}{': ' if entry.get('reason') else ''}{entry.get('reason', '')})")
        if found:
            raise ModelError(
                f"{len(found)} operators are computed in float, which the .tflite cannot hold with the same "
                f"results: {'; '.join(found)}. Quantize them, or leave them out of the model"
            )

    def _attribute_list(self, key: str) -> list[dict[str, Any]]:
        return list(json.loads(str((self.func.attrs or {}).get(key, "[]"))))

    def _input(self, param: relax.Var) -> Value:
        spec = ir.spec_of(param)
        if param in self.images:
            spec = replace(spec, shape=tuple(spec.shape[axis] for axis in _TO_NHWC))
        grid = self.grids.get(param.name) if spec.dtype != "float32" else None
        return self.writer.tensor(param.name, spec, grid)

    def _emit(self, var: relax.Var, value: Any) -> Value:
        kernel = kernel_of(self.mod, value)
        if kernel is None:
            return self._move(var, value)
        args = list(value.args[1].fields)
        args = args[: len(args) - len(extra_constants(kernel.name, kernel.params, kernel.args))]
        params, out = kernel.params, kernel.out
        if var in self.dropped:
            params = {key: entry for key, entry in params.items() if key != "axes"}
        if kernel.name in _CONVERSIONS and not params.get("axes"):
            out = TensorSpec(self.env[args[0]].spec.shape, out.dtype)
        node = self._node(var, args, params, out)
        if kernel.name in ("qdense", "qdense16"):
            self._check_dense(node)
        return EMITTERS[kernel.name](node)

    def _check_dense(self, node: Node) -> None:
        if node.per_channel and not self.per_channel_dense:
            raise node.refuse(
                "its weight has a scale for every output, and per_channel_dense=False asks for one: quantize "
                'with the rule {"op": "dense", "per_channel": false} or target="edgetpu"'
            )

    def _move(self, var: relax.Var, call: Any) -> Value:
        if var in self.dropped:
            return self.env[call.args[0]]
        fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else [call.args[0]]
        extra = [call.args[1]] if ir.op_name(call) == "relax.take" else []
        node = self._node(var, [*fields, *extra], {}, ir.spec_of(var))
        return MOVEMENTS[ir.op_name(call)](node, call)

    def _node(self, var: relax.Var, args: list[Any], params: Mapping[str, Any], out: TensorSpec) -> Node:
        function = self.functions.get(var.name, {})
        found = tuple(map(self._argument, args))
        return Node(self.writer, var.name, params, found, out, self.grids, function)

    def _argument(self, expr: relax.Expr) -> Value | Array:
        array = ir.const_value(expr)
        return self.env[expr] if array is None else array


def _named(
    names: list[dict[str, str]] | None, variables: list[relax.Var], env: Mapping[relax.Var, Value]
) -> dict[str, Value]:
    """Tensors by the names that the model gives its inputs or outputs; the second of a name gets a number."""
    known = [item["name"] for item in names] if names else [var.name for var in variables]
    found: dict[str, Value] = {}
    for name, var in zip(known, variables, strict=True):
        free = (f"{name}_{i}" for i in count(1) if f"{name}_{i}" not in known)
        found[next(free) if name in found else name] = env[var]
    return found
