"""The ``mas`` command.

``app`` holds what every command shares; each other module adds its commands when it is imported, and
``main`` imports them all.
"""

from __future__ import annotations

import importlib
import pkgutil


def main() -> None:
    """Run ``mas``."""
    for module in pkgutil.iter_modules(__path__):
        if module.name != "__main__":
            importlib.import_module(f"{__name__}.{module.name}")
    from broker_policy.cli.app import app  # noqa: PLC0415 - after the commands are registered

    app()
