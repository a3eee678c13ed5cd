"""What is inside a model, whatever its stage: ONNX file, quantized module or artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_qplugin.core.errors import ArtifactError, ModelError, RecipeError
from tvm_qplugin.core.manifest import Manifest, OperatorInfo
from tvm_qplugin.core.once import Once
from tvm_qplugin.store import MANIFEST, read_manifest, verify

if TYPE_CHECKING:
    from tvm.ir import IRModule

    from tvm_qplugin.artifact import Artifact
    from tvm_qplugin.core.profile import TargetProfile
    from tvm_qplugin.core.recipe import Recipe
    from tvm_qplugin.core.spec import Annotation


@dataclass(frozen=True)
class Contents:
    """A manifest, and of what: "artifact", "quantized model" or "float model".

    ``schemes``: of operators by name, where the manifest does not tell (see ``report.scheme_of``).
    """

    kind: str
    manifest: Manifest
    schemes: Mapping[str, str] = field(default_factory=dict)


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


def recipe_of_source(module: IRModule) -> Recipe:
    """The recipe that ``with_source`` noted."""
    from tvm_qplugin.builder import SOURCE
    from tvm_qplugin.core.recipe import Recipe
    from tvm_qplugin.passes import ir

    return Recipe.from_json(json.loads(str(ir.main_function(module).attrs[SOURCE]))["recipe"])


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
    from tvm_qplugin.planning import planned, stored_schemes
    from tvm_qplugin.targets import find_profile

    profile = find_profile(target)
    chosen = find_recipe(profile.recipe if recipe is None else recipe)
    module = rewritten(read_module(source, **options), profile)
    manifest = describe_module(module, profile)
    if is_quantized(module) or scheme_of(module):
        return Contents("quantized model", manifest, stored_schemes(module))
    plan = planned(module, chosen, profile)
    return Contents("float model", replace(manifest, operators=plan.operators), plan.schemes)


def describe_module(module: IRModule, profile: TargetProfile) -> Manifest:
    """The manifest that ``build`` would give a module, without compiling it.

    Of layers of schemes that compute in float it tells how weights are stored, and why some stay float32.
    """
    import tvm

    from tvm_qplugin.builder import describe
    from tvm_qplugin.passes.expand_weights import ExpandWeights, scheme_of
    from tvm_qplugin.passes.fuse_chains import FuseChains
    from tvm_qplugin.passes.fuse_residual import FuseResidual
    from tvm_qplugin.passes.lower_integer import LowerInteger
    from tvm_qplugin.targets import fusions_of, rules_of, tvm_target

    passes = [ExpandWeights(), LowerInteger(profile.storage)]
    if profile.tvm:
        device = tvm_target(profile)
        passes += [FuseResidual(fusions_of(profile), device), FuseChains(rules_of(profile), device)]
    manifest = describe(module, tvm.transform.Sequential(passes)(module), profile)
    return replace(manifest, operators=_stored(module, manifest, scheme_of(module)))


def _stored(module: IRModule, manifest: Manifest, scheme: str) -> tuple[OperatorInfo, ...]:
    """The operators with the bytes of their stored constants, and with reasons of the scheme ("": none)."""
    from tvm_qplugin.passes import ir
    from tvm_qplugin.passes.expand_weights import stored_arguments
    from tvm_qplugin.passes.plan import REASONS

    func = ir.main_function(module)
    reasons = json.loads(str((func.attrs or {}).get(REASONS, "{}")))
    sizes, once = dict[str, int](), Once()
    for (name, _), stored in stored_arguments(module).items():
        sizes[name] = sizes.get(name, 0) + sum(map(once.bytes, stored.arrays))
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


def check_scopes(recipe: Recipe, annotation: Annotation) -> None:
    """Raise RecipeError for a scope that matches nothing: a typing error.

    A rule for all layers of a kind holds for models without any, too.
    """
    operators = annotation.operators.values()
    for rule in recipe.rules:
        if rule.scope and not any(rule.matches(op.kind, op.output) for op in operators):
            names = ", ".join(op.output for op in list(operators)[:3])
            kind = "" if rule.op is None else f" of kind {rule.op!r}"
            raise RecipeError(
                f"{rule.scope!r} matches no layer{kind}; names are like {names}: "
                "`tvm-qplugin inspect MODEL` lists them"
            )


def _is_stage(source: Path) -> bool:
    return (source / "module.json").is_file()
