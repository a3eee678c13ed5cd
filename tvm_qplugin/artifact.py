"""A compiled model: a directory with ``model.so``, ``manifest.json`` and what else was put beside them."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from tvm_qplugin import measure
from tvm_qplugin.core.errors import ArtifactError, InputError, TargetError
from tvm_qplugin.core.manifest import Manifest, TensorInfo
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.linking import Linkable
from tvm_qplugin.measure import Measurement
from tvm_qplugin.store import LIBRARY, digest, read_manifest, verify, write

LINK_OPTIONS = ["-O2", "-s", "-Wl,-O1,--gc-sections,--build-id=none,-z,noseparate-code"]
SIMD = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512fp16"
)  # fmt: skip
Inputs = Sequence[Any] | Mapping[str, Any]


class Artifact:
    """What ``build`` makes: run it, time it, save it.

    >>> from tvm_qplugin.artifact import Artifact
    >>> Artifact.load("nowhere")
    Traceback (most recent call last):
    tvm_qplugin.core.errors.ArtifactError: nowhere: no such directory; give the directory of a saved artifact
    """

    def __init__(self, manifest: Manifest, directory: Path, scratch: Any = None) -> None:
        """For ``create`` and ``load``: ``directory`` holds the files, ``scratch`` keeps it alive."""
        self.manifest = manifest
        self._directory = directory
        self._scratch = scratch
        self._lock = threading.Lock()

    @classmethod
    def create(
        cls,
        executable: Linkable | relax.VMExecutable,
        manifest: Manifest,
        *,
        compiler: str | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Artifact:
        """Link what was compiled and complete ``manifest`` (versions, sizes, sha256, SIMD).

        ``executable``: what ``relax.build`` or ``compile_kernels`` returned.
        ``compiler``: C++ compiler that links for the target (default: ``$CXX``, then the host's).
        ``files``: further files of the artifact. Raises TargetError when linking fails.
        """
        scratch = tempfile.TemporaryDirectory(prefix="tvm-qplugin-")
        directory = Path(scratch.name)
        for name, content in (files or {}).items():
            (directory / name).write_bytes(content)
        _link(executable, directory / LIBRARY, compiler)
        paths = sorted(directory.iterdir())
        manifest = replace(
            manifest,
            versions={**_versions(), **manifest.versions},
            target={"simd": _simd(manifest.target.get("tvm")), **manifest.target},
            sizes={**manifest.sizes, **{path.name: path.stat().st_size for path in paths}},
            sha256={path.name: digest(path) for path in paths},
        )
        return cls(manifest, directory, scratch)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Artifact:
        """Read a saved artifact; ArtifactError when incomplete, altered or of another TVM version."""
        path = Path(directory)
        manifest = read_manifest(path)
        verify(path, manifest)
        _check_version(path, manifest.versions.get("tvm", "unknown"), tvm.__version__)
        return cls(manifest, path.resolve())

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the artifact whole or not at all; an older artifact in its place is replaced.

        Raises ArtifactError when ``directory`` holds anything else, or cannot be written.
        """
        return write(self._directory, Path(directory), self.manifest)

    def run(self, *arrays: Any, threads: int | None = None) -> list[Array]:
        """Run the model: arrays in the manifest's order, or one dict by name; fresh numpy arrays back.

        dtypes must be the manifest's; only float64 is cast, to float32. ``threads``: see ``benchmark``; None:
        in this thread, with TVM's own number (``TVM_NUM_THREADS``). Raises InputError.
        """
        given: Inputs = arrays[0] if len(arrays) == 1 and isinstance(arrays[0], Mapping) else arrays
        call = partial(self._function, *self.tensors(given))
        with self._lock:
            if threads is not None:
                return _arrays(measure.on_threads(threads, call))
            with measure.keep_affinity():
                return _arrays(call())

    def benchmark(
        self,
        threads: int = 1,
        *,
        repeat: int | None = None,
        warmup: int = 3,
        inputs: Inputs | None = None,
    ) -> Measurement:
        """Time single runs (``inputs``: default random), without the copies in and out.

        ``threads`` work under a calling thread of their own, kept off the workers' cores. ``repeat`` None:
        for a second.
        """
        call = partial(self._function, *self.tensors(inputs))
        with self._lock:
            return measure.measure(call, threads=threads, repeat=repeat, warmup=warmup)

    @cached_property
    def _function(self) -> Any:
        return self.machine()["main"]

    def machine(self) -> relax.VirtualMachine:
        """A virtual machine of its own that holds the model; ArtifactError where this CPU cannot run it."""
        missing = set(self.manifest.target.get("simd", ())) - _cpu_flags()
        if missing:
            raise ArtifactError(
                f"compiled for a CPU with {', '.join(sorted(missing))}, which this one lacks: "
                "build the model for this machine"
            )
        try:
            return relax.VirtualMachine(_open(self._directory / LIBRARY), tvm.cpu())
        except Exception as error:
            raise ArtifactError(
                f"{self._directory / LIBRARY} cannot be opened on this machine "
                f"({str(error).strip().splitlines()[-1]}): build the model for this machine"
            ) from error

    def tensors(self, given: Inputs | None = None) -> list[Any]:
        """Checked inputs as TVM's tensors (None: random ones); raises InputError."""
        given = self._random() if given is None else given
        infos = self.manifest.inputs
        names = [info.name for info in infos]
        if isinstance(given, Mapping):
            if set(given) != set(names):
                raise InputError(f"inputs given: {sorted(given)}; expected: {names}; pass one array for each")
            given = [given[name] for name in names]
        if len(given) != len(infos):
            raise InputError(f"{len(given)} arrays given; expected {len(infos)}: {', '.join(names)}")
        return [_tensor(_fit(info, x)) for info, x in zip(infos, given, strict=True)]

    def _random(self) -> list[Array]:
        rng = np.random.default_rng(0)
        return [(100 * rng.random(info.shape)).astype(info.dtype) for info in self.manifest.inputs]


def _fit(info: TensorInfo, given: Any) -> Array:
    """``given`` as a C-ordered native array of the expected type, or InputError."""
    where = f"input {info.name!r}"
    try:
        array = np.asarray(given)
    except Exception as error:
        raise InputError(f"{where}: not an array ({error}); pass a numpy array") from None
    allowed = (info.dtype, "float64") if info.dtype == "float32" else (info.dtype,)
    if array.dtype != info.dtype and array.dtype.name not in allowed:
        raise InputError(
            f"{where}: given dtype {array.dtype.name}, expected {info.dtype}; convert it with .astype"
        )
    if array.shape != info.shape:
        raise InputError(f"{where}: given shape {array.shape}, expected {info.shape}; resize or transpose it")
    return np.asarray(array, dtype=info.dtype, order="C")


def _tensor(array: Array) -> Any:
    """A copy in TVM's memory; ``tvm.runtime.tensor`` takes 7 us more."""
    made = tvm.runtime.empty(array.shape, array.dtype.name)
    np.copyto(np.from_dlpack(made), array)
    return made


def _arrays(result: Any) -> list[Array]:
    """A tensor or nested tuples of them, flattened, as copies."""
    if isinstance(result, tvm.runtime.Tensor):
        return [np.from_dlpack(result).copy()]
    return [array for part in result for array in _arrays(part)]


def _open(library: Path) -> tvm.runtime.Module:
    """Load under a name never used before: dlopen gives back a replaced file's old code for an old name."""
    with tempfile.TemporaryDirectory(prefix="tvm-qplugin-") as folder:
        alias = Path(folder) / LIBRARY
        alias.symlink_to(library)
        return tvm_ffi.load_module(str(alias))  # TVM's own function would resolve the link


def _link(executable: Linkable | relax.VMExecutable, library: Path, compiler: str | None) -> None:
    compiler = compiler or tvm.support.cc.get_cc()
    if compiler is None or shutil.which(compiler) is None:
        raise TargetError(
            f"C++ compiler {compiler or 'g++'!r} not found; it links model.so: install it "
            "(Debian: apt-get install g++) or name another in the environment variable CXX"
        )
    try:
        executable.export_library(str(library), cc=compiler, options=LINK_OPTIONS)
    except (RuntimeError, OSError) as error:
        raise TargetError(f"{compiler} could not link model.so; check that it works: {error}") from error


def _versions() -> dict[str, str]:
    try:
        own = version("tvm-qplugin")
    except PackageNotFoundError:
        own = "unknown"
    return {"tvm": tvm.__version__, "tvm_qplugin": own, "numpy": np.__version__}


def _check_version(path: Path, made: str, here: str) -> None:
    """The VM's byte code is only promised to be readable by the same minor version."""
    if made.split(".")[:2] != here.split(".")[:2]:
        raise ArtifactError(
            f"{path}: made by TVM {made}, this is TVM {here}; "
            f"install apache-tvm {made} here or build the model again"
        )


def _simd(target: Mapping[str, Any] | None) -> list[str]:
    """The instruction sets of an x86 target that a program stops without."""
    if target is None or not str(target.get("mtriple", "x86_64")).startswith("x86_64"):
        return []
    if target.get("kind") != "llvm":
        return []
    features = set(tvm.target.codegen.llvm_get_cpu_features(tvm.target.Target(dict(target))))
    return [name for name in SIMD if name in features]


def _cpu_flags() -> set[str]:
    """What this CPU has, in LLVM's spelling; every known name where that cannot be told."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set(SIMD)
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    return {flag.replace("_", "") for flag in lines[0].split()} if lines else set()
