"""The ``mas`` command.

``app`` holds what every command shares; each other module adds its commands when it is imported. ``main``
imports only those of the command that is called, since all of them together take a while.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

from broker_policy.unused import UNUSED
from mas_nats import standard_streams
from mas_nats.starting import importing

_ELSEWHERE = {
    "certs": ("certs", "revoke"),
    "kick": ("revoke",),
    "request": ("messages",),
    "restore": ("backup",),
    "send": ("messages",),
    "stream": ("messages",),
}
"""Commands that are not in the modules of their name, such as ``audit`` and ``audit_report``."""


def modules_of(command: str) -> tuple[str, ...]:
    """The modules with ``command`` and all below it; every module where none of this name is known."""
    modules = tuple(module.name for module in pkgutil.iter_modules(__path__) if module.name != "__main__")
    named = tuple(name for name in modules if name == command or name.startswith(f"{command}_"))
    return _ELSEWHERE.get(command) or (command and named) or modules


def load(command: str = "") -> None:
    """Register ``command``, or every command where none of this name is known."""
    for name in modules_of(command):
        importlib.import_module(f"{__name__}.{name}")


def _completed() -> str:
    """The command whose words a shell wants to have completed; "" where it is the command itself."""
    words = (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "").split(" ")
    return words[1] if len(words) > 2 else ""


def main() -> None:
    """Run ``mas``."""
    standard_streams.open_closed()
    try:
        with importing(without=UNUSED):
            if sys.argv[1:] != ["--version"]:
                load(sys.argv[1] if len(sys.argv) > 1 else _completed())
            from broker_policy.cli.app import app  # noqa: PLC0415 - after the commands are registered
        app()
    except KeyboardInterrupt:  # before the command began, which says so itself
        sys.exit(130)  # ExitCode.INTERRUPTED, which may not be imported yet
