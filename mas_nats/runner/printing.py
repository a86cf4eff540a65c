"""What the runner shows: the lines of the agents, each with who wrote it, and what happened to them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

from mas_nats.standard_streams import lead_nowhere

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_OWN = "mas"
"""The runner's own name in the first column; those of instances have a slash."""


class Printer(Protocol):
    """Shows what happens."""

    def line(self, instance: str, text: str) -> None:
        """Show a line that an instance has written."""

    def event(self, kind: str, text: str, **facts: Any) -> None:
        """Show that something happened; ``facts`` say it for programs, ``instance`` to whom."""


class Text:
    """For people: ``helpdesk/1 | …``, coloured on a terminal. What the runner says goes to ``progress``.

    ``closed`` is called when nobody reads any more.
    """

    def __init__(
        self,
        *,
        output: TextIO | None = None,
        progress: TextIO | None = None,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._output = output or sys.stdout
        self._progress = progress or sys.stderr
        self._closed = closed
        self._width = len(_OWN)
        self._colours: dict[str, int] = {}

    def introduce(self, instances: Iterable[str]) -> None:
        """Who will be speaking: columns as wide as the longest name, a colour for each agent."""
        for name in instances:
            self._width = max(self._width, len(name))
            agent = name.partition("/")[0]
            self._colours.setdefault(agent, _COLOURS[len(self._colours) % len(_COLOURS)])

    def line(self, instance: str, text: str) -> None:
        """Show a line that an instance has written."""
        colour = self._colours.get(instance.partition("/")[0], 0)
        self._write(self._output, f"{self._prefix(self._output, instance, colour)}{text}\n")

    def event(self, kind: str, text: str, **facts: Any) -> None:
        """Show that something happened."""
        del kind
        who = f"{facts['instance']} " if "instance" in facts else ""
        self._write(self._progress, f"{self._prefix(self._progress, _OWN, 2)}{who}{text}\n")

    def _prefix(self, stream: TextIO, name: str, colour: int) -> str:
        prefix = f"{name:<{self._width}} | "
        return f"\x1b[{colour}m{prefix}\x1b[0m" if _coloured(stream) else prefix

    def _write(self, stream: TextIO, text: str) -> None:
        write(stream, text, self._closed)


class JsonLines:
    """For programs: an object a line, with ``time``, ``event``, and what belongs to the event."""

    def __init__(self, *, output: TextIO | None = None, closed: Callable[[], None] = lambda: None) -> None:
        self._output = output or sys.stdout
        self._closed = closed

    def introduce(self, instances: Iterable[str]) -> None:
        """Nothing to prepare."""

    def line(self, instance: str, text: str) -> None:
        """Show a line that an instance has written."""
        self._show({"event": "output", "instance": instance, "line": text})

    def event(self, kind: str, text: str, **facts: Any) -> None:
        """Show that something happened."""
        self._show({"event": kind, **facts, "text": text})

    def _show(self, what: dict[str, Any]) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        write(self._output, json.dumps({"time": time, **what}) + "\n", self._closed)


def write(stream: TextIO, text: str, closed: Callable[[], None]) -> None:
    """Write at once; where nobody reads any more, ``closed`` hears of it and the rest goes nowhere.

    What cannot be written, since the disk is full or the encoding has no such character, is left out: it must
    not end the reading of who says it.
    """
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        lead_nowhere(stream)
        closed()
    except (OSError, UnicodeError):
        return


def _coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
