"""Programs of torch.export: reading a ``.pt2`` file, and refusing what cannot become a static module."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.onnx_file import last_line
from tvm_qplugin.torch_names import label

HOW = "torch.export.export(model.eval(), (example,))"
TYPES = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")
MISSING = (
    "a program of torch.export needs torch, which is not installed; "
    "install the extra: pip install 'tvm-qplugin[torch]'"
)


def is_program(source: object) -> bool:
    """Whether ``source`` is a ``.pt2`` file or an object of torch; imports nothing."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source).lower().endswith(".pt2")
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module | torch.export.ExportedProgram)


def read_program(source: Any) -> Any:
    """The ``ExportedProgram`` in a file, or ``source`` itself; ModelError for anything else."""
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("torch.ao.quantization.fx._decomposed")
    except ImportError:
        raise ModelError(MISSING) from None
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source))
    if not isinstance(source, torch.export.ExportedProgram):
        raise ModelError(
            f"a {type(source).__name__} is not an exported program; expected the result of {HOW}"
        )
    return source


def _read_file(path: Path) -> Any:
    import torch

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {what}; expected a file that torch.export.save wrote")
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"{path} was not written by torch.export.save, or is damaged: {last_line(error)}"
        ) from None
    finally:
        logger.setLevel(level)


def decomposed(program: Any, known: Collection[str]) -> Any:
    """The program in operators that change nothing in place, and of those as few as ``known`` allows."""
    import torch

    table = torch.export.default_decompositions()
    for operator in list(table):
        if getattr(operator, "__name__", "") in known:
            del table[operator]
    return program.run_decompositions(table)


def check_program(program: Any, known: Collection[str]) -> None:
    """Refuse dynamic shapes, other dtypes, changes of state and operators outside ``known``."""
    for problem in (*_inputs(program), *_state(program), *_operators(program, known)):
        raise ModelError(f"the exported program {problem}")


def _inputs(program: Any) -> Iterator[str]:
    """Of inputs, parameters and buffers: what is not static, or not of a known dtype."""
    import torch

    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):  # a number is a part of the program
            continue
        if not all(isinstance(extent, int) for extent in value.shape):
            shape = ", ".join(map(str, value.shape))
            where = f"has the input {node.name} of dynamic shape [{shape}]"
            yield f"{where}; export it without dynamic_shapes: {HOW}"
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in TYPES:
            yield f"has {node.name} in {dtype}; expected float32: export model.float()"


def _state(program: Any) -> Iterator[str]:
    """Outputs that are not values for the caller."""
    for spec in program.graph_signature.output_specs:
        if spec.kind.name in ("BUFFER_MUTATION", "PARAMETER_MUTATION"):
            yield (
                f"changes its state {spec.target} in every call; export the model in eval mode, with what it "
                f"remembers as inputs and outputs: {HOW}"
            )
        if spec.kind.name == "USER_INPUT_MUTATION":
            yield f"writes into its input {spec.target}; let the model return that tensor instead"
        if type(spec.arg).__name__ != "TensorArgument":
            yield "returns something that is not a tensor; let the model return tensors only"


def _operators(program: Any, known: Collection[str]) -> Iterator[str]:
    import torch

    missing: dict[str, str] = {}
    computed = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "call_function":
            seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if not seeded and not computed & {used.name for used in node.all_input_nodes}:
                continue  # torch computes it at import
            computed.add(node.name)
        if node.op == "get_attr":
            yield f"branches or loops ({node.name}); export a model without control flow over tensors"
        if node.op == "call_function" and node.target.__name__ not in known:
            missing.setdefault(node.target.__name__, label(node))
    if missing:
        listed = ", ".join(f"{name} ({where})" for name, where in missing.items())
        yield f"uses operators that cannot be imported: {listed}"
