"""What senders and handlers say they did, in append-only files of their own.

A line is one JSON object, written by one ``write`` before the program goes on, so a killed process leaves no
half a line behind and never claims what did not happen:

    attempted  before the first try     id, to, y type, by process, until (a request's deadline)
    accepted   after send returned, or after a request was accepted
    refused    policy said no, for good; why
    replied    a reply came: of, for: which request, of which process, the reply says it answers
    unanswered an accepted request without a reply; why
    handled    before the handler returns: of what the body says, at attempt, a the decision's name
    failed     before the handler raises
    keeping    before a state is updated: id <process>-<number>, number
    kept       after the update returned: of agent, its revision
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson


class Log:
    """The file of one process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, event: str, message_id: str, **more: object) -> None:
        """Add a line; it survives kill -9 of the process when this returns."""
        os.write(self._file, orjson.dumps({"e": event, "id": message_id, "t": time.time(), **more}) + b"\n")


def lines(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """The whole lines of a file from ``offset`` on, each with the offset behind it."""
    with path.open("rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            offset += len(raw)
            yield orjson.loads(raw), offset


@dataclass(frozen=True, slots=True)
class Sent:
    """The first attempt of a message."""

    time: float
    target: str
    type: str
    by: str
    until: float = 0.0  # a request's deadline; 0: none


@dataclass(frozen=True, slots=True)
class Handling:
    """One run of a handler to its end."""

    time: float
    by: str
    of: str  # the id that the body carries
    attempt: int
    decision: str  # <writer>.<record>.<position>


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as the requester got it."""

    by: str  # who asked
    of: str  # the request that it answers, as the handler says
    to: str  # the process for which it is, as the handler says


@dataclass(frozen=True, slots=True)
class Kept:
    """An update of a state that a program was told is durable."""

    time: float
    by: str
    agent: str
    number: int
    revision: int


@dataclass(slots=True)
class History:
    """Everything that was said so far, by message id."""

    sent: dict[str, Sent] = field(default_factory=dict)
    accepted: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    handled: dict[str, list[Handling]] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)
    keeping: dict[str, int] = field(default_factory=dict)  # the highest number, by process
    kept: dict[str, list[Kept]] = field(default_factory=dict)
    _offsets: dict[Path, int] = field(default_factory=dict)

    def read(self, folder: Path) -> None:
        """Take in what the files in ``folder`` have got since the last time."""
        for path in sorted(folder.glob("*.jsonl")):
            self.read_file(path)

    def read_file(self, path: Path) -> None:
        """Take in what the file of one process has got since the last time."""
        for line, offset in lines(path, self._offsets.get(path, 0)):
            self.take(line, path.stem)
            self._offsets[path] = offset

    def take(self, line: dict[str, Any], by: str) -> None:
        """Take in one line of the process ``by``."""
        message_id, when = line["id"], line["t"]
        match line["e"]:
            case "attempted":
                sent = Sent(when, line["to"], line["y"], by, line.get("until", 0.0))
                self.sent.setdefault(message_id, sent)
            case "accepted":
                self.accepted.setdefault(message_id, when)
            case "refused":
                self.refused[message_id] = line["why"]
            case "replied":
                self.replies.setdefault(message_id, []).append(Reply(by, line["of"], line["for"]))
            case "unanswered":
                self.unanswered[message_id] = line["why"]
            case "handled":
                handling = Handling(when, by, line["of"], line["at"], line["a"])
                self.handled.setdefault(message_id, []).append(handling)
            case "failed":
                self.failed[message_id] = self.failed.get(message_id, 0) + 1
            case "keeping":
                self.keeping[by] = max(self.keeping.get(by, 0), line["number"])
            case "kept":
                kept = Kept(when, by, line["agent"], line["number"], line["revision"])
                self.kept.setdefault(message_id, []).append(kept)
            case unknown:
                raise ValueError(f"{by} wrote an event {unknown!r}")

    def begun(self, one: str) -> float | None:
        """When a message was first attempted, or an update of a state was durable; None where nobody says."""
        if one in self.sent:
            return self.sent[one].time
        return self.kept[one][0].time if one in self.kept else None

    def undecided(self) -> set[str]:
        """Messages whose fate their sender does not know yet."""
        return self.sent.keys() - self.accepted.keys() - self.refused.keys()
