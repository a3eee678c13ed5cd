"""What is inside a model, whatever its stage: ONNX file, quantized module or artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_qplugin.core.errors import ArtifactError, ModelError
from tvm_qplugin.core.manifest import Manifest, OperatorInfo
from tvm_qplugin.store import MANIFEST, read_manifest, verify

if TYPE_CHECKING:
    from tvm.ir import IRModule

    from tvm_qplugin.artifact import Artifact
    from tvm_qplugin.core.profile import TargetProfile
    from tvm_qplugin.core.recipe import Recipe
    from tvm_qplugin.core.spec import Annotation


@dataclass(frozen=True)
class Contents:
    """A manifest, and of what: "artifact", "quantized model" or "float model"."""

    kind: str
    manifest: Manifest


def kind_of(source: Path) -> str:
    """What a path is: "artifact", "stage" or "onnx"; ModelError or ArtifactError if it is none of them."""
    if (source / MANIFEST).is_file():
        return "artifact"
    if _is_stage(source) or source.name == "module.json":
        return "stage"
    if source.is_dir():
        raise ArtifactError(
            f"{source} holds neither {MANIFEST} (an artifact, made by `tvm-qplugin build`) nor module.json "
            "(a quantized model, made by `tvm-qplugin quantize`)"
        )
    if not source.exists():
        raise ModelError(
            f"{source} does not exist: give an ONNX, .pt2 or .tflite file, or the directory of a quantized "
            "model or artifact"
        )
    return "onnx"


def load_artifact(source: Path) -> Artifact:
    """A saved artifact; ArtifactError tells a model that is not compiled yet from a broken artifact."""
    from tvm_qplugin.artifact import Artifact

    if source.is_file() or (source.is_dir() and not (source / MANIFEST).exists() and _is_stage(source)):
        raise ArtifactError(
            f"{source} is not an artifact: compile it with `tvm-qplugin build {source} -o artifact` and give "
            "that directory"
        )
    return Artifact.load(source)


def read_module(source: Path, **options: Any) -> IRModule:
    """The module of a quantized model or of an ONNX file (``options``: see ``frontend.load``)."""
    from tvm_qplugin.core.recipe import find_recipe
    from tvm_qplugin.frontend import load
    from tvm_qplugin.passes.expand_weights import scheme_of
    from tvm_qplugin.pipeline import is_quantized
    from tvm_qplugin.stage import load_module

    kind = kind_of(source)
    if kind == "stage":
        return load_module(source)
    if kind == "artifact":
        raise ArtifactError(
            f"{source} is an artifact, which is compiled already: give an ONNX file or the directory that "
            "`tvm-qplugin quantize` wrote"
        )
    module = load(source, **options)
    scheme = scheme_of(module) or ("int8" if is_quantized(module) else "float")
    return with_source(module, source, find_recipe(scheme))


def with_source(module: IRModule, path: Path, recipe: Recipe) -> IRModule:
    """The module with what the manifest should know of where it came from."""
    from tvm_qplugin.api import describe_source
    from tvm_qplugin.builder import SOURCE
    from tvm_qplugin.passes import ir

    return ir.with_main_attr(module, SOURCE, json.dumps(describe_source(path, recipe)))


def inspect_source(source: Path, recipe: str | None = None, target: str = "host", **options: Any) -> Contents:
    """Look into an artifact, a quantized model or an ONNX file. Raises QPluginError.

    Of a float model it says what ``recipe`` (None: the target's) and ``target`` would make of each operator.
    ``options``: see ``frontend.load``.
    """
    if kind_of(source) == "artifact":
        manifest = read_manifest(source)
        verify(source, manifest)
        return Contents("artifact", manifest)
    from tvm_qplugin.core.recipe import find_recipe
    from tvm_qplugin.passes.expand_weights import scheme_of
    from tvm_qplugin.pipeline import is_quantized, rewritten
    from tvm_qplugin.targets import find_profile

    profile = find_profile(target)
    chosen = find_recipe(profile.recipe if recipe is None else recipe)
    module = rewritten(read_module(source, **options), profile)
    manifest = describe_module(module, profile)
    if is_quantized(module) or scheme_of(module):
        return Contents("quantized model", manifest)
    return Contents("float model", replace(manifest, operators=planned(module, chosen, profile)))


def describe_module(module: IRModule, profile: TargetProfile) -> Manifest:
    """The manifest that ``build`` would give a module, without compiling it.

    Of layers of the schemes ``fp16`` and ``dynamic`` it tells how weights are stored, and why some stay
    float32.
    """
    import tvm

    from tvm_qplugin.builder import describe
    from tvm_qplugin.passes.expand_weights import ExpandWeights, scheme_of
    from tvm_qplugin.passes.fuse_residual import FuseResidual
    from tvm_qplugin.passes.lower_integer import LowerInteger
    from tvm_qplugin.targets import fusions_of, tvm_target

    passes = [ExpandWeights(), LowerInteger(profile.storage)]
    if profile.tvm:
        passes.append(FuseResidual(fusions_of(profile), tvm_target(profile)))
    manifest = describe(module, tvm.transform.Sequential(passes)(module), profile)
    return replace(manifest, operators=_stored(module, manifest, scheme_of(module)))


def _stored(module: IRModule, manifest: Manifest, scheme: str) -> tuple[OperatorInfo, ...]:
    """The operators with the bytes of their stored constants, and with reasons of the scheme ("": none)."""
    from tvm_qplugin.passes import ir
    from tvm_qplugin.passes.expand_weights import stored_arguments
    from tvm_qplugin.passes.plan import REASONS

    func = ir.main_function(module)
    reasons = json.loads(str((func.attrs or {}).get(REASONS, "{}")))
    sizes: dict[str, int] = {}
    for (name, _), stored in stored_arguments(func).items():
        sizes[name] = sizes.get(name, 0) + stored.array.nbytes
    default = f"computed in float32 (scheme {scheme})" if scheme else None
    return tuple(
        op
        if op.integer
        else replace(
            op, reason=reasons.get(op.name, default or op.reason), weight_bytes=sizes.get(op.name, 0)
        )
        for op in manifest.operators
    )


def annotation_of(module: IRModule, recipe: Recipe, profile: TargetProfile) -> Annotation:
    """What a recipe decides for the operators and tensors of a canonical float module."""
    import tvm

    from tvm_qplugin.core.attrs import ANNOTATION
    from tvm_qplugin.core.spec import Annotation
    from tvm_qplugin.passes import ir
    from tvm_qplugin.pipeline import prepare_passes

    annotated = tvm.transform.Sequential(prepare_passes(recipe, profile))(module)
    return Annotation.loads(str(ir.main_function(annotated).attrs[ANNOTATION]))


def planned(module: IRModule, recipe: Recipe, profile: TargetProfile) -> tuple[OperatorInfo, ...]:
    """Every operator of a float module with the recipe's decision; bytes are those of float weights."""
    from tvm_qplugin.passes import ir
    from tvm_qplugin.passes.op_kinds import macs_of

    values = {var.name: (var, value) for var, value in ir.bindings(ir.main_function(module))}
    found = []
    for op in annotation_of(module, recipe, profile).operators.values():
        parts = [values[name] for name in op.members]
        shapes = [part[0].ty for part in parts if part[0].name == op.output]
        shape = ir.spec_of(parts[-1][0]).shape if shapes and hasattr(shapes[0], "shape") else ()
        found.append(
            OperatorInfo(
                op.output,
                op.kind,
                None,
                op.integer,
                op.reason or None,
                shape,
                sum(_constant_bytes(value) for _, value in parts),
                sum(macs_of(var, value) for var, value in parts),
            )
        )
    return tuple(found)


def _constant_bytes(value: Any) -> int:
    from tvm_qplugin.passes import ir

    arrays = [ir.const_value(arg) for arg in getattr(value, "args", ())]
    return sum(array.nbytes for array in arrays if array is not None and array.ndim)


def _is_stage(source: Path) -> bool:
    return (source / "module.json").is_file()
