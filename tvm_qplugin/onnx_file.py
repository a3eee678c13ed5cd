"""Reading an ONNX file and refusing what is broken, before any of it reaches TVM."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array

PROTO_LIMIT = 2**31 - 1
_LARGE = 4096  # bytes of an initializer that is a weight, not a shape
INPUT_TYPES = ("float32", "int8", "uint8", "int32", "int64", "bool")
# Operators whose constants may be infinite: bounds and masks, never weights.
UNBOUNDED = {"Clip", "Where", "Pad", "Min", "Max", "ConstantOfShape"}


def read_model(source: str | os.PathLike[str]) -> onnx.ModelProto:
    """Parse a file with its external data; ModelError where that fails."""
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {what}; expected an ONNX file")
    data = path.read_bytes()
    if not data:
        raise ModelError(f"{path} is empty; expected an ONNX file")
    try:
        model = onnx.load_from_string(data)
    except Exception as error:
        raise ModelError(
            f"{path} is not an ONNX file, or is damaged ({_line(error)}): give an ONNX, .pt2 or .tflite file"
        ) from None
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"{path}: its weights stand in other files that cannot be read: {_line(error)}"
        ) from None
    return model


def check_model(model: onnx.ModelProto, supported: Collection[str]) -> None:
    """Refuse a model that is incomplete or uses operators outside ``supported``."""
    if not (model.graph.node and model.graph.output):
        raise ModelError("the ONNX model has no nodes or no outputs: is it an ONNX file, and complete?")
    _check_text(model)
    newest = onnx.defs.onnx_opset_version()
    if not 7 <= opset(model) <= newest:
        raise ModelError(f"the model uses opset {opset(model)}; export it with one from 9 to {newest}")
    _check_operators(model.graph, supported)
    _check_names(model.graph)


def check_valid(model: onnx.ModelProto) -> None:
    """Run ONNX's own checker; the declared shapes of outputs do not matter."""
    if model.ByteSize() > PROTO_LIMIT:
        return
    try:
        for output in model.graph.output:
            output.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model)
    except Exception as error:
        raise ModelError(f"the ONNX model is not valid: {_line(error)}") from None
    finally:
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")


def opset(model: onnx.ModelProto) -> int:
    """Version of the default operator set."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1:
        raise ModelError(f"the model must import the default operator set once, found {versions}")
    return int(versions[0])


def node_label(node: onnx.NodeProto) -> str:
    """How messages name a node: operator, and its own name or that of its first output."""
    name = node.name or next((out for out in node.output if out), "unnamed")
    domain = f"{node.domain}::" if node.domain not in ("", "ai.onnx") else ""
    return f"{domain}{node.op_type} ({name})"


def branches_of(node: onnx.NodeProto) -> dict[bool, onnx.GraphProto]:
    """What an If runs where its condition holds, and where not; nothing for other operators."""
    found = {attr.name: attr.g for attr in node.attribute} if node.op_type == "If" else {}
    names = {True: "then_branch", False: "else_branch"}
    return {key: found[name] for key, name in names.items() if name in found}


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, and those in the branches of each If instead of it."""
    for node in graph.node:
        branches = branches_of(node)
        if not branches:
            yield node
        for branch in branches.values():
            yield from nodes_of(branch)


def _check_operators(graph: onnx.GraphProto, supported: Collection[str]) -> None:
    unknown: dict[str, list[str]] = {}
    for node in nodes_of(graph):
        if node.domain not in ("", "ai.onnx") or node.op_type not in supported:
            kind = node_label(node).split(" (")[0]
            unknown.setdefault(kind, []).append(node_label(node)[len(kind) + 2 : -1])
    if unknown:
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in sorted(unknown.items()))
        raise ModelError(
            f"operators that cannot be imported: {listed}. Replace them in the model, or export without them"
        )


def _check_text(model: onnx.ModelProto) -> None:
    """Protobuf hands damaged strings over as bytes."""
    graph = model.graph
    texts = [entry.domain for entry in model.opset_import]
    texts += [entry.name for entry in (*graph.input, *graph.output, *graph.initializer)]
    for node in graph.node:
        texts += [node.op_type, node.domain, node.name, *node.input, *node.output]
        texts += [attr.name for attr in node.attribute]
    if not all(isinstance(text, str) for text in texts):
        raise ModelError("the file is damaged: a name in it is not text")


def _check_names(graph: onnx.GraphProto) -> None:
    made = Counter(name for node in graph.node for name in node.output if name)
    weights = [tensor.name for tensor in graph.initializer]
    made.update(weights)
    made.update(entry.name for entry in graph.input if entry.name not in weights)
    twice = sorted(name for name, count in made.items() if count > 1)
    if twice:
        raise ModelError(f"tensors that are defined twice: {', '.join(twice)}")
    wanted = {name for node in graph.node for name in node.input if name}
    missing = sorted((wanted | {out.name for out in graph.output}) - set(made))
    if missing:
        raise ModelError(f"tensors that nothing defines (missing initializers?): {', '.join(missing)}")
    unnamed = [t.name for t in (*graph.input, *graph.output, *graph.initializer) if not t.name.strip()]
    if unnamed:
        raise ModelError("an input, output or initializer has no name")


def fix_inputs(
    model: onnx.ModelProto, batch: int | None, shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Give every input a static shape, in place, and return the shapes.

    An unknown first dimension is ``batch``, or 1; others must be in ``shapes`` (input name -> shape).
    """
    if batch is not None and batch < 1:
        raise ModelError(f"batch {batch}: expected a positive number")
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    strangers = sorted(set(shapes) - {entry.name for entry in inputs})
    if strangers:
        names = ", ".join(entry.name for entry in inputs)
        raise ModelError(f"shapes given for {', '.join(strangers)}, but the inputs are {names}")
    if not inputs:
        raise ModelError("the model has no inputs: there is nothing to feed it with")
    fixed = {entry.name: _fix(entry, batch, shapes.get(entry.name)) for entry in inputs}
    del model.graph.value_info[:]
    return fixed


def _fix(entry: onnx.ValueInfoProto, batch: int | None, given: Sequence[int] | None) -> tuple[int, ...]:
    tensor = entry.type.tensor_type
    if not entry.type.HasField("tensor_type"):
        raise ModelError(f"input {entry.name} is not a tensor")
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim]
    if given is not None:
        if dims and (
            len(dims) != len(given) or any(d > 0 and d != g for d, g in zip(dims, given, strict=True))
        ):
            raise ModelError(f"input {entry.name} has shape {dims} (0: unknown); {list(given)} does not fit")
        dims = [int(g) for g in given]
    elif dims and (dims[0] <= 0 or batch is not None):
        dims[0] = _batch_of(entry.name, dims[0], batch)
    if not (dims or tensor.HasField("shape")) or any(d <= 0 for d in dims):
        raise ModelError(
            f"input {entry.name} has shape {dims} (0: unknown): give its shape in `shapes`, e.g. "
            f"shapes={{{entry.name!r}: (1, 3, 224, 224)}}"
        )
    if float(np.prod(np.array(dims, "float64"))) >= 2**31:
        raise ModelError(f"input {entry.name} of shape {dims} has more than 2**31 elements")
    _check_type(entry, len(dims))
    tensor.shape.CopyFrom(
        onnx.TensorShapeProto(dim=[onnx.TensorShapeProto.Dimension(dim_value=d) for d in dims])
    )
    return tuple(dims)


def _batch_of(name: str, declared: int, batch: int | None) -> int:
    if declared > 1 and batch is not None and batch != declared:
        raise ModelError(f"input {name} has a fixed batch of {declared}; {batch} was asked for")
    return declared if declared > 1 else batch or 1


def _check_type(entry: onnx.ValueInfoProto, rank: int) -> None:
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type).name
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"input {entry.name} has an unknown element type") from None
    if dtype not in INPUT_TYPES or (rank > 3 and dtype in ("int64", "int32")):
        raise ModelError(
            f"input {entry.name} is {dtype} of rank {rank}; expected float32 (or int8, uint8 of a quantized "
            "model): convert the model to float32"
        )


def shape_error(model: onnx.ModelProto) -> ModelError | None:
    """What ONNX's strict shape inference objects to, if anything."""
    outline = without_weights(model)
    if outline.ByteSize() > PROTO_LIMIT:
        return None
    try:
        onnx.shape_inference.infer_shapes(outline, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return ModelError(f"shapes or types in the model contradict each other: {_line(error)}")
    return None


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large initializers have a type and a shape, but no values; no shape depends on those."""
    source = model.graph
    outline = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    for name in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(outline.graph, name).extend(getattr(source, name))
    outline.graph.name = source.name
    for tensor in source.initializer:
        if tensor.ByteSize() <= _LARGE:
            outline.graph.initializer.append(tensor)
        else:
            outline.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return outline


def weights_of(graph: onnx.GraphProto) -> dict[str, Array]:
    """All initializers as arrays; ModelError for damaged or infinite ones."""
    if graph.sparse_initializer:
        raise ModelError("sparse initializers are not supported; store the weights densely")
    arrays = {}
    for tensor in graph.initializer:
        try:
            arrays[tensor.name] = onnx.numpy_helper.to_array(tensor)
        except Exception as error:
            raise ModelError(f"initializer {tensor.name} is damaged: {_line(error)}") from None
    check_finite(arrays, dict(_weight_users(graph)))
    return arrays


def check_finite(arrays: Mapping[str, Array], users: Mapping[str, str]) -> None:
    """Refuse Inf and NaN in the arrays that are weights (``users``: tensor -> node)."""
    for name, array in arrays.items():
        if name in users and array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise ModelError(
                f"weight {name} of {users[name]} has {bad} values that are Inf or NaN: "
                "export the model again from a sound checkpoint"
            )


def _weight_users(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    for node in graph.node:
        if node.op_type not in UNBOUNDED:
            yield from ((name, node_label(node)) for name in node.input if name)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__


def last_line(error: BaseException) -> str:
    """What remains of an error from inside TVM: its last line, without the traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
