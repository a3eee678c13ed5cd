"""ONNX graph -> Relax, one node at a time: TVM's importer with own converters and own error messages.

The only file that touches the private parts of TVM's ONNX frontend.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from tvm import IRModule, relax
from tvm.relax.frontend.onnx import onnx_frontend

from tvm_qplugin.core.attrs import STEPS
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.import_names import Named, Names
from tvm_qplugin.onnx_file import branches_of, last_line, node_label, nodes_of, weights_of
from tvm_qplugin.onnx_ops import OPERATORS, Node
from tvm_qplugin.onnx_recurrent import RECURRENT
from tvm_qplugin.onnx_shapes import SHAPES
from tvm_qplugin.onnx_windows import WINDOWS
from tvm_qplugin.passes.rebuild import constant, shape_of, value_of

Expr = Any
CONVERTERS = {**OPERATORS, **SHAPES, **WINDOWS, **RECURRENT}
# Computed from static shapes and constants only: they never become Relax operators.
FOLDED = {"Constant", "ConstantOfShape", "Shape", "Size", "Range", "EyeLike"}
# Control flow, sequences and optionals cannot be straight-line code, but for an If of static shapes.
REFUSED = ("If", "Loop", "Scan", "Sequence", "Optional", "SplitToSequence", "ConcatFromSequence", "Unique")
# A constant of more elements than this is not computed at import.
FOLD_LIMIT = 2**26


def supported_operators() -> frozenset[str]:
    """Operators of the default ONNX domain that can be imported."""
    known = set(onnx_frontend._get_convert_map()) | set(CONVERTERS) | FOLDED
    return frozenset(name for name in known if not name.startswith(REFUSED))


class Importer(onnx_frontend.ONNXGraphImporter):
    """Builds ``main`` from a checked graph with static input shapes."""

    def __init__(self, weights: Mapping[str, Array], opset: int) -> None:
        """Take the initializers as arrays."""
        super().__init__({}, "float32")
        self.opset = opset
        self.arrays = dict(weights)
        self.names = Names()
        self.read: set[str] = set()

    def build(self, graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> IRModule:
        """The function with temporaries still called ``lv``; ``names`` has those of the tensors."""
        self.read = {name for node in nodes_of(graph) for name in node.input if name}
        self.read |= {out.name for out in graph.output}
        params = [self._parameter(entry, shapes) for entry in graph.input if entry.name in shapes]
        with self.bb.function("main", params=params):
            with self.bb.dataflow():
                results, failure = self._try_body(graph, params)
                output = self.bb.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
            self.bb.emit_func_output(output)
        if failure is not None:
            raise failure
        module = self.bb.get()
        module["main"] = module["main"].with_attr("num_input", len(params))
        return module

    def _try_body(
        self, graph: onnx.GraphProto, params: Sequence[Expr]
    ) -> tuple[Sequence[Expr], ModelError | None]:
        """The outputs; after an error any variable, so that the function can be closed."""
        try:
            for node in graph.node:
                self._add(node)
            results = [self._expr(out.name) for out in graph.output]
            for out, result in zip(graph.output, results, strict=True):
                if not isinstance(result, relax.Var):
                    raise ModelError(f"output {out.name} does not depend on any input: it is a constant")
        except ModelError as error:
            return params[:1], error
        return results, None

    def _parameter(self, entry: onnx.ValueInfoProto, shapes: Mapping[str, Sequence[int]]) -> Expr:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type).name
        var = relax.Var(self.names.fresh(entry.name), relax.TensorType(tuple(shapes[entry.name]), dtype))
        self._nodes[entry.name] = var
        return var

    def _expr(self, name: str) -> Expr:
        if name not in self._nodes:
            if name not in self.arrays:
                raise ModelError(f"tensor {name} is used before it is computed; sort the nodes of the model")
            self._nodes[name] = constant(self.arrays[name])
        return self._nodes[name]

    def _add(self, node: onnx.NodeProto) -> None:
        try:
            with _quiet():
                if node.op_type == "If":
                    self._choose(node)
                elif not self._fold(node):
                    self._bind(node, self._convert(node))
        except ModelError as error:
            raise ModelError(f"{node_label(node)}: {error}") from None
        except Exception as error:
            raise ModelError(f"{node_label(node)} cannot be imported: {last_line(error)}") from None

    def _choose(self, node: onnx.NodeProto) -> None:
        """The nodes of the branch that an If takes, whose condition must be known."""
        condition = self.arrays.get(node.input[0])
        if condition is None:
            raise ValueError("its condition is computed from the input; export a model without control flow")
        branch = branches_of(node)[bool(condition)]
        self.arrays |= weights_of(branch)
        self.read |= {result.name for result in branch.output}
        for inner in branch.node:
            self._add(inner)
        for name, result in zip(node.output, branch.output, strict=True):
            self._nodes[name] = self._expr(result.name)
            if result.name in self.arrays:
                self.arrays[name] = self.arrays[result.name]

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Compute a node whose inputs are all known; dequantization of constants stays."""
        if node.op_type in ("Shape", "Size") and node.input[0] not in self.arrays:
            self.arrays[node.output[0]] = _shape_value(node, shape_of(self._expr(node.input[0])))
            return True
        known = all(name in self.arrays for name in node.input if name)
        if not known or node.op_type == "DequantizeLinear" or node.op_type.startswith("Random"):
            return False
        for name, value in zip(node.output, _evaluate(node, self.arrays, self.opset), strict=False):
            self.arrays[name] = np.asarray(value)
        return True

    def _convert(self, node: onnx.NodeProto) -> Expr:
        attrs = self._parse_attr(node.attribute)
        inputs = onnx_frontend.onnx_input(self._expr(name) if name else None for name in node.input)
        own = CONVERTERS.get(node.op_type)
        if own is not None:
            used = sum(name in self.read for name in node.output)
            emit = partial(self._emit_part, node)
            seen = Node(
                node.op_type, list(inputs), attrs, len(node.output), used, self.opset, self._lookup, emit
            )
            return self.bb.normalize(own(seen))
        attrs["tvm_custom"] = {"name": node.name, "num_outputs": len(node.output)}
        return self._convert_operator(node.op_type, inputs, attrs, self.opset)

    def _lookup(self, expr: Expr) -> Expr | None:
        return self.bb.lookup_binding(expr) if isinstance(expr, relax.Var) else None

    def _emit_part(self, node: onnx.NodeProto, expr: Expr, role: str, step: int | None) -> Expr:
        """A tensor inside a node; what it is in every step is noted."""
        output = next(name for name in node.output if name)
        return self.names.give_part(self.bb.emit(expr), output, role, step)

    def _bind(self, node: onnx.NodeProto, result: Expr) -> None:
        if isinstance(result, relax.Tuple):
            parts = list(result.fields)
        elif isinstance(result.ty, relax.TupleType):
            whole = self.bb.emit(result)
            parts = [relax.TupleGetItem(whole, i) for i in range(len(result.ty.fields))]
        else:
            parts = [result]
        for name, part in zip(node.output, parts, strict=False):
            if name:
                self._nodes[name] = self._named(name, part)
        if any(name in self.read and name not in self._nodes for name in node.output):
            raise ModelError(f"it has {len(node.output)} outputs; only {len(parts)} are supported")

    def _named(self, name: str, expr: Expr) -> Expr:
        value = value_of(expr)
        if value is not None:
            self.arrays[name] = value
            return expr
        if isinstance(expr, relax.Var) and (expr in self.names.of or expr in self._nodes.values()):
            return expr
        var = expr if isinstance(expr, relax.Var) else self.bb.emit(expr)
        shape_of(var)
        return self.names.give(var, name)


def _shape_value(node: onnx.NodeProto, shape: Sequence[int]) -> Array:
    if node.op_type == "Size":
        return np.array(int(np.prod(shape)), "int64")
    attrs = {attr.name: attr.i for attr in node.attribute}
    return np.array(shape[attrs.get("start", 0) : attrs.get("end", len(shape))], "int64")


def _evaluate(node: onnx.NodeProto, arrays: Mapping[str, Array], opset: int) -> list[Array]:
    """Run one node in ONNX's reference implementation."""
    if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range", "EyeLike", "OneHot", "Resize", "Pad"):
        _refuse_huge(node, arrays)
    known = {name: arrays[name] for name in node.input if name}
    inputs = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in known.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "fold", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, known))


def _refuse_huge(node: onnx.NodeProto, arrays: Mapping[str, Array]) -> None:
    largest = max(
        (float(np.abs(arrays[n].astype("float64")).max(initial=0)) for n in node.input if n), default=0
    )
    product = max(
        (float(np.prod(np.abs(arrays[n].astype("float64")))) for n in node.input[:2] if n), default=0
    )
    if max(largest, product if node.op_type in ("ConstantOfShape", "Expand", "Tile") else 0) > FOLD_LIMIT:
        raise ModelError(f"it computes a constant of more than {FOLD_LIMIT} elements")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TVM's frontend prints what it cannot convert, and warns of what we already checked."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def import_graph(
    model: onnx.ModelProto, weights: Mapping[str, Array], shapes: Mapping[str, Sequence[int]], opset: int
) -> IRModule:
    """A checked model as a Relax module in the layout of ONNX, variables named after its tensors."""
    importer = Importer(weights, opset)
    module = importer.build(model.graph, shapes)
    module["main"] = Named(module["main"], importer.names.of).run()
    if importer.names.steps:
        module["main"] = module["main"].with_attr(STEPS, json.dumps(importer.names.steps))
    return module
