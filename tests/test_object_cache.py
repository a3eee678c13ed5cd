"""The cache's folder: whole entries or none, bounded, shared, and never a reason to fail."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tvm_qplugin.core.errors import CacheError
from tvm_qplugin.object_cache import DEFAULT_LIMIT, FOLDER, NOWHERE, SIZE, ObjectCache

SEAL = 32


@pytest.fixture
def cache(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "kernels", limit=10_000)


def only_file(cache: ObjectCache) -> Path:
    (path,) = (path for path in cache.folder.rglob("*") if path.is_file())
    return path


def age(cache: ObjectCache, key: str, seconds: float) -> None:
    (path,) = cache.folder.rglob(f"{key}*")
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_what_was_put_is_found(cache):
    assert cache.get("key") is None
    cache.put("key", b"object")
    assert cache.get("key") == b"object"
    assert (cache.found, cache.missed) == (1, 1)
    assert (cache.usage().entries, cache.usage().bytes) == (1, SEAL + len(b"object"))


def test_another_cache_of_the_folder_finds_it(cache):
    cache.put("key", b"")
    assert ObjectCache(cache.folder).get("key") == b""


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"", lambda d: d[::-1]])
def test_a_damaged_entry_is_none_and_goes(cache, damage):
    cache.put("key", b"object")
    path = only_file(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("key") is None and not path.exists()
    cache.put("key", b"object")
    assert cache.get("key") == b"object"


def test_an_entry_under_the_key_of_another_is_none(cache):
    cache.put("key1", b"object")
    path = only_file(cache)
    path.rename(path.with_name(path.name.replace("key1", "key2")))
    assert cache.get("key2") is None


def test_the_least_recently_used_go_first(cache):
    for index in range(12):
        cache.put(f"key{index:02}", bytes(1000 - SEAL))
        age(cache, f"key{index:02}", 1000 - index)
    assert cache.get("key00") is not None  # used: now the youngest
    assert cache.trim() == 3000
    left = {f"key{index:02}" for index in range(12) if cache.get(f"key{index:02}")}
    assert left == {"key00", *(f"key{index:02}" for index in range(4, 12))}


def test_nothing_goes_below_the_limit(cache):
    cache.put("key", bytes(10_000 - SEAL))
    assert cache.trim() == 0 and cache.get("key") is not None


def test_a_limit_of_zero_keeps_nothing(tmp_path):
    cache = ObjectCache(tmp_path / "kernels", limit=0)
    cache.put("key", b"object")
    assert cache.get("key") is None and not cache.folder.exists() and cache.missed == 1


def test_a_limit_of_zero_removes_nothing(cache):
    cache.put("key", b"object")
    unused = ObjectCache(cache.folder, limit=0)
    assert unused.trim() == 0 and unused.get("key") is None
    assert cache.get("key") == b"object"


def test_clear_says_what_there_was(cache):
    cache.put("key", bytes(100))
    assert cache.clear().entries == 1
    assert cache.get("key") is None and cache.usage().entries == 0


def test_half_written_files_are_no_entries_and_go_when_they_are_old(cache):
    cache.put("key", b"object")
    young, old = (only_file(cache).with_name(name) for name in (".young", ".old"))
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert cache.usage().entries == 1
    assert young.exists() and not old.exists()


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path):
    (tmp_path / "file").write_text("no folder")
    cache = ObjectCache(tmp_path / "file")
    with pytest.warns(RuntimeWarning, match=f"not kept.*file.*{FOLDER}") as caught:
        cache.put("key1", b"object")
        cache.put("key2", b"object")
    assert len(caught) == 1 and cache.get("key1") is None


def test_a_full_disk_is_one_warning_and_leaves_no_file(cache, monkeypatch):
    def full(_path: Path, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said: list[str] = []
    cache = ObjectCache(cache.folder, warn=said.append)
    cache.put("key0", b"object")
    monkeypatch.setattr(Path, "write_bytes", full)
    for key in ("key1", "key2"):
        cache.put(key, b"object")
    assert len(said) == 1 and "No space left" in said[0]
    assert cache.get("key0") == b"object" and only_file(cache)


def test_an_entry_whose_date_cannot_be_changed_is_found(cache, monkeypatch):
    def refuse(*_args: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    cache.put("key", b"object")
    monkeypatch.setattr(os, "utime", refuse)
    assert cache.get("key") == b"object"


def test_threads_share_a_folder(tmp_path):
    def work(index: int) -> bytes | None:
        cache = ObjectCache(tmp_path / "kernels")
        cache.put("key", bytes([7]) * 5000)
        cache.trim()
        return cache.get("key")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(64))) == {bytes([7]) * 5000}
    assert ObjectCache(tmp_path / "kernels").usage().entries == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", DEFAULT_LIMIT), ("0", 0), ("5000", 5000), ("2K", 2048), ("3 MiB", 3 << 20), ("1gb", 1 << 30)],
)
def test_the_size_from_the_environment(monkeypatch, text, wanted):
    monkeypatch.setenv(SIZE, text)
    assert ObjectCache().limit == wanted


@pytest.mark.parametrize("text", ["-1", "much", "1.5G", "1T"])
def test_a_size_that_is_none(monkeypatch, text):
    monkeypatch.setenv(SIZE, text)
    with pytest.raises(CacheError, match=f"{SIZE}='{text}'.*500M"):
        ObjectCache()


def test_the_folder_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert ObjectCache().folder == tmp_path
    monkeypatch.delenv(FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ObjectCache().folder == tmp_path / "xdg" / "tvm_qplugin"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification: ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ObjectCache().folder == tmp_path / ".cache" / "tvm_qplugin"


def test_without_a_home_nothing_is_kept(monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (FOLDER, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(RuntimeWarning, match="no home directory"):
        cache = ObjectCache()
    cache.put("key", b"object")
    assert cache.folder == NOWHERE and cache.get("key") is None
