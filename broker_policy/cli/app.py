"""What every ``mas`` command shares: the application, ``--json``, exit codes, errors.

A command module registers a function, plain or ``async``::

    @command("down", example="mas down --folder .mas")
    async def down(*, folder: Folder = DEFAULT_FOLDER, json: Json = False) -> None:
        \"\"\"Stop what `mas up` started.\"\"\"
        out = Output(json=json)
        ...
        out.result({"stopped": True}, "stopped")

A ``MasError`` (or ``ValueError``, ``OSError``) that it raises is printed and becomes its exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import getpass
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, cast

import orjson
import typer

from broker_policy.cli.terminated import tidied
from broker_policy.embedded.errors import AlreadyRunning, NotRunning
from broker_policy.printable import legible
from mas_nats.errors import MasError, OutcomeUnknown, Refused, RequestTimeout, Unavailable

if TYPE_CHECKING:  # rich takes a while, and a program that calls `mas` has no use for it
    from rich.console import Console
    from rich.table import Table


class ExitCode(IntEnum):
    """What the exit status of ``mas`` says."""

    OK = 0
    FAILED = 1  # refused, or it did not work
    USAGE = 2
    UNREACHABLE = 3  # nothing runs there, or nobody answers; nothing happened
    ALREADY_RUNNING = 4
    UNKNOWN = 5  # it may have happened; repeat with the same id
    TIMEOUT = 6  # accepted, but no reply came in time
    ALTERED = 7  # the audit does not verify
    INTERRUPTED = 130


_EXIT_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (AlreadyRunning, ExitCode.ALREADY_RUNNING),
    (NotRunning, ExitCode.UNREACHABLE),
    (Unavailable, ExitCode.UNREACHABLE),
    (OutcomeUnknown, ExitCode.UNKNOWN),
    (RequestTimeout, ExitCode.TIMEOUT),
    (BrokenPipeError, ExitCode.FAILED),  # of standard output: whoever read it has gone
    (ConnectionError, ExitCode.UNREACHABLE),
)

_WIDEST = 1000
"""Columns of a table: it is as wide as what is in it, and a narrow terminal breaks its lines."""

MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "refused or failed",
    ExitCode.USAGE: "wrong usage",
    ExitCode.UNREACHABLE: "nothing runs there or nobody answers",
    ExitCode.ALREADY_RUNNING: "already running",
    ExitCode.UNKNOWN: "outcome unknown (repeat with the same id)",
    ExitCode.TIMEOUT: "no reply in time",
    ExitCode.ALTERED: "the audit does not verify",
    ExitCode.INTERRUPTED: "interrupted",
}
"""What each exit status means, in the words of the help and of the reference."""

_EPILOG = f"Exit status: {', '.join(f'{int(code)} {meaning}' for code, meaning in MEANINGS.items())}."

_UsageError = cast("type[Exception]", typer.BadParameter.__bases__[0])
"""What a wrong command line raises: of click, which newer versions of typer have in themselves."""


_PLAIN: dict[str, Any] = {"highlight": False, "emoji": False}


class _Commands(typer.core.TyperGroup):
    """All commands; what is wrong about a command line is told as JSON, too, where that is asked for."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        with _wrong_usage_told(json="--json" in args):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _wrong_usage_told(json="--json" in ctx.args):
            return super().invoke(ctx)


@contextlib.contextmanager
def _wrong_usage_told(*, json: bool) -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        if not json:
            raise
        text = cast("Any", error).format_message()
        Output(json=True).fail({"type": "UsageError", "text": text, "exit_code": ExitCode.USAGE})


app = typer.Typer(
    name="mas",
    cls=_Commands,
    help="A governed messaging layer for multi-agent systems, on NATS JetStream.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Folder = Annotated[Path, typer.Option("--folder", help="The folder with servers, keys and certificates.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="The multi-agent system.")]


class Output:
    """How a command speaks: progress to standard error, its one result to standard output.

    Agents choose much of what is said. What a terminal would obey is escaped there; a pipe or a file gets all
    as it is.
    """

    def __init__(self, *, json: bool) -> None:
        self.json = json

    def progress(self, line: str) -> None:
        """Say how far it is; never part of the result."""
        _progress().print(_fit(line, sys.stderr), markup=False, style="dim")

    def warn(self, line: str) -> None:
        """Say what should worry, beside the result."""
        _progress().print(_fit(line, sys.stderr), markup=False, style="yellow")

    def result(self, document: Mapping[str, Any], text: str | Table) -> None:
        """Print the result: ``document`` with ``--json``, else ``text``, or a table in its full width."""
        if self.json:
            self.write(orjson.dumps(document, option=orjson.OPT_INDENT_2, default=str).decode() + "\n")
        elif isinstance(text, str):
            _console(soft_wrap=True).print(_fit(text, sys.stdout), markup=False)
        else:
            _console(width=_WIDEST).print(text)

    def line(self, document: Mapping[str, Any]) -> None:
        """Print one of several results as it comes: a JSON line."""
        self.write(orjson.dumps(document, default=str).decode() + "\n")

    def write(self, text: str) -> None:
        """Print a part of the result at once, without an end of line."""
        sys.stdout.write(_fit(text, sys.stdout))
        sys.stdout.flush()

    def fail(self, error: Mapping[str, Any]) -> NoReturn:
        """Print why it did not work (as ``describe`` says it) and exit."""
        try:
            if self.json:
                self.result({"error": error}, "")
                raise typer.Exit(error["exit_code"])
        except OSError:  # nobody takes it, as where the disk is full
            pass
        said = _fit(f"error: {error['text']}", sys.stderr)
        _progress().print(said, markup=False, style="red")
        raise typer.Exit(error["exit_code"])


def _progress() -> Console:
    from broker_policy.cli.unheard import ProgressConsole  # noqa: PLC0415 - see above

    return ProgressConsole(stderr=True, soft_wrap=True, **_PLAIN)


def _console(**options: Any) -> Console:
    from rich.console import Console  # noqa: PLC0415 - see above

    return Console(**_PLAIN, **options)


def _fit(text: str, stream: TextIO) -> str:
    """``text`` as ``stream`` may have it."""
    return legible(text) if stream.isatty() else text


def operator_name() -> str:
    """Who runs this, as the audit shall name it: the name in this system, which proves nothing."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        return f"uid {os.getuid()}"


def describe(error: BaseException) -> dict[str, Any]:
    """An error as JSON."""
    out: dict[str, Any] = {"type": type(error).__name__, "text": str(error), "exit_code": exit_code(error)}
    if isinstance(error, Refused):
        verdict = error.verdict
        out |= {
            "decision": verdict.decision,
            "step": verdict.step,
            "rule": verdict.rule,
            "reason": verdict.reason,
            "fix": verdict.fix,
            "message_id": verdict.message_id,
        }
        if verdict.retry_after:
            out["retry_after"] = verdict.retry_after
    if isinstance(error, OutcomeUnknown):
        out["message_id"] = error.message_id
    return out


def exit_code(error: BaseException) -> ExitCode:
    """The exit status for an error."""
    for kind, code in _EXIT_CODES:
        if isinstance(error, kind):
            return code
    return ExitCode.FAILED


def command(
    name: str, *, example: str, group: typer.Typer = app, tidies: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Register a command, plain or ``async``, with an example for its help.

    One that ``tidies`` up when it is interrupted does so at SIGTERM, too.
    """

    def register(function: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                with tidied() if tidies else contextlib.nullcontext():
                    if inspect.iscoroutinefunction(function):
                        asyncio.run(function(*args, **kwargs))
                    else:
                        function(*args, **kwargs)
            except (MasError, OSError, ValueError) as error:
                Output(json=bool(kwargs.get("json"))).fail(describe(error))
            except KeyboardInterrupt:
                raise typer.Exit(ExitCode.INTERRUPTED) from None

        group.command(name, epilog=f"Example: {example}")(run)
        return run

    return register


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer passes it so
    if wanted:
        import importlib.metadata  # noqa: PLC0415 - nothing else needs it

        typer.echo(f"mas {importlib.metadata.version('mas-nats')}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What stands before any command."""
