"""The way of a model, as a list: float module -> QDQ module -> integer kernels -> executable form."""

from __future__ import annotations

import inspect
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.recipe import WEIGHT_ONLY, Recipe
from tvm_qplugin.core.spec import Annotation
from tvm_qplugin.observers import range_of
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import Annotate
from tvm_qplugin.passes.compute_float16 import ComputeFloat16
from tvm_qplugin.passes.expand_weights import ExpandWeights, float_arguments, scheme_of
from tvm_qplugin.passes.fuse_chains import FuseChains
from tvm_qplugin.passes.fuse_named import FuseNamed
from tvm_qplugin.passes.fuse_residual import FuseResidual
from tvm_qplugin.passes.insert_qdq import InsertQDQ
from tvm_qplugin.passes.lower_float import LowerFloat
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.merge_kernels import MergeKernels
from tvm_qplugin.passes.pad_producers import PadProducers
from tvm_qplugin.passes.plain_offsets import PlainOffsets
from tvm_qplugin.passes.quantize_dynamic import QuantizeDynamic
from tvm_qplugin.passes.quantize_embedding import QuantizeEmbedding
from tvm_qplugin.passes.quantize_float16 import QuantizeFloat16
from tvm_qplugin.passes.quantize_io import QuantizeIO
from tvm_qplugin.passes.quantize_weight_only import QuantizeWeightOnly
from tvm_qplugin.passes.schedule_rest import ScheduleRest
from tvm_qplugin.passes.select_kernels import SelectKernels, kernel_of
from tvm_qplugin.passes.unify_scales import UnifyScales
from tvm_qplugin.passes.vector_math import legalize_ops
from tvm_qplugin.recorded import Databases, recorded_rule
from tvm_qplugin.schedules.cpu import schedule_cpu
from tvm_qplugin.targets import (
    find_profile,
    float_passes,
    fusions_of,
    halos_of,
    profile_of,
    quantized_passes,
    rules_of,
    tvm_target,
)

Passes = list[tvm.transform.Pass]


def rewritten(module: IRModule, profile: TargetProfile) -> IRModule:
    """A float or QDQ module as the profile's device maps it best; a second time changes nothing."""
    passes = quantized_passes(profile) if is_quantized(module) else float_passes(profile)
    return tvm.transform.Sequential([*passes])(module) if passes else module


def prepare_passes(recipe: Recipe, profile: TargetProfile) -> Passes:
    """Float module, rewritten for the device -> annotated module."""
    return [ExpandWeights(), Annotate(recipe, profile.explain, profile.artifact != "tflite")]


def convert_passes(table: CalibrationTable, annotation: Annotation) -> Passes:
    """Annotated module -> QDQ module."""
    ranges = {name: range_of(table.ranges[name], annotation.spec_of(name)) for name in annotation.observed()}
    return [UnifyScales(ranges), InsertQDQ(ranges)]


def finish_passes(profile: TargetProfile, io: str, recipe: Recipe) -> Passes:
    """QDQ module -> the same for the device, with its kind of inputs and outputs."""
    tables = [QuantizeEmbedding(recipe)] if profile.artifact != "tflite" else []
    return [*quantized_passes(profile), *tables, QuantizeIO(io)]


def kernel_passes(mod: IRModule, profile: TargetProfile, target: tvm.target.Target) -> Passes:
    """QDQ (or float) module -> calls of tagged kernels, without schedules; ``mod`` is the module."""
    half = [ComputeFloat16()] if profile.float16 and scheme_of(mod) == "fp16" else []
    return [
        ExpandWeights(),
        LowerInteger(profile.storage),
        *half,
        LowerFloat(float_arguments(mod), rules_of(profile), target),
        FuseResidual(fusions_of(profile), target),
        PadProducers(halos_of(profile), target),
    ]


def lower_passes(
    mod: IRModule,
    profile: TargetProfile,
    target: tvm.target.Target,
    database: Databases = None,
    merge: bool = True,
) -> Passes:
    """QDQ (or float) module -> scheduled kernels; ``mod`` is the module that they are for.

    ``database``: see ``recorded.databases``; ``merge``: small kernels in one function.
    """
    return [
        *kernel_passes(mod, profile, target),
        FuseChains(rules_of(profile), target),
        SelectKernels((recorded_rule(profile, database), *rules_of(profile)), target),
        relax.backend.DispatchSortScan(),
        legalize_ops(),
        PlainOffsets(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        FuseNamed(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        ScheduleRest(schedule_cpu, target),
        *([MergeKernels()] if merge else []),
    ]


def executable_passes() -> Passes:
    """TVM's own tail: memory plan and runtime calls."""
    return [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]


def stored_layers(recipe: Recipe) -> Passes:
    """What stores the weights of layers small that a recipe computes in float."""
    passes = [
        (QuantizeDynamic(recipe), {"dynamic"}),
        (QuantizeWeightOnly(recipe), set(WEIGHT_ONLY)),
        (QuantizeEmbedding(recipe), {"dynamic", *WEIGHT_ONLY}),
        (QuantizeFloat16(recipe), {"fp16"}),
    ]
    return [found for found, schemes in passes if schemes & recipe.schemes]


def is_quantized(module: IRModule) -> bool:
    """Whether ``main`` holds R.quantize or R.dequantize of more than stored constants, or a tagged kernel."""
    if scheme_of(module):
        return False
    values = [value for _, value in ir.bindings(ir.main_function(module))]
    found = {ir.op_name(value) for value in values} & {"relax.quantize", "relax.dequantize"}
    return bool(found) or any(kernel_of(module, value) is not None for value in values)


def int8_pipeline(**options: Any) -> tvm.transform.Pass:
    """What ``relax.get_pipeline("qplugin.int8", **options)`` returns: see ``quantizer.quantize_module``.

    A module that is quantized already is only lowered; a float one needs ``calibration``. RecipeError
    for an option that is not known.
    """
    from tvm_qplugin.quantizer import quantize_module

    known = set(inspect.signature(quantize_module).parameters) - {"module"}
    if unknown := set(options) - known:
        raise RecipeError(f"unknown option {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")

    @tvm.transform.module_pass(opt_level=0, name="qplugin.int8")
    def pipeline(mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        from tvm_qplugin.frontend import canonicalize

        mod = canonicalize(mod)
        profile, target = _current(options.get("target"))
        if not is_quantized(mod) and (options or not scheme_of(mod)):
            mod = quantize_module(mod, **{**options, "target": profile})
        with target:
            return tvm.transform.Sequential([*lower_passes(mod, profile, target), *executable_passes()])(mod)

    return pipeline


def float_pipeline(target: str | TargetProfile | None = None) -> tvm.transform.Pass:
    """``relax.get_pipeline("qplugin.float")``: the plugin's float kernels, no quantization."""

    @tvm.transform.module_pass(opt_level=0, name="qplugin.float")
    def pipeline(mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        from tvm_qplugin.frontend import canonicalize

        profile, current = _current(target)
        mod = canonicalize(mod)
        passes = [*lower_passes(mod, profile, current), *executable_passes()]
        with current:
            return tvm.transform.Sequential(passes)(mod)

    return pipeline


def _current(name: str | TargetProfile | None) -> tuple[TargetProfile, tvm.target.Target]:
    """The profile asked for, or the one that fits the target that ``relax.build`` is under."""
    target = tvm.target.Target.current(allow_none=True)
    if name is not None:
        profile = find_profile(name)
        return profile, target or tvm_target(profile)
    profile = find_profile("host") if target is None else profile_of(target)
    return profile, target or tvm_target(profile)
