"""x86-64 CPUs, from AVX512-VNNI down to what every one has."""

from __future__ import annotations

from tvm_qplugin.core.profile import TargetProfile

_SCHEDULES = "tvm_qplugin.schedules."
PORTABLE_RULES = (f"{_SCHEDULES}cpu_conv:rule", f"{_SCHEDULES}cpu_lut:rule", f"{_SCHEDULES}weight_only:rule")
X86_RULES = (
    f"{_SCHEDULES}x86_depthwise:rule",
    f"{_SCHEDULES}x86_conv:rule",
    f"{_SCHEDULES}x86_dense:rule",
    f"{_SCHEDULES}x86_dynamic:rule",
    f"{_SCHEDULES}x86_matmul:rule",
    f"{_SCHEDULES}x86_pool:rule",
    f"{_SCHEDULES}x86_average:rule",
    f"{_SCHEDULES}x86_add:rule",
    f"{_SCHEDULES}x86_chain:rule",
    f"{_SCHEDULES}x86_softmax16:rule",
    *PORTABLE_RULES,
)
X86_TUNABLES = tuple(f"{_SCHEDULES}x86_tunable:{name}" for name in ("depthwise", "conv", "dense"))
X86_FUSIONS = (f"{_SCHEDULES}x86_conv:fuses",)
X86_HALOS = (f"{_SCHEDULES}x86_halo:serves",)

HOST = TargetProfile(
    "host",
    "the machine this runs on, with the instructions that it has",
    {"kind": "llvm", "mcpu": "host", "num-cores": "host"},
    "uint8",
    X86_RULES,
    X86_TUNABLES,
    fusions=X86_FUSIONS,
    halos=X86_HALOS,
)
X86_V4 = TargetProfile(
    "x86-64-v4-vnni",
    "servers with AVX512-VNNI (Cascade Lake, Ice Lake, Zen 4 and newer)",
    {"kind": "llvm", "mcpu": "icelake-server", "num-cores": 4},
    "uint8",
    X86_RULES,
    X86_TUNABLES,
    fusions=X86_FUSIONS,
    halos=X86_HALOS,
)
X86_AVXVNNI = TargetProfile(
    "x86-64-avxvnni",
    "desktops with AVX-VNNI, without AVX512 (Alder Lake and newer)",
    {"kind": "llvm", "mcpu": "alderlake", "num-cores": 4},
    "uint8",
    X86_RULES,
    X86_TUNABLES,
    fusions=X86_FUSIONS,
    halos=X86_HALOS,
)
X86_V3 = TargetProfile(
    "x86-64-v3",
    "AVX2 and FMA (Haswell, Zen and newer)",
    {"kind": "llvm", "mcpu": "haswell", "num-cores": 4},
    "uint8",
    X86_RULES,
    X86_TUNABLES,
    fusions=X86_FUSIONS,
    halos=X86_HALOS,
)
X86 = TargetProfile(
    "x86-64",
    "any x86-64: SSE2, no special kernels",
    {"kind": "llvm", "mcpu": "x86-64", "num-cores": 2},
    "int8",
    PORTABLE_RULES,
)
