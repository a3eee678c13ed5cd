"""Why an integer model is not faster: what the times of its kernels and the machine say, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tvm

from tvm_qplugin import measure
from tvm_qplugin.core.errors import InputError
from tvm_qplugin.core.manifest import Manifest
from tvm_qplugin.layer_times import CONVERSIONS, LayerTime, Profile
from tvm_qplugin.peak import host_isa, isa_of
from tvm_qplugin.schedules.x86_isa import INSTRUCTIONS, TABLE
from tvm_qplugin.schedules.x86_kernel import TOO_LARGE

HALF = 0.5
MACS_PER_BYTE = 20
MICROSECOND = 1e-6
OUTSIDE = 0.2
VNNI = ("vnni512", "avxvnni256")


@dataclass(frozen=True)
class Machine:
    """Instruction sets (names of ``x86_isa.TABLE``, None: none of them) and cores that threads share.

    ``used``: what the artifact was compiled for; ``available``: what this CPU has.
    """

    used: str | None
    available: str | None
    shared: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A reason and what to do about it; ``share``: of the time of all kernels, None where that is unknown."""

    kind: str
    title: str
    advice: str
    share: float | None = None
    layers: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def machine_of(manifest: Manifest, threads: int) -> Machine:
    """This machine as an artifact that runs on ``threads`` threads sees it."""
    target = manifest.target.get("tvm")
    used = isa_of("int8", tvm.target.Target(dict(target))) if target else None
    available = host_isa("int8")
    shared = sorted(measure.shared_cores(threads)) if threads > 1 else ()
    return Machine(used.name if used else None, available.name if available else None, tuple(shared))


def findings(profile: Profile, machine: Machine) -> list[Finding]:
    """All reasons that apply: first those without a share of the time, then the largest share first."""
    rules = (_threads, _instructions, _outside, _merged, _islands, _conversions, _wide, _weights, _below_half)
    found = [finding for rule in rules for finding in rule(profile, machine)]
    return sorted(found, key=lambda finding: -1.0 if finding.share is None else -finding.share)


def _of(kind: str, layers: Sequence[LayerTime], title: str, advice: str) -> Iterator[Finding]:
    """One finding about some layers, the slowest first; none if there are none."""
    if layers:
        names = tuple(layer.name for layer in sorted(layers, key=lambda layer: -layer.ms))
        yield Finding(kind, title, advice, sum(layer.share for layer in layers), names)


def _threads(_profile: Profile, machine: Machine) -> Iterator[Finding]:
    if machine.shared:
        cores = ", ".join(map(str, machine.shared))
        yield Finding(
            "threads",
            f"a thread that runs the model may land on core {cores}, to which TVM pins a worker: both then "
            "wait for each other",
            "Artifact.run(..., threads=N) keeps them apart, as the times here do; in a program of your own "
            "move the calling thread to the other cores after the first run (os.sched_setaffinity), or set "
            "TVM_BIND_THREADS=0",
        )


def _instructions(profile: Profile, machine: Machine) -> Iterator[Finding]:
    order = [*TABLE, None]
    integer = any(layer.integer for layer in profile.layers)
    if integer and order.index(machine.available) < order.index(machine.used):
        has, uses = (INSTRUCTIONS.get(name or "", "none") for name in (machine.available, machine.used))
        yield Finding(
            "instructions",
            f"int8 instruction compiled for: {uses}; this CPU has {has}",
            "build with --target host, or with the target that names this CPU's instructions",
        )
    elif integer and machine.available not in VNNI:
        yield Finding(
            "instructions",
            "no int8 instruction of this CPU has a kernel"
            if machine.available is None
            else "this CPU has no instruction that adds four products of int8 (VNNI)",
            "expect at most about float's speed in layers bound by arithmetic; int8 still saves memory",
        )


def _outside(profile: Profile, _machine: Machine) -> Iterator[Finding]:
    rest = profile.whole_ms - profile.kernels_ms
    if rest > OUTSIDE * profile.whole_ms:
        yield Finding(
            "overhead",
            f"{rest:.3f} of {profile.whole_ms:.3f} ms are spent outside of kernels, in calling them",
            "the model is too small for its arithmetic to matter: run more samples in a call (--batch)",
        )


def _merged(profile: Profile, _machine: Machine) -> Iterator[Finding]:
    """Nothing is known of the layers inside."""
    yield from _of(
        "merged",
        profile.merged,
        "several small kernels run as one function: their layers were not looked at one by one",
        "build with --separate-kernels, and ask again",
    )


def _islands(profile: Profile, _machine: Machine) -> Iterator[Finding]:
    """One finding for each reason that keeps layers in float."""
    groups: dict[str, list[LayerTime]] = {}
    for layer in profile.layers:
        if not layer.integer:
            groups.setdefault(layer.reason or "it has no integer kernel", []).append(layer)
    for reason, layers in groups.items():
        advice = "exchange it for an operator with an integer kernel (README), or move it to the model's end"
        if "a rule of a recipe" in reason:
            advice = "leave it there, or give it a rule in the recipe and compare the accuracy"
        elif "recipe" in reason:
            advice = "remove the rule or --float that keeps it there"
        if len(layers) == len(profile.layers):
            advice = "quantize the model: tvm-qplugin quantize model.onnx --calibration samples -o quantized"
        yield from _of("float", layers, f"stays in float: {reason}", advice)


def _conversions(profile: Profile, _machine: Machine) -> Iterator[Finding]:
    layers = profile.layers
    real = [i for i, layer in enumerate(layers) if layer.op not in CONVERSIONS]
    first, last = (real[0], real[-1]) if real else (len(layers), -1)

    def chosen(where: Callable[[int, LayerTime], bool]) -> list[LayerTime]:
        return [x for i, x in enumerate(layers) if x.op in CONVERSIONS and where(i, x)]

    yield from _of(
        "conversion",
        chosen(lambda i, _: not first < i < last),
        "inputs and outputs are converted between float and integers",
        "quantize --io int8 (or uint8), and give and take integers",
    )
    yield from _of(
        "conversion",
        chosen(lambda i, x: first < i < last and x.op != "requantize"),
        "tensors are converted on the way in and out of float layers",
        "bring those layers to integers, or keep whole stretches of the model in float",
    )
    yield from _of(
        "conversion",
        chosen(lambda i, x: first < i < last and x.op == "requantize"),
        "integers are rescaled between layers by kernels of their own",
        "give both sides of a concat or a copy the same scale; a float ONNX file quantized here has it so",
    )


def _wide(profile: Profile, _machine: Machine) -> Iterator[Finding]:
    yield from _of(
        "int16",
        [layer for layer in profile.layers if layer.integer and layer.dtype == "int16"],
        "activations are int16, for which the kernels are portable ones",
        "use the recipe int8 wherever its accuracy suffices (--correct-bias, --adaptive-rounding)",
    )


def _weights(profile: Profile, _machine: Machine) -> Iterator[Finding]:
    """Layers that AVX2 computes in int16."""
    yield from _of(
        "weights",
        _of_large_weights(profile),
        "weights too large: sums of two products with bytes would not fit int16, so operands are widened",
        "quantize --reduce-range, or a rule of the recipe for these layers: faster, at some loss of accuracy",
    )


def _of_large_weights(profile: Profile) -> list[LayerTime]:
    single = [layer for layer in profile.layers if layer not in profile.merged]
    return [layer for layer in single if TOO_LARGE in (layer.instruction or "")]


def _below_half(profile: Profile, _machine: Machine) -> Iterator[Finding]:
    """Integer layers that reach less than half of the peak, by the likely cause."""
    known = (*profile.merged, *_of_large_weights(profile))
    single = [layer for layer in profile.layers if layer not in known]
    slow = [x for x in single if x.integer and x.of_peak is not None and x.of_peak < HALF]
    causes = {
        "small": "too small: at the peak it would take less than a microsecond",
        "memory": f"less than {MACS_PER_BYTE} multiply-adds for a byte that it moves: memory decides",
        "shape": "its shape leaves registers or lanes unused",
    }
    advice = {
        "small": "nothing in this layer; more samples in a call (--batch) spread the cost of calling it",
        "memory": "fewer channels or a smaller image help; faster arithmetic does not",
        "shape": "channels in multiples of 16 (outputs) and 4 (inputs) run best",
    }
    for cause, title in causes.items():
        layers = [layer for layer in slow if _cause(layer) == cause]
        yield from _of("below half of the peak", layers, title, advice[cause])


def _cause(layer: LayerTime) -> str:
    if (layer.of_peak or 0) * layer.ms / 1e3 < MICROSECOND:
        return "small"
    return "memory" if layer.macs < MACS_PER_BYTE * layer.bytes else "shape"


def compared(integer: Profile, other: Profile) -> list[dict[str, Any]]:
    """The times of both for each kernel of ``integer``, in order: name, op, ms, float_ms, speedup.

    Kernels that one kernel of the float model computes together are one row; what only the integer model has
    (conversions) has no ``float_ms``. Raises InputError when the models have no layer in common.
    """
    place = {name: i for i, layer in enumerate(other.layers) for name in (layer.name, *layer.names)}
    rows: dict[Any, list[LayerTime]] = {}
    for i, layer in enumerate(integer.layers):
        twin = None if layer.op in CONVERSIONS else _twin(layer, place)
        rows.setdefault(("own", i) if twin is None else twin, []).append(layer)
    if not any(isinstance(key, int) for key in rows):
        raise InputError(
            "--float: that artifact has no layer in common with this one; build it from the float ONNX file "
            "that this one was quantized from"
        )
    return [
        _row(layers, other.layers[key].ms if isinstance(key, int) else None) for key, layers in rows.items()
    ]


def _twin(layer: LayerTime, place: dict[str, int]) -> int | None:
    names: Iterable[str] = (layer.name, *layer.names)
    return next((place[name] for name in names if name in place), None)


def _row(layers: Sequence[LayerTime], float_ms: float | None) -> dict[str, Any]:
    ms = sum(layer.ms for layer in layers)
    return {
        "name": layers[-1].name,
        "op": layers[-1].op,
        "ms": ms,
        "float_ms": float_ms,
        "speedup": None if float_ms is None or not ms else float_ms / ms,
    }
