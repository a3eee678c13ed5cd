"""Who races in bench.py: a table; a further runtime is one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import _runtimes as run
from _bench_models import Model
from _bench_rows import OURS, SCHEMES

Make = Callable[[Model, Path], None]


@dataclass(frozen=True)
class Contestant:
    """A runtime on one kind of file.

    ``make(model, path)`` writes ``file`` in the folder of the race, in a process of its own; or
    ``given(model)`` says where a file lies that exists (None: this contestant cannot run the model, because
    ``otherwise``). ``start(path, threads)`` is called in a process pinned to ``threads`` cores that has
    imported ``modules``; they must be installed, as must ``tools``, which ``make`` needs.
    """

    start: Callable[[Path, int], run.Rounds]
    file: str = ""
    make: Make | None = None
    given: Callable[[Model], Path | None] | None = None
    modules: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    otherwise: str = ""

    def obstacle(self, model: Model) -> str:
        """Why this contestant cannot run the model, or ""."""
        missing = [name for name in (*self.modules, *self.tools) if find_spec(name) is None]
        if missing:
            return f"not installed: {', '.join(missing)}; pip install 'tvm-qplugin[bench]'"
        return self.otherwise if self.given is not None and self.given(model) is None else ""

    def path(self, model: Model, folder: Path) -> Path:
        """The file or directory that is loaded."""
        found = self.given(model) if self.given is not None else None
        return found or folder / self.file

    def size(self, model: Model, folder: Path) -> int:
        """Bytes of that file, of its files, or with the weights beside it."""
        path = self.path(model, folder)
        files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
        if path.is_dir():
            files = [file for file in path.rglob("*") if file.is_file()]
        return sum(file.stat().st_size for file in files)


def _ours(file: str, io: str, layout: str) -> Contestant:
    return Contestant(run.start_ours, file, partial(run.make_ours, io=io, layout=layout))


def _litert(file: str, make: Make) -> Contestant:
    return Contestant(run.start_litert, file, make, modules=("ai_edge_litert",))


CONTESTANTS = {
    OURS: _ours("ours", "int8", "NHWC"),  # the interface of LiteRT's files
    "ours, float I/O": _ours("ours-float-io", "float", "NCHW"),
    "LiteRT int8": Contestant(
        run.start_litert,
        given=lambda model: model.tflite_path,
        modules=("ai_edge_litert",),
        otherwise="there is no file of this net by TFLite's converter",
    ),
    "LiteRT int8, our file": _litert("ours.tflite", run.make_tflite),
    "onnxruntime int8": Contestant(
        run.start_onnxruntime, "onnxruntime.onnx", run.make_onnxruntime, modules=("onnxruntime",)
    ),
    "OpenVINO int8": Contestant(
        run.start_openvino, "openvino.xml", run.make_openvino, modules=("openvino",), tools=("nncf",)
    ),
    "ours float": Contestant(run.start_ours, "ours-float", run.make_ours_float),
    "LiteRT float": _litert("float.tflite", run.make_tflite_float),
    "onnxruntime float": Contestant(
        run.start_onnxruntime, given=lambda model: model.path, modules=("onnxruntime",)
    ),
    "OpenVINO float": Contestant(
        run.start_openvino, "float.xml", run.make_openvino_float, modules=("openvino",)
    ),
}
USUAL = tuple(CONTESTANTS)
"""Who races where nobody is named."""

for _scheme in SCHEMES:
    _made = partial(run.make_scheme, scheme=_scheme)
    _file = partial(run.make_scheme_tflite, scheme=_scheme)
    CONTESTANTS[f"{OURS} {_scheme}"] = Contestant(run.start_ours, f"ours-{_scheme}", _made)
    CONTESTANTS[f"LiteRT {_scheme}"] = _litert(f"{_scheme}.tflite", _file)
