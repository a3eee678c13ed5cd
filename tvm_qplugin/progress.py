"""The progress bar of what takes a while."""

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
    def __init__(self, unit: str) -> None:
        """``unit``: what is counted."""
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Items per second."""
        return Text(f"{task.speed:.1f} {self.unit}/s" if task.speed else "")


@contextmanager
def progress_bar(
    wanted: bool,
    items: Any,
    limit: int | None = None,
    label: str = "calibrate",
    unit: str = "samples",
    console: Console | None = None,
) -> Iterator[Callable[[], object]]:
    """A bar on standard error with speed and remaining time; gives the function that moves it by one.

    Nothing is drawn unless ``wanted`` and standard error is a terminal.
    """
    console = console or Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda: None
        return
    known = len(items) if hasattr(items, "__len__") else None
    total = min((n for n in (known, limit) if n is not None), default=None)
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(unit),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total if known is not None else None)
        yield lambda: progress.advance(task)
