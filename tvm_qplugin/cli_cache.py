"""The command ``cache``."""

from __future__ import annotations

from typing import Annotated

import typer

from tvm_qplugin import report
from tvm_qplugin.object_cache import FOLDER, SIZE, ObjectCache
from tvm_qplugin.report import Report


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove every kernel.")] = False,
) -> Report:
    """Show where compiled kernels are kept between builds, how many, and how large they are.

    TVM_QPLUGIN_CACHE names the folder, TVM_QPLUGIN_CACHE_SIZE the most it may hold (1G; 0: keep nothing). The
    kernels that were not used for longest go first.

    Example:
      tvm-qplugin cache --clear
    """
    kept = ObjectCache()
    usage = kept.clear() if clear else kept.usage()
    data = {
        "folder": str(usage.folder),
        "entries": usage.entries,
        "bytes": usage.bytes,
        "limit_bytes": usage.limit,
        "cleared": clear,
    }
    what = "removed" if clear else f"of at most {report.size(usage.limit)}"
    lines = [
        report.line(f"{usage.entries} kernels, {report.size(usage.bytes)} {what}: {usage.folder}"),
        report.line(f"{FOLDER} names another folder, {SIZE} another size", "dim"),
    ]
    return Report(data, tuple(lines))
