"""The way of a model, as a list: float module -> QDQ module -> integer kernels -> executable form."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.core.attrs import ANNOTATION
from tvm_qplugin.core.calibration import CalibrationHook, CalibrationTable
from tvm_qplugin.core.errors import CalibrationError, RecipeError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.recipe import Recipe, find_recipe
from tvm_qplugin.core.spec import Annotation
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.annotate import Annotate
from tvm_qplugin.passes.insert_qdq import InsertQDQ
from tvm_qplugin.passes.lower_float import LowerFloat
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.quantize_io import QuantizeIO
from tvm_qplugin.passes.schedule_rest import ScheduleRest
from tvm_qplugin.passes.select_kernels import SelectKernels, kernel_of
from tvm_qplugin.passes.unify_scales import UnifyScales
from tvm_qplugin.schedules.cpu import schedule_cpu
from tvm_qplugin.targets import find_profile, profile_of, rules_of, tvm_target

Passes = list[tvm.transform.Pass]


def prepare_passes(recipe: Recipe, profile: TargetProfile) -> Passes:
    """Float module -> annotated module."""
    return [Annotate(recipe, profile.explain)]


def convert_passes(table: CalibrationTable, io: str) -> Passes:
    """Annotated module -> QDQ module."""
    ranges = {name: (r.low, r.high) for name, r in table.ranges.items()}
    return [UnifyScales(ranges), InsertQDQ(ranges), QuantizeIO(io)]


def lower_passes(profile: TargetProfile, target: tvm.target.Target) -> Passes:
    """QDQ (or float) module -> scheduled kernels."""
    return [
        LowerInteger(profile.storage),
        LowerFloat(),
        SelectKernels(rules_of(profile), target),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        ScheduleRest(schedule_cpu, target),
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


def quantize_module(
    module: IRModule,
    *,
    recipe: str | Recipe | Mapping[str, Any] = "int8",
    target: str | TargetProfile = "host",
    calibration: Iterable[Any] | CalibrationTable | None = None,
    observer: str | None = None,
    hooks: Sequence[CalibrationHook] = (),
    limit: int | None = None,
    progress: bool = False,
    io: str = "float",
) -> IRModule:
    """Canonical float module -> QDQ module; ``calibration`` is samples or a finished table."""
    from tvm_qplugin.calibrator import calibrate, model_hash

    profile, chosen = find_profile(target), find_recipe(recipe)
    QuantizeIO(io)
    identity = model_hash(module)
    annotated = tvm.transform.Sequential(prepare_passes(chosen, profile))(module)
    annotation = Annotation.loads(ir.main_function(annotated).attrs[ANNOTATION])
    names = annotation.observed()
    if isinstance(calibration, CalibrationTable):
        calibration.check(identity, names)
        table = calibration
    elif calibration is None:
        raise CalibrationError(
            "the module is in float and no calibration data was given: pass calibration=samples "
            "(an iterable of arrays) or a CalibrationTable"
        )
    else:
        table = calibrate(
            module,
            calibration,
            names=names,
            observer=observer or annotation.observers(),
            hooks=hooks,
            limit=limit,
            progress=progress,
            model_hash=identity,
        )
    return tvm.transform.Sequential(convert_passes(table, io))(annotated)


def is_quantized(module: IRModule) -> bool:
    """Whether ``main`` already holds R.quantize, R.dequantize or a tagged kernel."""
    values = [value for _, value in ir.bindings(ir.main_function(module))]
    found = {ir.op_name(value) for value in values} & {"relax.quantize", "relax.dequantize"}
    return bool(found) or any(kernel_of(module, value) is not None for value in values)


def int8_pipeline(**options: Any) -> tvm.transform.Pass:
    """What ``relax.get_pipeline("qplugin.int8", **options)`` returns: see ``quantize_module``.

    A module that is quantized already is only lowered; a float one needs ``calibration``. RecipeError
    for an option that is not known.
    """
    known = set(inspect.signature(quantize_module).parameters) - {"module"}
    if unknown := set(options) - known:
        raise RecipeError(f"unknown option {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")

    @tvm.transform.module_pass(opt_level=0, name="qplugin.int8")
    def pipeline(mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        from tvm_qplugin.frontend import canonicalize

        mod = canonicalize(mod)
        profile, target = _current(options.get("target"))
        if not is_quantized(mod):
            mod = quantize_module(mod, **{**options, "target": profile})
        with target:
            return tvm.transform.Sequential([*lower_passes(profile, target), *executable_passes()])(mod)

    return pipeline


def float_pipeline(target: str | TargetProfile | None = None) -> tvm.transform.Pass:
    """``relax.get_pipeline("qplugin.float")``: the plugin's float kernels, no quantization."""

    @tvm.transform.module_pass(opt_level=0, name="qplugin.float")
    def pipeline(mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        from tvm_qplugin.frontend import canonicalize

        profile, current = _current(target)
        passes = [*lower_passes(profile, current), *executable_passes()]
        with current:
            return tvm.transform.Sequential(passes)(canonicalize(mod))

    return pipeline


def _current(name: str | TargetProfile | None) -> tuple[TargetProfile, tvm.target.Target]:
    """The profile asked for, or the one that fits the target that ``relax.build`` is under."""
    target = tvm.target.Target.current(allow_none=True)
    if name is not None:
        profile = find_profile(name)
        return profile, target or tvm_target(profile)
    profile = find_profile("host") if target is None else profile_of(target)
    return profile, target or tvm_target(profile)
