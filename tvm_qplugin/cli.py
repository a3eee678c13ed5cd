"""The command line ``tvm-qplugin``: one command for each stage.

Results go to standard output, everything else to standard error. Exit codes: 0 success, 1 the input is
at fault, 2 the command line is, 130 Ctrl-C.
"""

from __future__ import annotations

import atexit
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tvm_qplugin import (
    cli_build,
    cli_cache,
    cli_check,
    cli_debug,
    cli_demo,
    cli_evaluate,
    cli_export,
    cli_profile,
    cli_quantize,
    cli_run,
    cli_tune,
)
from tvm_qplugin.console import say
from tvm_qplugin.core.errors import QPluginError
from tvm_qplugin.report import Report, plain

INTERRUPTED = 130
PIPE_WIDTH = 140
Function = Callable[..., Report]

app = typer.Typer(
    name="tvm-qplugin",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
)
_JSON = inspect.Parameter(
    "as_json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")],
)
_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
)


def main() -> None:
    """The entry point of the console script."""
    try:
        app()
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        sys.stdout.flush()
        atexit._run_exitfuncs()  # removes temporary files; threads that still measure are not waited for
        os._exit(INTERRUPTED)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"tvm-qplugin {version('tvm-qplugin')} (apache-tvm {version('apache-tvm')})")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the versions.")
    ] = False,
) -> None:
    """Make a trained model small and fast: ONNX in, a compiled int8 model out.

    First [bold]quantize[/] (float to int8, with some samples), then [bold]build[/] (to model.so), then
    [bold]run[/], [bold]bench[/], [bold]evaluate[/]. All of it on an embedded model: [bold]tvm-qplugin demo[/]

    Exit codes: 0 success, 1 wrong input (the message says what to do), 2 wrong command line, 130 Ctrl-C.
    """


def _command(name: str, function: Function) -> None:
    """Register a function that returns a report; it gets the options ``--json`` and ``--debug``."""
    signature = inspect.signature(function, eval_str=True)

    @wraps(function)
    def run(*args: Any, as_json: bool, debug: bool, **kwargs: Any) -> None:
        with _errors(debug):
            report = function(*args, **kwargs)
        _show(report, as_json)
        if report.failure:
            say(f"Error: {report.failure}", "red")
            raise typer.Exit(1)

    parameters = [*signature.parameters.values(), _JSON, _DEBUG]
    run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name, help=_flowing(function.__doc__ or ""))(run)


def _flowing(text: str) -> str:
    """A docstring whose paragraphs fit any width; only examples keep their lines."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(p if p.startswith("Example") else p.replace("\n", " ") for p in paragraphs)


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        print(json.dumps(plain(report.data), allow_nan=False))
        return
    console = Console(highlight=False, width=_width())
    for part in report.parts:
        console.print(part, soft_wrap=isinstance(part, str | Text))  # a command is copied in one piece


def _width() -> int | None:
    """None: rich finds it out. Into a pipe, as wide as the terminal that messages go to."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return None
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return PIPE_WIDTH


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Turn exceptions into a message and an exit code."""
    with _interruption() as pressed:
        try:
            yield
        except (typer.Exit, typer.BadParameter):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if pressed or isinstance(error, KeyboardInterrupt):
                say("Interrupted; nothing was left half-written.", "yellow")
                raise typer.Exit(INTERRUPTED) from None
            if debug:
                traceback.print_exc()
            _explain(error, debug)
            raise typer.Exit(1) from None


def _explain(error: Exception, debug: bool) -> None:
    if isinstance(error, QPluginError):
        say(f"Error: {error}", "red")
    elif isinstance(error, OSError):
        say(f"Error: {error}; check the path, its permissions and the space on the disk", "red")
    elif isinstance(error, MemoryError):
        say("Error: not enough memory for this model; close other programs or use a smaller model", "red")
    else:
        reason = (str(error).strip().splitlines() or [""])[-1]
        say(f"Error: this should not have happened: {type(error).__name__}: {reason}", "red")
        say("Please report it with the output of the same command and --debug.", "dim")
        return
    if not debug:
        say("(--debug shows the traceback)", "dim")


@contextmanager
def _interruption() -> Iterator[list[int]]:
    """Note Ctrl-C: inside a pass TVM turns KeyboardInterrupt into another exception."""
    pressed: list[int] = []

    def note(number: int, _frame: Any) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


_COMMANDS: dict[str, Function] = {
    "demo": cli_demo.demo,
    "quantize": cli_quantize.quantize,
    "tune": cli_tune.tune,
    "build": cli_build.build,
    "export": cli_export.export,
    "run": cli_run.run,
    "bench": cli_profile.bench,
    "why-slow": cli_profile.why_slow,
    "evaluate": cli_evaluate.evaluate,
    "debug": cli_debug.debug,
    "inspect": cli_build.inspect,
    "check": cli_check.check,
    "calibrate": cli_quantize.calibrate,
    "merge-tables": cli_quantize.merge_tables,
    "cache": cli_cache.cache,
}
app.callback(help=_flowing(options.__doc__ or ""))(options)
for _name, _function in _COMMANDS.items():
    _command(_name, _function)
