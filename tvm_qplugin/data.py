"""Samples from files, read one at a time: .npz, .npy, folders of images, any iterable."""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from zipfile import BadZipFile, ZipFile

import numpy as np
from PIL import Image, UnidentifiedImageError

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.preprocess import Preprocess, as_preprocess

IMAGES = (".jpg", ".jpeg", ".png", ".bmp")
T = TypeVar("T")
Path_ = str | os.PathLike[str]


@dataclass(frozen=True)
class Source(Generic[T]):
    """Samples that can be counted and read again and again; only one is in memory."""

    count: int
    read: Callable[[], Iterator[T]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[T]:
        return self.read()


def open_samples(
    source: Path_ | Iterable[Any],
    inputs: Sequence[str] = (),
    preprocess: str | Preprocess | None = None,
    *,
    key: str | None = None,
) -> Iterable[Any]:
    """Samples of a ``.npy``, a ``.npz``, a folder of images (recursive, sorted), or ``source`` itself.

    ``inputs`` are the names of the model's inputs: arrays of these names in a ``.npz`` are taken (several:
    a sample is a mapping), else ``x``, else its only array; ``key`` names another one. Axis 0 counts the
    samples. An iterable is given through, preprocessed if asked. Raises CalibrationError, some
    of it only when the sample at fault is read.
    """
    how = as_preprocess(preprocess)
    if not isinstance(source, str | os.PathLike):
        return source if how is None else _mapped(source, how)
    path = _existing(source)
    if path.is_dir():
        files = _images(path)
        return Source(len(files), lambda: (_decode(file, how) for file in files))
    if path.suffix == ".npy":
        rows = _load_npy(path)
        return _processed(Source(len(rows), lambda: (np.array(row) for row in rows)), how)
    if path.suffix == ".npz":
        return _open_npz(path, _choose(path, inputs, key), how)
    raise CalibrationError(f"{path}: expected a folder of images, .npz or .npy")


def open_labelled(
    source: Path_,
    inputs: Sequence[str] = (),
    preprocess: str | Preprocess | None = None,
    *,
    key: str | None = None,
    labels: str = "y",
) -> Source[tuple[Any, Any]]:
    """Pairs ``(sample, label)``: a folder with ``labels.csv`` or a ``.npz`` with an array ``labels``.

    ``labels.csv`` has a header with ``file`` and ``class_index``; images that it does not list are left
    out. Everything else is as in ``open_samples``.
    """
    path, how = _existing(source), as_preprocess(preprocess)
    if path.is_dir():
        table = _read_labels(path)
        return Source(len(table), lambda: ((_decode(file, how), label) for file, label in table))
    if path.suffix != ".npz":
        raise CalibrationError(f"{path}: labels need a folder with labels.csv or a .npz with {labels!r}")
    headers = _headers(path)
    if labels not in headers:
        raise CalibrationError(f"{path} has no labels {labels!r}; it holds {_listing(headers)}")
    samples = _open_npz(path, _choose(path, inputs, key, without=labels), how)
    values = _open_npz(path, {"": labels}, None)
    if len(samples) != len(values):
        raise CalibrationError(f"{path}: {len(samples)} samples but {len(values)} labels")
    return Source(len(samples), lambda: zip(samples, (v[()] for v in values), strict=True))


def _existing(source: Path_) -> Path:
    path = Path(source)
    if not path.exists():
        raise CalibrationError(f"{path} does not exist: give a folder of images, a .npz or a .npy")
    return path


def _mapped(source: Iterable[Any], how: Preprocess) -> Iterable[Array]:
    if isinstance(source, Sized):
        return Source(len(source), lambda: map(how.array, map(np.asarray, source)))
    return map(how.array, map(np.asarray, source))


def _processed(samples: Source[Array], how: Preprocess | None) -> Source[Array]:
    return samples if how is None else Source(len(samples), lambda: map(how.array, samples))


def _images(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES)
    if not files:
        raise CalibrationError(f"{folder} holds no images ({', '.join(IMAGES)}): give another folder")
    return files


def _decode(file: Path, how: Preprocess | None) -> Array:
    """An image as float32; without preprocessing [H,W,C] as uint8."""
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB")) if how is None else how.image(image)
    except UnidentifiedImageError:
        raise CalibrationError(f"{file} is not an image: remove it from the folder") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, CalibrationError):
            raise
        raise CalibrationError(f"{file} cannot be decoded ({error}): mend or remove it") from None


def _read_labels(folder: Path) -> list[tuple[Path, int]]:
    path = folder / "labels.csv"
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [(folder / row["file"], int(row["class_index"])) for row in csv.DictReader(stream)]
    except OSError as error:
        raise CalibrationError(
            f"{path}: {error.strerror}; it must list file,class_index for every image"
        ) from None
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise CalibrationError(
            f"{path} is not understood ({error!r}): "
            "expected a header with file and class_index, and whole numbers"
        ) from None


def _load_npy(path: Path) -> Array:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(
            f"{path} is not a plain .npy array ({error}): save it with numpy.save"
        ) from None
    if not isinstance(rows, np.ndarray) or rows.ndim == 0:
        raise CalibrationError(f"{path}: expected an array whose first axis counts samples")
    return rows


Header = tuple[tuple[int, ...], bool, np.dtype[Any]]


def _headers(path: Path) -> dict[str, Header]:
    """Shape, Fortran order and dtype of every array of a .npz, without reading the arrays."""
    try:
        with ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name.removesuffix(".npy"): _header(archive, name) for name in names}
    except (BadZipFile, OSError, ValueError, EOFError, zlib.error) as error:
        raise CalibrationError(f"{path} is not a sound .npz ({error}): save it with numpy.savez") from None


def _header(archive: ZipFile, name: str) -> Header:
    with archive.open(name) as stream:
        return _read_header(stream)


def _read_header(stream: Any) -> Header:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return tuple(shape), bool(fortran), dtype


def _choose(path: Path, inputs: Sequence[str], key: str | None, without: str = "") -> dict[str, str]:
    """Which array feeds which input; the input "" stands for the only one."""
    headers = {name: header for name, header in _headers(path).items() if name != without}
    if key is not None:
        candidates = [key]
    elif inputs and all(name in headers for name in inputs):
        return {name: name for name in inputs} if len(inputs) > 1 else {"": inputs[0]}
    else:
        candidates = ["x"] if "x" in headers else list(headers)[: len(headers) == 1]
    if len(inputs) > 1 or not candidates or candidates[0] not in headers:
        wanted = repr(key) if key is not None else ", ".join(map(repr, inputs)) or "'x'"
        raise CalibrationError(
            f"{path} has no array for {wanted}; it holds {_listing(headers)}: "
            "name the arrays like the model's inputs, or say which one with --key (Python: key=)"
        )
    return {"": candidates[0]}


def _listing(headers: dict[str, Header]) -> str:
    return (
        ", ".join(f"{name} {dtype}{list(shape)}" for name, (shape, _, dtype) in headers.items()) or "nothing"
    )


def _open_npz(path: Path, arrays: dict[str, str], how: Preprocess | None) -> Source[Any]:
    """Rows of the named arrays: as they are for the input "", else as a mapping."""
    headers = _headers(path)
    for name in arrays.values():
        shape, _, dtype = headers[name]
        if dtype.hasobject:
            raise CalibrationError(
                f"{path}: {name!r} holds pickled objects, which are not read; save numbers"
            )
        if not shape:
            raise CalibrationError(f"{path}: {name!r} is a single number; its first axis must count samples")
    counts = {name: headers[name][0][0] for name in arrays.values()}
    if len(set(counts.values())) > 1:
        raise CalibrationError(f"{path}: the arrays differ in their number of samples: {counts}")

    def read() -> Iterator[Any]:
        sources = [_processed(_rows(path, name, headers[name]), how) for name in arrays.values()]
        for row in zip(*sources, strict=True):
            yield row[0] if "" in arrays else dict(zip(arrays, row, strict=True))

    return Source(next(iter(counts.values())), read)


def _rows(path: Path, name: str, header: Header) -> Source[Array]:
    """The array along axis 0, unpacked as it is read."""
    shape, fortran, dtype = header

    def read() -> Iterator[Array]:
        with ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            _read_header(stream)
            if fortran and len(shape) > 1:
                data = np.frombuffer(stream.read(), dtype).reshape(shape[::-1])
                yield from data.T
                return
            size = int(np.prod(shape[1:], dtype="int64")) * dtype.itemsize
            for _ in range(shape[0]):
                row = stream.read(size)
                if len(row) != size:
                    raise ValueError("it ends early")
                yield np.frombuffer(row, dtype).reshape(shape[1:])

    return Source(shape[0], lambda: _guarded(path, name, read()))


def _guarded(path: Path, name: str, rows: Iterator[Array]) -> Iterator[Array]:
    try:
        yield from rows
    except (BadZipFile, OSError, ValueError, EOFError, zlib.error) as error:
        raise CalibrationError(
            f"{path}: array {name!r} is damaged ({error}): copy or save it again"
        ) from None
