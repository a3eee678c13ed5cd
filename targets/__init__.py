"""Target profiles by name, and what TVM needs of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any, cast

import tvm

from tvm_qplugin.core.attrs import KernelCall
from tvm_qplugin.core.errors import TargetError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.registry import Registry
from tvm_qplugin.core.tunable import Tunable
from tvm_qplugin.schedules.x86_isa import AVX2, supports

TunableRule = Callable[[KernelCall, tvm.target.Target], Tunable | None]

PROFILES: Registry[TargetProfile] = Registry(
    "target",
    {
        "host": "tvm_qplugin.targets.x86:HOST",
        "x86-64-v4-vnni": "tvm_qplugin.targets.x86:X86_V4",
        "x86-64-avxvnni": "tvm_qplugin.targets.x86:X86_AVXVNNI",
        "x86-64-v3": "tvm_qplugin.targets.x86:X86_V3",
        "x86-64": "tvm_qplugin.targets.x86:X86",
        "edgetpu": "tvm_qplugin.targets.accelerators:EDGETPU",
        "ethos-u": "tvm_qplugin.targets.accelerators:ETHOS_U",
    },
)


def find_profile(name: str | TargetProfile) -> TargetProfile:
    """A profile by name, or as it is; TargetError lists what is known."""
    if isinstance(name, TargetProfile):
        return name
    if not isinstance(name, str) or name not in PROFILES:
        raise TargetError(f"target {name!r} is unknown; use one of {', '.join(sorted(PROFILES))}")
    return PROFILES[name]


def tvm_target(profile: TargetProfile) -> tvm.target.Target:
    """The profile's TVM target; "host" values are read off this machine.

    Raises TargetError for a device that nothing is compiled for here.
    """
    if profile.artifact != "model.so":
        raise TargetError(
            f"target {profile.name!r} runs .tflite files, for which nothing is compiled here: write one with "
            f"export_tflite(module, target={profile.name!r}) or `tvm-qplugin export QUANTIZED --target "
            f"{profile.name}`; to compile, use a CPU as the target, for example host"
        )
    detected: dict[str, Callable[[], Any]] = {"mcpu": _host_cpu, "num-cores": lambda: os.cpu_count() or 1}
    config: dict[str, Any] = {k: detected[k]() if v == "host" else v for k, v in profile.tvm.items()}
    return tvm.target.Target(config)


def rules_of(profile: TargetProfile) -> tuple[Any, ...]:
    """The schedule rules of a profile, imported."""
    return tuple(_load(path) for path in profile.rules)


def tunables_of(profile: TargetProfile) -> tuple[TunableRule, ...]:
    """What of a profile can be tuned, imported."""
    return tuple(_load(path) for path in profile.tunables)


def fusions_of(profile: TargetProfile) -> tuple[Any, ...]:
    """What decides which kernels a profile computes as one, imported."""
    return tuple(_load(path) for path in profile.fusions)


def halos_of(profile: TargetProfile) -> tuple[Any, ...]:
    """What decides which kernels of a profile read and write padded tensors, imported."""
    return tuple(_load(path) for path in profile.halos)


def float_passes(profile: TargetProfile) -> tuple[Any, ...]:
    """The rewrites of a float module, before it is calibrated."""
    return tuple(_load(path)() for path in profile.float_passes)


def quantized_passes(profile: TargetProfile) -> tuple[Any, ...]:
    """The rewrites of a QDQ module."""
    return tuple(_load(path)() for path in profile.quantized_passes)


def profile_of(target: tvm.target.Target) -> TargetProfile:
    """The profile that fits a TVM target given by the user: x86 with AVX2, or any other CPU."""
    if target.kind.name != "llvm":
        raise TargetError(f"target kind {target.kind.name!r}: only CPUs (llvm) can be compiled for")
    base = PROFILES["host"] if supports(AVX2, target) else PROFILES["x86-64"]
    config = {key: value for key, value in target.export().items() if isinstance(value, str | int)}
    return replace(base, name="custom", description=str(target), tvm=config)


def _host_cpu() -> str:
    return cast(str, tvm.target.codegen.llvm_get_system_cpu())


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
