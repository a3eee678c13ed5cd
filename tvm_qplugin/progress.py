"""The progress bar of calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Samples per second."""
        return Text(f"{task.speed:.1f} samples/s" if task.speed else "")


@contextmanager
def progress_bar(
    wanted: bool, samples: Any, limit: int | None, console: Console | None = None
) -> Iterator[Callable[[], object]]:
    """A bar on standard error with speed and remaining time; gives the function that moves it by one.

    Nothing is drawn unless ``wanted`` and standard error is a terminal.
    """
    console = console or Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda: None
        return
    known = len(samples) if hasattr(samples, "__len__") else None
    total = min((n for n in (known, limit) if n is not None), default=None)
    columns = (
        TextColumn("calibrate"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("calibrate", total=total if known is not None else None)
        yield lambda: progress.advance(task)
