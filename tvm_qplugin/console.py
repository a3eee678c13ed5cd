"""What a command says while it works: on standard error, drawn only on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def messages() -> Console:
    """The console for everything that is not a result."""
    return Console(stderr=True, highlight=False)


def say(text: str, style: str = "") -> None:
    """One message; broken into lines on a terminal only, so that logs can be searched."""
    console = messages()
    console.print(Text(text, style), soft_wrap=not console.is_terminal)


@contextmanager
def step(label: str, *, spin: bool = True) -> Iterator[None]:
    """Name a piece of work while it runs, and say how long it took when it is done.

    ``spin`` False: what runs inside draws a progress bar of its own.
    """
    start = time.perf_counter()
    console = messages()
    if spin and console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            progress.add_task(label, total=None)
            yield
    else:
        if console.is_terminal:
            say(f"{label} ...", "dim")
        yield
    say(f"{label:<28} {time.perf_counter() - start:6.1f} s", "dim")


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[], object]]:
    """A bar with the remaining time; gives the function that moves it by one."""
    console = messages()
    if not console.is_terminal:
        yield lambda: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)
