"""What is said about made-up profiles: one reason each, with its share and its layers."""

from dataclasses import replace

import pytest
import tvm

from tvm_qplugin import measure
from tvm_qplugin.core.errors import InputError
from tvm_qplugin.core.manifest import Manifest
from tvm_qplugin.layer_times import LayerTime, Profile
from tvm_qplugin.peak import Peak
from tvm_qplugin.schedules.x86_kernel import TOO_LARGE
from tvm_qplugin.slowness import Finding, Machine, compared, findings, machine_of

BEST = Machine("vnni512", "vnni512")
LAYER = LayerTime(
    "conv", ("conv",), "conv2d", "qconv2d", True, None, "uint8", 1.0, 0.5, 10**8, 100.0, 0.9, 10**5
)  # fmt: skip
QUANTIZE = replace(LAYER, name="in", names=("in",), op="quantize", macs=0, gmacs=None, of_peak=None)
OUT = replace(QUANTIZE, name="out", names=("out",), op="dequantize")


def profile(*layers: LayerTime, whole: float | None = None) -> Profile:
    total = sum(layer.ms for layer in layers)
    shared = tuple(replace(layer, share=layer.ms / total) for layer in layers)
    peaks = {"uint8": Peak(500.0, "vpdpbusd, 512 bits")}
    return Profile(shared, 1, 5, total, total if whole is None else whole, peaks)


def only(*layers: LayerTime, machine: Machine = BEST, whole: float | None = None) -> Finding:
    (found,) = findings(profile(*layers, whole=whole), machine)
    return found


def test_nothing_stands_out():
    assert findings(profile(LAYER), BEST) == []


def test_float_layers_stand_with_their_reason():
    kept = replace(LAYER, name="a", integer=False, reason="the recipe keeps it in float")
    found = only(LAYER, kept, replace(kept, name="b", ms=2.0))
    assert (found.kind, found.layers, found.share) == ("float", ("b", "a"), pytest.approx(0.75))
    assert "the recipe keeps it in float" in found.title and "--float" in found.advice
    asked = only(LAYER, replace(kept, reason="scores are float; a rule of a recipe can ask for it"))
    assert "give it a rule" in asked.advice
    strange = only(LAYER, replace(kept, reason="erf has no integer kernel"))
    assert "erf has no integer kernel" in strange.title and "integer kernel" in strange.advice


def test_a_model_that_is_all_float_is_to_be_quantized():
    found = only(replace(LAYER, integer=False, reason="it is not between dequantize and quantize"))
    assert "tvm-qplugin quantize" in found.advice and found.share == 1


def test_conversions_at_the_ends_and_inside():
    inside = replace(OUT, name="inside")
    found = findings(profile(QUANTIZE, LAYER, inside, replace(LAYER, name="last"), OUT), BEST)
    assert {finding.layers: finding.kind for finding in found} == {
        ("in", "out"): "conversion",
        ("inside",): "conversion",
    }
    assert "--io int8" in found[0].advice and "float layers" in found[1].title
    scaled = only(LAYER, replace(QUANTIZE, op="requantize"), replace(LAYER, name="last"))
    assert "rescaled" in scaled.title


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "lanes unused"),
        ({"bytes": 10**7}, "memory decides"),
        ({"ms": 0.002, "macs": 10**5, "bytes": 10}, "less than a microsecond"),
    ],
)
def test_layers_below_half_of_the_peak(changes, title):
    slow = replace(LAYER, name="slow", of_peak=0.4, **changes)
    found = only(LAYER, slow)
    assert found.kind == "below half of the peak" and found.layers == ("slow",) and title in found.title


def test_unknown_peaks_are_not_judged():
    assert findings(profile(replace(LAYER, of_peak=None)), BEST) == []


def test_instructions_that_are_there_and_not_used():
    found = only(LAYER, machine=Machine("avx2", "vnni512"))
    assert found.kind == "instructions" and found.share is None
    assert "vpmaddwd" in found.title and "512 bits" in found.title and "--target host" in found.advice
    assert "compiled for: none" in only(LAYER, machine=Machine(None, "avx2")).title


@pytest.mark.parametrize(
    ("name", "title"), [("avx2", "no instruction that adds four products"), (None, "no int8 instruction")]
)
def test_a_cpu_without_vnni(name, title):
    assert title in only(LAYER, machine=Machine(name, name)).title


def test_threads_that_share_a_core():
    found = only(LAYER, machine=replace(BEST, shared=(1,)))
    assert found.kind == "threads" and "core 1" in found.title and "threads=N" in found.advice


def test_time_outside_of_kernels():
    found = only(LAYER, whole=2.0)
    assert found.kind == "overhead" and "1.000 of 2.000 ms" in found.title


def test_int16_activations():
    found = only(LAYER, replace(LAYER, name="wide", dtype="int16", of_peak=None))
    assert found.kind == "int16" and found.layers == ("wide",)


def test_weights_that_forbid_byte_pairs():
    note = f"vpmaddwd, 256 bits{TOO_LARGE}"
    found = only(LAYER, replace(LAYER, name="large", instruction=note, of_peak=0.4))
    assert (found.kind, found.layers, found.share) == ("weights", ("large",), pytest.approx(0.5))
    assert "--reduce-range" in found.advice
    assert findings(profile(replace(LAYER, instruction="vpmaddubsw, 256 bits")), BEST) == []
    assert only(LAYER, replace(LAYER, name="all", op="merged", instruction=note)).kind == "merged"


def test_the_largest_share_stands_first():
    kept = replace(LAYER, name="a", integer=False, reason="x")
    found = findings(profile(LAYER, kept, replace(kept, reason="y", ms=3.0)), replace(BEST, shared=(1,)))
    shares = [finding.share for finding in found]
    assert shares == [None, pytest.approx(0.6), pytest.approx(0.2)]


def test_layers_are_compared_by_name():
    fused = replace(LAYER, name="relu", names=("conv", "add", "relu"), ms=6.0)
    rows = compared(profile(QUANTIZE, LAYER, replace(LAYER, name="relu", names=("relu",))), profile(fused))
    assert [(row["name"], row["ms"], row["float_ms"], row["speedup"]) for row in rows] == [
        ("in", 1.0, None, None),
        ("relu", 2.0, 6.0, 3.0),
    ]


def test_models_without_a_common_layer():
    with pytest.raises(InputError, match="no layer in common with this one; build it from"):
        compared(profile(LAYER), profile(replace(LAYER, name="x", names=("x",))))


@pytest.mark.parametrize(
    ("cpu", "used"), [("icelake-server", "vnni512"), ("haswell", "avx2"), ("x86-64", None)]
)
def test_what_an_artifact_was_compiled_for(cpu, used):
    manifest = Manifest("net", (), (), target={"tvm": {"kind": "llvm", "mcpu": cpu}})
    found = machine_of(manifest, 1)
    assert (found.used, found.shared) == (used, ())


def test_shared_cores_are_those_of_pinned_workers(monkeypatch):
    masks = {7: {1}, 8: {0, 1}, 0: {0, 1}}
    seen = iter([{0}, {0, 7, 8}])
    monkeypatch.setattr(measure, "_threads", lambda: next(seen))
    monkeypatch.setattr("os.sched_getaffinity", lambda thread: masks[thread])
    monkeypatch.setattr(tvm.runtime, "num_threads", lambda: 2)
    assert measure.shared_cores(2) == {1}
