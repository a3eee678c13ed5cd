"""From an IRModule to something that runs: the executable, and the artifact around it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir import IRModule

from tvm_qplugin.artifact import Artifact
from tvm_qplugin.calls import calls_of
from tvm_qplugin.core.attrs import REPORT
from tvm_qplugin.core.errors import ArtifactError
from tvm_qplugin.core.manifest import Manifest, OperatorInfo, TensorInfo
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.dump import DumpIR
from tvm_qplugin.kernel_compiler import KernelCompiler
from tvm_qplugin.linking import Linkable
from tvm_qplugin.object_cache import ObjectCache
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.expand_weights import ExpandWeights
from tvm_qplugin.passes.match_tagged import tagged_plan
from tvm_qplugin.passes.quantize_io import IO_PARAMS
from tvm_qplugin.pipeline import executable_passes, lower_passes
from tvm_qplugin.progress import progress_bar
from tvm_qplugin.recorded import Databases, tuned_calls
from tvm_qplugin.static_constants import lift_constants
from tvm_qplugin.targets import find_profile, tvm_target

# The virtual machine calls kernels with the shapes they were compiled for; Artifact.run checks the user's.
_CONFIG = {"tirx.disable_assert": True}
SOURCE = "qplugin.source"
Runner = Callable[[Sequence[Array]], list[Array]]


def compile_function(mod: IRModule, target: str | TargetProfile = "host", *, merge: bool = True) -> Runner:
    """Compile ``main`` and return a function from input arrays to a flat list of output arrays.

    ``merge``: see ``build``; False compiles faster.
    """
    run = compile_tensors(mod, target, merge=merge)
    return lambda arrays: [field.numpy() for field in run(arrays)]


def compile_tensors(
    mod: IRModule, target: str | TargetProfile = "host", *, merge: bool = True
) -> Callable[[Sequence[Array]], list[Any]]:
    """As ``compile_function``, but the outputs stay TVM tensors: ``numpy()`` of those wanted copies them."""
    executable, _ = compile_module(mod, target, merge=merge)
    vm = relax.VirtualMachine(executable, tvm.cpu())

    def run(arrays: Sequence[Array]) -> list[Any]:
        result = vm["main"](*[tvm.runtime.tensor(array) for array in arrays])
        return [result] if hasattr(result, "numpy") else list(result)

    return run


def compile_module(
    mod: IRModule,
    target: str | TargetProfile = "host",
    *,
    dump: Path | None = None,
    merge: bool = True,
    database: Databases = None,
) -> tuple[Any, IRModule]:
    """The VM executable of a QDQ or float module, and the module as lowered (kernels tagged).

    ``dump``: a directory that gets the IR after every pass; ``merge``, ``database``: see ``build``.
    """
    profile = find_profile(target)
    device = tvm_target(profile)
    with device, tvm.transform.PassContext(2, config=_CONFIG, instruments=instruments(dump)):
        lowered = tvm.transform.Sequential(lower_passes(mod, profile, device, database, merge))(mod)
        final = tvm.transform.Sequential(executable_passes())(lowered)
        return relax.build(final, device, relax_pipeline=None), lowered


def compile_kernels(
    mod: IRModule,
    profile: TargetProfile,
    compiler: KernelCompiler,
    *,
    progress: bool = False,
    merge: bool = True,
    database: Databases = None,
) -> tuple[Linkable | relax.VMExecutable, IRModule]:
    """As ``compile_module``, but every kernel alone, so that it can be cached, and the constants apart.

    A module whose kernels cannot be compiled alone is compiled whole.
    """
    with compiler.target, tvm.transform.PassContext(2, config=_CONFIG):
        lowered = tvm.transform.Sequential(lower_passes(mod, profile, compiler.target, database, merge))(mod)
        final = tvm.transform.Sequential(executable_passes())(lowered)
        functions = {
            str(func.attrs["global_symbol"]): func
            for func in final.functions.values()
            if isinstance(func, tirx.PrimFunc)
        }
        named = compiler.symbols(functions)
        if not named:
            return relax.build(final, compiler.target, relax_pipeline=None), lowered
    program, constants = lift_constants(final)
    distinct = dict(named.values())
    with progress_bar(progress, distinct, label="compile", unit="kernels") as advance:
        objects = compiler.objects(distinct, advance)
    symbols = {name: symbol for name, (symbol, _) in named.items()}
    return Linkable(program, compiler.target, objects, symbols, constants), lowered


def instruments(dump: Path | None) -> list[Any]:
    """Pass instruments that write the IR after every pass into ``dump``."""
    if dump is None:
        return []
    if dump.exists() and not dump.is_dir():
        raise ArtifactError(f"dump={str(dump)!r} is a file: give a directory for the IR after every pass")
    dump.mkdir(parents=True, exist_ok=True)
    return [DumpIR(dump)]


def build(
    module: IRModule,
    *,
    target: str | TargetProfile = "host",
    dump: str | os.PathLike[str] | None = None,
    cache: ObjectCache | bool = True,
    jobs: int | None = None,
    progress: bool = False,
    merge: bool = True,
    database: str | os.PathLike[str] | None = None,
) -> Artifact:
    """Compile a QDQ (or canonical float) module for a target and link it.

    A module of the scheme ``fp16`` computes in float32 from weights stored as float16, or in float16 where
    the profile says ``float16``. Layers of the scheme ``dynamic`` for which ``target`` has no kernel that
    quantizes its input at run time are expanded to float32. Dense layers of ``weight_int8`` and
    ``weight_int4`` compute in float32 from the weights as they are stored.

    ``cache``: where compiled kernels are kept for the next build, by default the user's folder
    (``TVM_QPLUGIN_CACHE``); False compiles all. ``jobs``: kernels that are compiled at a time, by default one
    on each core. ``progress`` draws a bar. ``dump``: a directory that gets the IR after every pass; the
    model is compiled whole then. ``merge``: small kernels that follow each other become one function, which
    is faster; False keeps them apart, to be timed one by one. ``database``: a file of tuning records that
    comes before the user's own and the shipped ones, "none" for the default kernels. Raises TargetError for
    an unknown target or a missing toolchain or a device that runs .tflite files, ModelError for what is no
    module, CacheError for a wrong setting of the cache, DatabaseError for records that cannot be read.
    """
    profile = find_profile(target)
    ir.main_function(module)
    executable: Linkable | relax.VMExecutable
    if dump:
        executable, lowered = compile_module(module, profile, dump=Path(dump), merge=merge, database=database)
    else:
        compiler = KernelCompiler(tvm_target(profile), _CONFIG, cache_of(cache), jobs)
        executable, lowered = compile_kernels(
            module, profile, compiler, progress=progress, merge=merge, database=database
        )
    expanded = tvm.transform.Sequential([ExpandWeights()])(module)
    manifest = replace(describe(expanded, lowered, profile), calls=calls_of(lowered))
    return Artifact.create(executable, manifest, compiler=profile.compiler)


def cache_of(wanted: ObjectCache | bool) -> ObjectCache:
    """The user's cache, one that keeps nothing, or the one that was given."""
    if isinstance(wanted, ObjectCache):
        return wanted
    return ObjectCache() if wanted else ObjectCache(limit=0)


def describe(module: IRModule, lowered: IRModule, profile: TargetProfile) -> Manifest:
    """The manifest of a module, before its files are known."""
    operators = operators_of(lowered)
    inputs, outputs = io_of(module)
    source = json.loads(str((ir.main_function(module).attrs or {}).get(SOURCE, "{}")))
    sizes = {"weights": sum(op.weight_bytes for op in operators)}
    if "float_bytes" in source:
        sizes["float_model"] = source["float_bytes"]
    return Manifest(
        model=source.get("model", "model"),
        inputs=inputs,
        outputs=outputs,
        target={
            "profile": profile.name,
            "tvm": _plain(tvm_target(profile)) if profile.tvm else {},
            "tuned_kernels": tuned_calls(lowered),
        },
        recipe=source.get("recipe", {}),
        tensors=tensors_of(module),
        operators=operators,
        sizes=sizes,
    )


def operators_of(lowered: IRModule) -> tuple[OperatorInfo, ...]:
    """The report that lowering left in the module."""
    text = (ir.main_function(lowered).attrs or {}).get(REPORT)
    entries = json.loads(str(text)) if text else []
    return tuple(
        OperatorInfo(
            entry["name"],
            entry["op"],
            entry["kernel"] or None,
            entry["integer"],
            entry["reason"] or None,
            tuple(entry["shape"]),
            entry["weight_bytes"],
            entry["macs"],
        )
        for entry in entries
    )


def io_of(module: IRModule) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs with their original names and, where they are integer, their parameters."""
    func = ir.main_function(module)
    attrs = func.attrs or {}
    names = json.loads(str(attrs["qplugin.io"])) if "qplugin.io" in attrs else {}
    grids = json.loads(str(attrs[IO_PARAMS])) if IO_PARAMS in attrs else {}

    def infos(side: str, variables: Sequence[relax.Var]) -> tuple[TensorInfo, ...]:
        known = names.get(side) or [{"name": var.name} for var in variables]
        params = grids.get(side) or [None] * len(variables)
        specs = [ir.spec_of(var) for var in variables]
        return tuple(
            TensorInfo(item["name"], spec.shape, spec.dtype, grid)
            for item, spec, grid in zip(known, specs, params, strict=True)
        )

    return infos("inputs", list(func.params)), infos("outputs", ir.output_vars(func))


def tensors_of(module: IRModule) -> dict[str, dict[str, Any]]:
    """The parameters of every quantized tensor, by the tensor's name.

    Biases are left out: their scale is that of the input times that of the weight, their zero point 0.
    """
    found = {}
    for var, value in ir.bindings(ir.main_function(module)):
        name = ir.op_name(value)
        tagged = tagged_plan(module, value) if name == "relax.call_tir" else None
        if tagged is not None and tagged.result is not None:
            found[var.name] = tagged.result.to_json()
        params = ir.qparams_of(value) if name in ("relax.quantize", "relax.dequantize") else None
        if params is None:
            continue
        if name == "relax.quantize" and isinstance(value.args[0], relax.Var):
            found.setdefault(value.args[0].name, params.to_json())
        elif ir.const_value(value.args[0]) is not None and params.dtype != "int32":
            found[var.name.removesuffix("_dq")] = params.to_json()
    return found


def _plain(target: tvm.target.Target) -> dict[str, Any]:
    return {key: value for key, value in target.export().items() if isinstance(value, str | int)}
