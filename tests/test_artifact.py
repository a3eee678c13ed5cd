"""Artifacts: saved whole, verified on loading, run with checked inputs on any number of threads."""

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tvm_qplugin import measure
from tvm_qplugin.artifact import Artifact
from tvm_qplugin.core.errors import ArtifactError, InputError, TargetError
from tvm_qplugin.core.manifest import Manifest, TensorInfo

TARGET = {"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()}


@I.ir_module
class Toy:
    """Two inputs, two outputs; the loop over rows is parallel."""

    @T.prim_func(private=True, s_tir=True)
    def scale(
        x: T.Buffer((64, 256), "float32"), k: T.Buffer((1,), "int8"), y: T.Buffer((64, 256), "float32")
    ):
        for i in T.parallel(64):
            for j in range(256):
                with T.sblock("y"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    y[vi, vj] = x[vi, vj] * T.cast(k[0], "float32")

    @R.function
    def main(x: R.Tensor((64, 256), "float32"), k: R.Tensor((1,), "int8")):
        cls = Toy
        with R.dataflow():
            y = R.call_tir(cls.scale, (x, k), R.Tensor((64, 256), "float32"))
            z = R.add(y, R.const(1.0, "float32"))
            out = (y, (z,))
            R.output(out)
        return out


@I.ir_module
class Negate:
    @R.function
    def main(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
        with R.dataflow():
            y = R.negative(x)
            R.output(y)
        return y


MANIFEST = Manifest(
    model="toy",
    inputs=(TensorInfo("x", (64, 256), "float32"), TensorInfo("k", (1,), "int8")),
    outputs=(TensorInfo("y", (64, 256), "float32"), TensorInfo("z", (64, 256), "float32")),
    target={"profile": "host", "tvm": TARGET},
    sizes={"weights": 0},
)
NEGATE = replace(MANIFEST, model="negate", inputs=(TensorInfo("x", (2,), "float32"),), outputs=())

X = np.random.default_rng(1).normal(size=(64, 256)).astype("float32")
K = np.array([-3], "int8")


def _build(module, manifest, **options) -> Artifact:
    return Artifact.create(relax.build(module, tvm.target.Target(TARGET)), manifest, **options)


@pytest.fixture(scope="module")
def toy() -> Artifact:
    return _build(Toy, MANIFEST, files={"notes.txt": b"hello"})


@pytest.fixture(scope="module")
def negate() -> Artifact:
    return _build(Negate, NEGATE)


@pytest.fixture
def saved(toy, tmp_path) -> Path:
    return toy.save(tmp_path / "deep" / "toy")


def _check(results):
    y, z = results
    np.testing.assert_array_equal(y, X * np.float32(-3))
    np.testing.assert_array_equal(z, X * np.float32(-3) + 1)


def test_runs_before_and_after_saving(toy, saved):
    loaded = Artifact.load(saved)
    assert loaded.manifest == toy.manifest
    for artifact in (toy, loaded):
        _check(artifact.run(X, K))
        _check(artifact.run({"k": K, "x": X}))
    assert isinstance(loaded.run(X, K)[0], np.ndarray)


def test_the_directory(saved, toy):
    files = {path.name: path.stat().st_size for path in saved.iterdir()}
    assert set(files) == {"model.so", "manifest.json", "notes.txt"}
    assert toy.manifest.sizes == {"weights": 0, "model.so": files["model.so"], "notes.txt": 5}
    assert files["model.so"] < 40_000
    assert set(toy.manifest.versions) == {"tvm", "tvm_qplugin", "numpy"}
    assert [path.name for path in saved.parent.iterdir()] == ["toy"]


def test_results_are_fresh(toy):
    first = toy.run(X, K)[0]
    kept = first.copy()
    toy.run(2 * X, K)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    _check(toy.run(X, K))


def test_any_memory_layout_and_float64(toy):
    _check(toy.run(np.asfortranarray(X), K))
    _check(toy.run(X.astype(">f4"), K))
    _check(toy.run(X.astype("float64"), K))
    _check(toy.run(np.repeat(X, 2, axis=1)[:, ::2], K))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((), "0 arrays given; expected 2: x, k"),
        ((X,), "1 arrays given; expected 2"),
        ((X, K, K), "3 arrays given; expected 2"),
        (({"x": X},), r"inputs given: \['x'\]; expected: \['x', 'k'\]"),
        (({"x": X, "q": K},), r"inputs given: \['q', 'x'\]"),
        ((X[:1], K), r"input 'x': given shape \(1, 256\), expected \(64, 256\)"),
        ((X.T, K), r"given shape \(256, 64\)"),
        ((X[None], K), r"given shape \(1, 64, 256\)"),
        ((X, np.int8(1)), r"input 'k': given shape \(\), expected \(1,\)"),
        ((X.astype("float16"), K), "input 'x': given dtype float16, expected float32"),
        ((X.astype("int64"), K), "given dtype int64"),
        ((X.astype("complex64"), K), "given dtype complex64"),
        ((X, K.astype("float64")), "input 'k': given dtype float64, expected int8"),
        ((X, K.astype("uint8")), "given dtype uint8"),
        ((X, None), "input 'k': given dtype object"),
        (("hello", K), "given dtype str"),
        (([[1.0], [2.0, 3.0]], K), "input 'x': not an array"),
    ],
)
def test_wrong_inputs(toy, arrays, message):
    with pytest.raises(InputError, match=message):
        toy.run(*arrays)


TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=TWO_CORES), 1])
def test_threads_compute_the_same(toy, threads):
    """Right on every number of threads in one process; the caller's affinity and settings stay."""
    cores, setting = os.sched_getaffinity(0), os.environ.get("TVM_NUM_THREADS")
    _check(toy.run(X, K, threads=threads))
    measurement = toy.benchmark(threads, repeat=4, warmup=1)
    assert measurement.threads == threads and measurement.runs == 4
    assert 0 < measurement.min_ms <= measurement.median_ms <= measurement.p90_ms
    assert measurement.peak_bytes > 2**20
    assert os.sched_getaffinity(0) == cores
    assert os.environ.get("TVM_NUM_THREADS") == setting
    assert measure.on_threads(threads, tvm.runtime.num_threads) == threads


def test_runs_from_many_threads(toy):
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: toy.run(X, K), range(40)):
            _check(results)


def test_threads_after_a_fork():
    """A child process has none of its parent's threads and makes its own."""
    assert measure.on_threads(1, lambda: 7) == 7
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(measure.on_threads(1, lambda: 7))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@TWO_CORES
def test_the_caller_is_kept_off_the_workers_core(monkeypatch):
    monkeypatch.delenv("TVM_BIND_THREADS", raising=False)
    measure._caller.cache_clear()
    cores = measure.on_threads(2, lambda: os.sched_getaffinity(0))
    assert cores < os.sched_getaffinity(0)


def test_benchmark_takes_inputs_and_checks_its_options(toy):
    assert toy.benchmark(repeat=1, inputs={"x": X, "k": K}).runs == 1
    assert json.loads(json.dumps(toy.benchmark(repeat=2).to_json()))["runs"] == 2
    with pytest.raises(InputError):
        toy.benchmark(inputs=[X])
    with pytest.raises(ValueError, match="repeat=0"):
        toy.benchmark(repeat=0)
    for threads in (0, -1, 100_000):
        with pytest.raises(TargetError, match=f"threads={threads}: expected 1 to"):
            toy.benchmark(threads)


def test_an_error_inside_comes_out():
    with pytest.raises(ZeroDivisionError):
        measure.on_threads(1, lambda: 1 // 0)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _edit(path: Path, *keys: str, value) -> None:
    data = json.loads(path.read_text())
    node = data
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: _truncate(d / "model.so"), r"model.so was altered: its sha256 is \w{64}, expected \w{64}"),
        (lambda d: _flip(d / "model.so"), "model.so was altered"),
        (lambda d: (d / "model.so").write_bytes(b""), "model.so was altered"),
        (lambda d: (d / "model.so").unlink(), "model.so cannot be read"),
        (lambda d: _flip(d / "notes.txt"), "notes.txt was altered"),
        (lambda d: (d / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda d: _truncate(d / "manifest.json"), "manifest.json: the manifest is not JSON"),
        (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe\x00"), "manifest.json cannot be read"),
        (
            lambda d: _edit(d / "manifest.json", "format", value=99),
            "format 99, this tvm_qplugin reads format 3",
        ),
        (lambda d: _edit(d / "manifest.json", "sha256", value={}), "no sha256 of model.so"),
        (lambda d: _edit(d / "manifest.json", "sha256", "../x", value="0"), "'../x' is not the name"),
        (lambda d: _edit(d / "manifest.json", "versions", "tvm", value="0.31.2"), "made by TVM 0.31.2"),
        (lambda d: _edit(d / "manifest.json", "versions", value={}), "made by TVM unknown"),
        (shutil.rmtree, "no such directory"),
        (lambda d: (shutil.rmtree(d), d.write_text("")), "not a directory"),
    ],
)
def test_damage_is_refused(saved, damage, message):
    damage(saved)
    with pytest.raises(ArtifactError, match=message):
        Artifact.load(saved)


def test_another_cpu_is_refused_before_it_stops_the_program(saved):
    _edit(saved / "manifest.json", "target", "simd", value=["avx", "avx9000"])
    with pytest.raises(ArtifactError, match="CPU with avx9000, which this one lacks"):
        Artifact.load(saved).run(X, K)


def test_a_library_of_another_machine(saved):
    foreign = b"\x7fELF not for this machine"
    (saved / "model.so").write_bytes(foreign)
    digest = _digest(foreign)
    _edit(saved / "manifest.json", "sha256", "model.so", value=digest)
    with pytest.raises(ArtifactError, match="cannot be opened on this machine"):
        Artifact.load(saved).run(X, K)


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def test_replaces_an_artifact(saved, negate):
    old = Artifact.load(saved)
    _check(old.run(X, K))
    negate.save(saved)
    assert {path.name for path in saved.iterdir()} == {"model.so", "manifest.json"}
    np.testing.assert_array_equal(Artifact.load(saved).run(np.ones(2, "float32"))[0], [-1, -1])
    _check(old.run(X, K))


def test_saves_over_itself_and_copies(saved, tmp_path):
    loaded = Artifact.load(saved)
    loaded.save(saved)
    copy = loaded.save(tmp_path / "copy")
    _check(Artifact.load(copy).run(X, K))
    _check(Artifact.load(saved).run(X, K))


def test_follows_a_link(saved, negate, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(saved)
    negate.save(link)
    assert link.is_symlink() and Artifact.load(saved).manifest.model == "negate"


def test_an_empty_directory_is_filled(toy, tmp_path):
    _check(Artifact.load(toy.save(tmp_path)).run(X, K))


def _tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("thesis.tex", r"holds what is not part of an artifact \(manifest.json, .*thesis.tex\)"),
        ("manifest.json", r"not part of an artifact \(manifest.json"),
    ],
)
def test_other_directories_are_left_alone(toy, tmp_path, name, message):
    (tmp_path / "manifest.json").write_text('{"name": "a web application"}')
    (tmp_path / name).write_text("{}")
    before = _tree(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        toy.save(tmp_path)
    assert _tree(tmp_path) == before


def test_files_added_by_hand_are_not_lost(saved, negate):
    (saved / "mine.txt").write_text("keep")
    with pytest.raises(ArtifactError, match=r"mine\.txt"):
        negate.save(saved)
    assert Artifact.load(saved).manifest.model == "toy"


def test_a_file_in_the_way(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file"):
        toy.save(tmp_path / "file")
    with pytest.raises(ArtifactError, match="cannot write"):
        toy.save(tmp_path / "file" / "below")


def test_a_failed_save_leaves_what_was_there(saved, negate, monkeypatch):
    before = _tree(saved.parent)

    def full(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tvm_qplugin.store.shutil.copyfile", full)
        with pytest.raises(ArtifactError, match="No space left on device"):
            negate.save(saved)
    assert _tree(saved.parent) == before

    rename = os.rename
    with monkeypatch.context() as patch:
        patch.setattr(
            "tvm_qplugin.store.os.rename", lambda a, b: full() if ".new-" in str(a) else rename(a, b)
        )
        with pytest.raises(ArtifactError, match="No space left on device"):
            negate.save(saved)
    assert _tree(saved.parent) == before


@pytest.mark.parametrize("compiler", ["no-such-compiler", "/bin/false"])
def test_no_compiler(compiler, monkeypatch):
    with pytest.raises(TargetError, match=r"not found.*apt-get install g\+\+|could not link"):
        _build(Negate, NEGATE, compiler=compiler)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(TargetError, match=r"C\+\+ compiler 'g\+\+' not found.*apt-get install g\+\+"):
        _build(Negate, NEGATE)
