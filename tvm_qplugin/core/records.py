"""The tuning database: a file of JSON lines, each a measured kernel, safe against kill -9 at any moment."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tvm_qplugin.core.errors import DatabaseError
from tvm_qplugin.core.tunable import Knobs, canonical, is_knobs

FORMAT = 1
CLEARLY = 0.95  # share of the default's time below which a single measurement is believed


@dataclass(frozen=True)
class Record:
    """One line of the database; a kernel gets one only after its output was compared with the oracle's.

    ``task``: canonical JSON of shapes, dtypes, geometry and instruction set (``tunable.task_of``). ``role``:
    "default" (what the rule chooses by itself), "trial", or "final": the outcome of a repeated comparison of
    the best trials with the default, whose ``knobs`` are None where the default stands. ``seconds``: shortest
    time of a call on ``threads`` threads of ``cpu``; ``default_seconds``: that of the default, in the same
    comparison; ``trials``: how many preceded it.
    """

    task: str
    role: str
    knobs: Knobs | None
    seconds: float
    cpu: str
    threads: int = 1
    default_seconds: float | None = None
    trials: int | None = None

    def dumps(self) -> str:
        """The line, without its end."""
        data = {"format": FORMAT, **asdict(self), "task": json.loads(self.task)}
        return json.dumps({key: value for key, value in data.items() if value is not None}, allow_nan=False)

    @classmethod
    def loads(cls, line: bytes) -> Record:
        """The inverse of ``dumps``; ValueError for anything else."""
        data = json.loads(line)
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"no object of format {FORMAT}")
        if unknown := set(data) - set(cls.__dataclass_fields__):
            raise ValueError(f"unknown field {', '.join(sorted(unknown))}")
        record = cls(**{"knobs": None, **data, "task": canonical(data.get("task"))})
        record.check()
        return record

    def check(self) -> None:
        """Raise ValueError unless the fields have their types."""
        right = (
            self.role in ("default", "trial", "final")
            and (is_knobs(self.knobs) or (self.knobs is None and self.role == "final"))
            and all(type(x) in (int, float) and x > 0 for x in (self.seconds, self.default_seconds or 1))
            and isinstance(self.cpu, str)
            and type(self.threads) is int
        )
        if not right:
            raise ValueError("a field has the wrong type")


class Database:
    """The records of a file, in order; a missing file has none.

    A last line without its end was torn by a crash: it is left out, and ``torn`` says so. Every other line
    that is no record raises DatabaseError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.torn = False
        self.records: list[Record] = []
        self._by_task: dict[str, list[Record]] = {}
        self._file: int | None = None
        for record in self._load():
            self._add(record)

    def append(self, record: Record) -> None:
        """Write one record; when this returns, it is on the disk. Raises DatabaseError."""
        line = record.dumps().encode() + b"\n"
        try:
            _write_line(self._opened(), line)
        except OSError as error:
            raise DatabaseError(
                f"{self.path}: a record could not be written ({error.strerror or error}); check the space on "
                "the disk and the permissions: all records before it are safe"
            ) from None
        self._add(record)

    def of(self, task: str) -> list[Record]:
        """The records of a task, in order."""
        return self._by_task.get(task, [])

    def measured(self, task: str, cpu: str, threads: int) -> dict[str, Record]:
        """Defaults and trials under these conditions, the last of each setting, by its canonical JSON."""
        fitting = (r for r in self.of(task) if (r.cpu, r.threads) == (cpu, threads) and r.role != "final")
        return {canonical(record.knobs): record for record in fitting}

    def final(self, task: str, cpu: str, threads: int) -> Record | None:
        """The last outcome under these conditions."""
        found = [r for r in self.of(task) if (r.cpu, r.threads, r.role) == (cpu, threads, "final")]
        return found[-1] if found else None

    def choice(self, task: str, cpu: str) -> Record | None:
        """The record whose knobs to use: of this CPU if there are any, else of another; None: no record.

        The last outcome counts; without one, the fastest trial if it is clearly faster than the default.
        """
        records = self.of(task)
        records = [record for record in records if record.cpu == cpu] or records
        finals = [record for record in records if record.role == "final"]
        if finals:
            return finals[-1]
        defaults = [record.seconds for record in records if record.role == "default"]
        trials = [record for record in records if record.role == "trial"]
        best = min(trials, key=lambda record: record.seconds, default=None)
        clear = best is not None and bool(defaults) and best.seconds < CLEARLY * min(defaults)
        return best if clear else None

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _add(self, record: Record) -> None:
        self.records.append(record)
        self._by_task.setdefault(record.task, []).append(record)

    def _load(self) -> Iterable[Record]:
        try:
            *lines, rest = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise DatabaseError(f"{self.path} cannot be read ({error.strerror}): name another file") from None
        self.torn = bool(rest)
        for number, line in enumerate(lines, 1):
            try:
                yield Record.loads(line)
            except (ValueError, TypeError, RecursionError) as error:
                raise DatabaseError(
                    f"{self.path}, line {number}: not a tuning record ({error}); expected the JSON lines "
                    "that `tvm-qplugin tune` writes: name another file, or delete this line"
                ) from None

    def _opened(self) -> int:
        """The file, open for appending, after its torn end was cut off."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            with _locked(self._file):
                _cut_torn_end(self._file)
        return self._file


@contextmanager
def _locked(file: int) -> Iterator[None]:
    """Let no other process that tunes into the same file write meanwhile."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _write_line(file: int, line: bytes) -> None:
    """Append a line in one piece, or leave the file as it was and raise OSError."""
    with _locked(file):
        start = os.lseek(file, 0, os.SEEK_END)
        if os.write(file, line) != len(line):
            os.ftruncate(file, start)
            raise OSError("the disk is full")
        os.fsync(file)


def _cut_torn_end(file: int) -> None:
    """Truncate to the last whole line."""
    end = os.lseek(file, 0, os.SEEK_END)
    whole = os.pread(file, end, 0).rfind(b"\n") + 1
    if whole < end:
        os.ftruncate(file, whole)
