"""``python -m mas_nats.starting MODULE ...`` is ``python -m MODULE ...``, started with a fifth less work.

While a program imports its modules the garbage collector looks again and again through all that they have
made, which lives as long as the program does, and finds next to nothing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Collection, Iterator


@contextlib.contextmanager
def importing(*, without: Collection[str] = ()) -> Iterator[None]:
    """Import within the block without the garbage collector, which leaves alone what is there at its end.

    The modules ``without`` count as not installed meanwhile: a library that would import them does without.
    """
    missing = [name for name in without if name not in sys.modules]
    gc.disable()
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type] # None there halts an import
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
        gc.freeze()
        gc.enable()


def main() -> None:
    """Run the ``main`` of the module that is named first, or behind ``--without OTHER``."""
    name, without = sys.argv.pop(1), []
    while name == "--without":
        without.append(sys.argv.pop(1))
        name = sys.argv.pop(1)
    with importing(without=without):
        module = importlib.import_module(name)
    sys.exit(module.main())


if __name__ == "__main__":
    main()
