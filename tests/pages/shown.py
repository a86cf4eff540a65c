"""What a page shows: files to make and commands to run, in order.

A fence of ``console`` holds commands after ``$``, and what they print; one with ``title="name"`` is a file.
``<!-- not run: why -->`` before a fence takes it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^ *```(?P<info>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True, slots=True)
class File:
    """A file that the reader is told to make."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and the lines that the page says it prints."""

    line: str
    printed: tuple[str, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether the page shows that it is refused."""
        return any(line.startswith("error:") for line in self.printed)


def shown(page: Path) -> Iterator[File | Command]:
    """Everything that is to be done, in the order of the page."""
    for fence in _FENCE.finditer(page.read_text()):
        if fence["why"]:
            continue
        if fence["info"].startswith("console"):
            yield from _commands(fence["text"])
        elif title := _TITLE.search(fence["info"]):
            yield File(title[1], fence["text"])


def _commands(text: str) -> Iterator[Command]:
    line, printed = "", list[str]()
    for each in text.splitlines():
        if each.startswith("$ "):
            if line:
                yield Command(line, tuple(printed))
            line, printed = each[2:], []
        elif line.endswith("\\"):
            line = f"{line[:-1]}{each.strip()}"
        else:
            printed.append(each)
    if line:
        yield Command(line, tuple(printed))
