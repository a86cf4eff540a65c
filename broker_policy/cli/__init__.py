"""The ``mas`` command.

``app`` holds what every command shares; each other module adds its commands when it is imported, and
``main`` imports them all.
"""

from __future__ import annotations

import importlib
import pkgutil


def load() -> None:
    """Register every command."""
    for module in pkgutil.iter_modules(__path__):
        if module.name != "__main__":
            importlib.import_module(f"{__name__}.{module.name}")


def main() -> None:
    """Run ``mas``."""
    load()
    from broker_policy.cli.app import app  # noqa: PLC0415 - after the commands are registered

    app()
