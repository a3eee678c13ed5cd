"""A program of torch.export -> Relax: TVM's importer with own converters, names and error messages.

The only file that touches the private parts of TVM's frontend for torch.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from tvm import IRModule, relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from tvm_qplugin.core.attrs import STEPS
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.import_names import Named, Names
from tvm_qplugin.onnx_file import last_line
from tvm_qplugin.passes.canonicalize import IO
from tvm_qplugin.passes.rebuild import constant, dtype_of, shape_of
from tvm_qplugin.torch_gather import GATHER
from tvm_qplugin.torch_names import label, names_of, path_of
from tvm_qplugin.torch_ops import OPERATORS, Call
from tvm_qplugin.torch_program import check_program, decomposed
from tvm_qplugin.torch_quantized import QUANTIZED
from tvm_qplugin.torch_recurrent import RECURRENT
from tvm_qplugin.torch_windows import WINDOWS

Expr = Any
CONVERTERS = {**OPERATORS, **GATHER, **WINDOWS, **RECURRENT, **QUANTIZED}
# What TVM converts into something else, or at random.
REFUSED = {
    "grid_sampler_2d.default",
    "_upsample_bilinear2d_aa.default",
    "randn.default",
    "randn_like.default",
    "exponential.default",
}
# What has a value that the shape of its first argument decides.
SHAPED = {
    "zeros_like.default",
    "ones_like.default",
    "full_like.default",
    "new_zeros.default",
    "new_ones.default",
    "new_full.default",
}
# A constant of more elements than this is not computed at import.
FOLD_LIMIT = 2**26


class Importer(ExportedProgramImporter):
    """Builds ``main`` from a checked program with static shapes; parameters are constants."""

    def __init__(self) -> None:
        super().__init__()
        self.names = Names()
        self.known = frozenset({*self.convert_map, *CONVERTERS}) - REFUSED
        self.values: dict[Any, Any] = {}
        self.labels: dict[Any, str | None] = {}

    def build(self, program: Any) -> IRModule:
        """The function with temporaries still called ``lv``; ``names`` has those of the tensors."""
        self.block_builder = relax.BlockBuilder()
        self.labels = names_of(program)
        params = self._parameters(program)
        with self.block_builder.function("main", params=params):
            with self.block_builder.dataflow():
                results, failure = self._try_body(program, params)
                output = results[0] if len(results) == 1 else relax.Tuple(results)
                output = self.block_builder.emit_output(output)
            self.block_builder.emit_func_output(output)
        if failure is not None:
            raise failure
        names = {"inputs": [str(param.name) for param in params], "outputs": _output_names(program)}
        interface = {key: [{"name": name} for name in group] for key, group in names.items()}
        module = self.block_builder.get()
        attrs = {"num_input": len(params), IO: json.dumps(interface)}
        module["main"] = module["main"].with_attrs(attrs)
        return module

    def _parameters(self, program: Any) -> list[Expr]:
        """The inputs of the caller; parameters, buffers and constants of the program become values."""
        tensors = {**program.state_dict, **program.constants}
        targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
        params = []
        for node in program.graph.find_nodes(op="placeholder"):
            value = node.meta.get("val")
            if targets[node.name] in tensors:
                self._know(node, tensors[targets[node.name]])
            elif isinstance(value, torch.Tensor):
                dtype = str(value.dtype).removeprefix("torch.")
                var = relax.Var(self.names.fresh(node.name), relax.TensorType(tuple(value.shape), dtype))
                self.env[node] = var
                params.append(var)
        return params

    def _try_body(self, program: Any, params: Sequence[Expr]) -> tuple[Sequence[Expr], ModelError | None]:
        """The outputs; after an error any variable, so that the function can be closed."""
        try:
            for node in program.graph.nodes:
                if node.op == "call_function":
                    self._add(node)
            return self._results(program), None
        except ModelError as error:
            return params[:1], error

    def _results(self, program: Any) -> list[Expr]:
        nodes = _results_of(program)
        results = [self.env[node] for node in nodes]
        for node, result in zip(nodes, results, strict=True):
            if not isinstance(result, relax.Var):
                raise ModelError(f"output {label(node)} does not depend on any input: it is a constant")
        return results

    def _know(self, node: Any, tensor: torch.Tensor) -> None:
        """A value that is known before the program runs."""
        self.values[node] = tensor.detach()
        self.env[node] = constant(tensor.detach().contiguous().numpy())

    def _add(self, node: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if not self._fold(node):
                    self._bind(node, self._convert(node))
        except Exception as error:
            kind = node.target.__name__
            raise ModelError(f"{kind} ({label(node)}) cannot be imported: {last_line(error)}") from None

    def _fold(self, node: Any) -> bool:
        """Compute in torch what depends on no input; dequantization of weights stays."""
        shaped = node.args[:1] if node.target.__name__ in SHAPED else ()
        if not all(used in self.values or used in shaped for used in node.all_input_nodes):
            return False
        seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if seeded or node.target.__name__.startswith("dequantize_"):
            return False
        meta = node.meta.get("val")
        if not isinstance(meta, torch.Tensor) or meta.numel() > FOLD_LIMIT:
            return False
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
        self._know(node, node.target(*args, **kwargs))
        return True

    def _value(self, node: Any) -> torch.Tensor:
        """What is known of a node: its value, or zeros of its shape and dtype."""
        meta = node.meta["val"]
        return self.values[node] if node in self.values else torch.zeros(meta.shape, dtype=meta.dtype)

    def _convert(self, node: Any) -> Expr:
        own = CONVERTERS.get(node.target.__name__)
        if own is None:
            return self.convert_map[node.target.__name__](node)
        path, is_layer = path_of(node)
        owner = path if is_layer else self.labels[node] or node.name
        bind, emit = partial(self._bind_part, owner), partial(self._emit_step, owner)
        return own(Call(self._arguments(node), self._lookup, bind, emit))

    def _arguments(self, node: Any) -> dict[str, Any]:
        """All arguments by name, as the operator declares them."""
        declared = node.target._schema.arguments
        found = {arg.name: arg.default_value for arg in declared if arg.has_default_value()}
        found |= {arg.name: value for arg, value in zip(declared, node.args, strict=False)}
        return {name: self._retrieve_args(value) for name, value in {**found, **node.kwargs}.items()}

    def _lookup(self, expr: Expr) -> Expr | None:
        return self.block_builder.lookup_binding(expr) if isinstance(expr, relax.Var) else None

    def _bind_part(self, owner: str, expr: Expr, role: str) -> Expr:
        return self.names.give(self.block_builder.emit(expr), f"{owner}_{role}")

    def _emit_step(self, owner: str, expr: Expr, role: str, step: int | None = None) -> Expr:
        """A tensor of a recurrent cell; what it is in every step is noted."""
        return self.names.give_part(self.block_builder.emit(expr), owner, role, step)

    def _bind(self, node: Any, result: Any) -> None:
        if isinstance(result, relax.Tuple):
            fields = result.fields
            result = [p if isinstance(p, relax.Var) else self.block_builder.emit(p) for p in fields]
        if isinstance(result, relax.Call | relax.TupleGetItem):
            result = self.block_builder.emit(result)
        if isinstance(result, relax.Var) and result not in self.names.of and not self._is_input(result):
            _check_type(node, result)
            if (name := self.labels[node]) is not None:
                self.names.give(result, name)
        self.env[node] = result

    def _is_input(self, var: Expr) -> bool:
        return any(var.same_as(other) for other in self.env.values() if isinstance(other, relax.Var))


def _check_type(node: Any, result: Expr) -> None:
    """Refuse a conversion to another shape or dtype than torch has found."""
    wanted = node.meta.get("val")
    if isinstance(wanted, torch.Tensor) and isinstance(result.ty, relax.TensorType):
        made = shape_of(result), dtype_of(result)
        if made != (tuple(wanted.shape), str(wanted.dtype).removeprefix("torch.")):
            raise ValueError(
                f"it became a tensor {made}, but is one of {tuple(wanted.shape)}, {wanted.dtype}"
            )


def _results_of(program: Any) -> list[Any]:
    """The nodes whose values the program returns to its caller."""
    return [node for node in program.graph.output_node().args[0] if node is not None]


def _output_names(program: Any) -> list[str]:
    """Keys of a dictionary that the model returns, else the names of the nodes."""
    nodes = _results_of(program)
    tree = pytree.tree_unflatten(list(range(len(nodes))), program.call_spec.out_spec)
    paths = {place: path for path, place in pytree.tree_flatten_with_path(tree)[0]}
    last = {place: path[-1] for place, path in paths.items() if path}
    keys = {place: str(key.key) for place, key in last.items() if isinstance(key, pytree.MappingKey)}
    return [keys.get(place, str(node.name)) for place, node in enumerate(nodes)]


def import_program(program: Any) -> IRModule:
    """A program of torch.export as a Relax module in torch's layout, variables named after its modules.

    Raises ModelError for what cannot be imported.
    """
    importer = Importer()
    program = decomposed(program, importer.known)
    check_program(program, importer.known)
    module = importer.build(program)
    module["main"] = Named(module["main"], importer.names.of).run()
    if importer.names.steps:
        module["main"] = module["main"].with_attr(STEPS, json.dumps(importer.names.steps))
    return module
