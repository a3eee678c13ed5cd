"""Profiles: the model's names in the order of execution, shares that add up, errors that explain."""

from dataclasses import replace

import pytest

import tvm_qplugin as qp
from tvm_qplugin import demo
from tvm_qplugin.artifact import Artifact
from tvm_qplugin.core.errors import ArtifactError, TargetError
from tvm_qplugin.layer_times import Profile

MIXED = {"name": "mixed", "scheme": "int8", "rules": [{"scope": "residual_second", "scheme": "float"}]}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    """Saved and loaded: nothing but the files is known."""
    module = qp.quantize(demo.model_path(), calibration=demo.calibration()[:8], recipe=MIXED)
    return Artifact.load(qp.build(module, merge=False).save(tmp_path_factory.mktemp("profile") / "a"))


@pytest.fixture(scope="module")
def profile(artifact) -> Profile:
    return qp.profile(artifact, repeat=5)


def test_layers_are_the_calls_of_the_manifest(artifact, profile):
    assert [layer.function for layer in profile.layers] == [call.function for call in artifact.manifest.calls]
    assert [layer.bytes for layer in profile.layers] == [call.bytes for call in artifact.manifest.calls]
    names = {op.name for op in artifact.manifest.operators}
    assert all(layer.name in names for layer in profile.layers)
    assert (profile.threads, profile.runs) == (1, 5)


def test_sums(artifact, profile):
    assert sum(layer.ms for layer in profile.layers) == pytest.approx(profile.kernels_ms)
    assert sum(layer.share for layer in profile.layers) == pytest.approx(1)
    assert sum(layer.macs for layer in profile.layers) == sum(op.macs for op in artifact.manifest.operators)
    assert min(layer.ms for layer in profile.layers) >= 0 and profile.whole_ms > 0


def test_rates_follow_from_times(profile):
    for layer in profile.layers:
        if not layer.macs:
            assert layer.gmacs is None and layer.of_peak is None
        elif layer.gmacs is not None:
            assert layer.gmacs * layer.ms == pytest.approx(layer.macs / 1e6)
            peak = profile.peaks[layer.dtype].gmacs
            assert layer.of_peak == (None if peak is None else pytest.approx(layer.gmacs / peak))


def test_share_near_the_peak(profile):
    layers = [replace(layer, macs=macs, of_peak=part) for layer, macs, part in zip(
        profile.layers, (30, 10, 60), (0.95, 0.9, 0.89), strict=False
    )]  # fmt: skip
    assert replace(profile, layers=tuple(layers)).near_peak() == pytest.approx(0.4)
    unknown = tuple(replace(layer, of_peak=None) for layer in layers)
    assert replace(profile, layers=unknown).near_peak() is None


def test_float_layers_say_why(profile):
    (layer,) = [layer for layer in profile.layers if not layer.integer]
    assert layer.op == "conv2d" and layer.dtype == "float32" and "recipe" in str(layer.reason)
    assert len(layer.names) == 2 and layer.macs == 2_359_296


def test_a_merged_function_is_one_layer_of_all_names(artifact):
    module = qp.quantize(demo.model_path(), calibration=demo.calibration()[:8], recipe=MIXED)
    merged = qp.profile(qp.build(module), repeat=3)
    (layer,) = merged.merged
    assert layer.op == "merged" and layer.integer and layer.ms > 0
    names = [name for other in merged.layers for name in other.names]
    assert names == [op.name for op in artifact.manifest.operators]
    assert sum(other.macs for other in merged.layers) == sum(op.macs for op in artifact.manifest.operators)


def test_kinds_add_up(profile):
    kinds = profile.to_json()["kinds"]
    assert sum(kind["calls"] for kind in kinds) == len(profile.layers)
    for key, total in (("ms", profile.kernels_ms), ("share", 1.0)):
        assert sum(kind[key] for kind in kinds) == pytest.approx(total)
    assert [kind["ms"] for kind in kinds] == sorted((kind["ms"] for kind in kinds), reverse=True)
    assert {(k["op"], k["integer"]) for k in kinds} >= {
        ("conv2d", True),
        ("conv2d", False),
        ("quantize", True),
    }


def test_the_artifact_still_runs_as_before(artifact, profile):
    x = demo.calibration()[:1]
    before = artifact.run(x)[0]
    qp.profile(artifact, repeat=1)
    assert (artifact.run(x)[0] == before).all()


def test_another_manifest_is_refused(artifact):
    wrong = replace(artifact.manifest, calls=artifact.manifest.calls[::-1])
    with pytest.raises(ArtifactError, match="calls other kernels than its manifest lists: build"):
        qp.profile(Artifact(wrong, artifact._directory), repeat=1)


def test_too_many_threads(artifact):
    with pytest.raises(TargetError, match="threads=1000: expected"):
        qp.profile(artifact, threads=1000)
