"""The ``mas`` command.

``app`` holds what every command shares; each other module adds its commands when it is imported. ``main``
imports only those of the command that is called, since all of them together take a while.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

_ELSEWHERE = {
    "certs": ("certs", "revoke"),
    "down": ("up",),
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


def main() -> None:
    """Run ``mas``."""
    load(sys.argv[1] if len(sys.argv) > 1 else "")
    from broker_policy.cli.app import app  # noqa: PLC0415 - after the commands are registered

    app()
