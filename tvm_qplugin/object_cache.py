"""Compiled kernels by what they were made of: a folder that processes share, bounded in size."""

from __future__ import annotations

import os
import re
import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tvm_qplugin.core.errors import CacheError

FOLDER = "TVM_QPLUGIN_CACHE"
SIZE = "TVM_QPLUGIN_CACHE_SIZE"
DEFAULT_LIMIT = 1 << 30
NOWHERE = Path(os.devnull)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DIGEST = 32  # bytes of sha256 in front of every entry
_SUFFIX = ".kernel"
_KEEP = 0.9  # of the limit, after entries were evicted
_ABANDONED = 3600  # seconds after which a file that was being written is nobody's


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=5)


@dataclass(frozen=True)
class Usage:
    """What a cache's folder holds."""

    folder: Path
    entries: int
    bytes: int
    limit: int


class ObjectCache:
    """Files by key; any number of processes and threads may use one folder.

    ``folder`` None: ``$TVM_QPLUGIN_CACHE``, else ``tvm_qplugin`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
    ``limit``, in bytes, None: ``$TVM_QPLUGIN_CACHE_SIZE``, else 1 GiB; 0 keeps nothing. An entry is a sha256
    and the content; one that was damaged is no entry. What cannot be written is not kept, and ``warn`` is
    told so once. ``found`` and ``missed`` count what was asked for.

    >>> ObjectCache(Path("nowhere")).get("00ff") is None
    True
    """

    def __init__(
        self, folder: Path | None = None, limit: int | None = None, warn: Callable[[str], object] = _warn
    ) -> None:
        """Nothing is read or written yet; CacheError for a size that is none."""
        self.folder = default_folder() if folder is None else folder
        self.limit = default_limit() if limit is None else limit
        self.found = self.missed = 0
        self._warn, self._broken = warn, False
        if self.folder == NOWHERE and self.limit:
            self._give_up("there is no home directory")

    def get(self, key: str) -> bytes | None:
        """The content of an entry, from now on the last used; None if there is none that is whole."""
        content = self._read(self._path(key), key) if self.limit else None
        self.found += content is not None
        self.missed += content is None
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keep ``content``, whole or not at all."""
        if not self.limit or self._broken:
            return
        path = self._path(key)
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.write_bytes(_seal(key, content) + content)
            os.replace(temporary, path)
        except OSError as error:
            _remove(temporary)
            self._give_up(f"{self.folder} cannot be written: {error.strerror or error}")

    def trim(self) -> int:
        """Remove the least recently used entries beyond the limit; how many bytes went."""
        entries = sorted(self._files(), key=lambda entry: entry[1].st_mtime)
        total, removed = sum(stat.st_size for _, stat in entries), 0
        if not self.limit or total <= self.limit:
            return 0
        for path, stat in entries:
            if total - removed <= _KEEP * self.limit:
                break
            removed += stat.st_size if _remove(path) else 0
        return removed

    def clear(self) -> Usage:
        """Remove every entry; what there was."""
        before = self.usage()
        for path, _ in self._files():
            _remove(path)
        return before

    def usage(self) -> Usage:
        """Count the entries."""
        sizes = [stat.st_size for _, stat in self._files()]
        return Usage(self.folder, len(sizes), sum(sizes), self.limit)

    def _read(self, path: Path, key: str) -> bytes | None:
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if data[:_DIGEST] != _seal(key, data[_DIGEST:]):
            _remove(path)
            return None
        with suppress(OSError):  # somebody else's folder: it is as old as it says
            os.utime(path)
        return data[_DIGEST:]

    def _give_up(self, reason: str) -> None:
        self._broken = True
        text = (
            f"compiled kernels are not kept ({reason}): name a folder for them in {FOLDER}, or set {SIZE}=0"
        )
        self._warn(text)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Paths of entries; what a process that died left half-written is removed."""
        for folder in _scan(self.folder):
            for file in _scan(folder.path) if len(folder.name) == 2 else ():
                with suppress(OSError):
                    stat = file.stat()
                    if file.name.endswith(_SUFFIX):
                        yield file.path, stat
                    elif file.name.startswith(".") and time.time() - stat.st_mtime > _ABANDONED:
                        _remove(file.path)


def default_folder() -> Path:
    """Where compiled kernels are kept."""
    if given := os.environ.get(FOLDER):
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "tvm_qplugin"
    except RuntimeError:  # a container's user without an entry in passwd
        return NOWHERE


def default_limit() -> int:
    """The most bytes that compiled kernels may take."""
    given = os.environ.get(SIZE, "")
    if not given:
        return DEFAULT_LIMIT
    found = re.fullmatch(r"(\d+)\s*([KMG]?)(i?B)?", given.strip(), re.IGNORECASE)
    if found is None:
        raise CacheError(
            f"{SIZE}={given!r}: expected a number of bytes, or one with K, M or G, for example 500M"
        )
    return int(found[1]) * _UNITS[found[2].upper()]


def _seal(key: str, content: bytes) -> bytes:
    """Of the key as well: an entry under another's name is damaged."""
    return sha256(key.encode() + content).digest()


def _scan(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder; nothing if it cannot be read, or is none."""
    with suppress(OSError), os.scandir(folder) as entries:
        yield from entries


def _remove(path: str | Path) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True
