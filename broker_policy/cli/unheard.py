"""Standard error that nobody reads any more."""

from __future__ import annotations

import sys

from rich.console import Console

from mas_nats.standard_streams import lead_nowhere


class ProgressConsole(Console):
    """Says how far a command is, for as long as somebody reads it.

    rich would end the program, and throw away standard output too, once whoever read it has gone, as ``head``
    does: a broker would stop in the middle of its start, a backup be left undone.
    """

    def on_broken_pipe(self) -> None:
        """Say nothing more, and let the command go on."""
        lead_nowhere(sys.stderr)
