"""Kernels from tuning records: the rule that is asked before all others."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import tvm
from tvm.ir import IRModule

from tvm_qplugin.core.attrs import TUNED, Implementation, KernelCall
from tvm_qplugin.core.errors import DatabaseError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.records import Database
from tvm_qplugin.core.tunable import Knobs, Tunable, is_setting, task_of
from tvm_qplugin.passes import ir
from tvm_qplugin.targets import tunables_of

Databases = str | os.PathLike[str] | None

NONE = "none"
SHIPPED = Path(__file__).parent / "schedules" / "db"


def user_database() -> Path:
    """Where ``tune`` keeps records unless told otherwise: ``QPLUGIN_DATABASE``, or the user's data folder."""
    if named := os.environ.get("QPLUGIN_DATABASE"):
        return Path(named)
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "tvm_qplugin" / "tuning.jsonl"


def databases(explicit: Databases = None) -> list[Database]:
    """The databases to look into, in this order: the one named, the user's own, those that are shipped.

    ``explicit="none"``: no database at all. Raises DatabaseError if the named one does not exist, or any
    cannot be read.
    """
    if explicit == NONE:
        return []
    if explicit is not None and not Path(explicit).is_file():
        raise DatabaseError(
            f"database {str(explicit)!r} does not exist: give a file that `tvm-qplugin tune` wrote, "
            f"or {NONE!r} to use the defaults"
        )
    named = [] if explicit is None else [Path(explicit)]
    return [_read(path) for path in (*named, user_database(), *sorted(SHIPPED.glob("*.jsonl")))]


def recorded_rule(
    profile: TargetProfile, database: Databases = None
) -> Callable[[KernelCall, tvm.target.Target], Implementation | None]:
    """A schedule rule that builds kernels as records say; None for calls without a record."""
    known, tunables = databases(database), tunables_of(profile)

    def rule(call: KernelCall, target: tvm.target.Target) -> Implementation | None:
        for make in tunables if known else ():
            tunable = make(call, target)
            knobs = None if tunable is None else _knobs(known, tunable, call, target)
            if tunable is not None and knobs is not None:
                made = tunable.implement(knobs)
                return None if made is None else Implementation(made.func.with_attr(TUNED, True), made.args)
        return None

    return rule


def tuned_calls(lowered: IRModule) -> int:
    """How many kernel calls of a lowered module use kernels from records."""
    called = [value for _, value in ir.bindings(ir.main_function(lowered))]
    functions = [lowered[value.args[0]] for value in called if ir.op_name(value) == "relax.call_tir"]
    return sum(bool(func.attrs and TUNED in func.attrs) for func in functions)


def _knobs(
    known: list[Database], tunable: Tunable, call: KernelCall, target: tvm.target.Target
) -> Knobs | None:
    """The setting of the first database that has a record; None: the default stands."""
    task, cpu = task_of(call, tunable.isa), str(target.attrs.get("mcpu", ""))
    record = next(filter(None, (database.choice(task, cpu) for database in known)), None)
    if record is None or record.knobs is None:
        return None
    return record.knobs if is_setting(record.knobs, tunable) else None


def _read(path: Path) -> Database:
    try:
        state = path.stat()
    except OSError:
        return Database(path)
    return _cached(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _cached(path: Path, _changed: int, _size: int) -> Database:
    return Database(path)
