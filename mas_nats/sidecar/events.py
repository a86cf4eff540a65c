"""Server-sent events, read and written (the HTML standard, section 9.2). Comments are dropped."""

from __future__ import annotations

import re

import orjson
from pydantic import ValidationError

from mas_nats.sidecar import strict_json
from mas_nats.sidecar.carriage import Event
from mas_nats.sidecar.strict_json import NotStrict

ALIVE = b": alive\n\n"
"""A comment: keeps a quiet connection from looking dead."""


_RETRY = re.compile(r"[0-9]{1,9}")
"""Milliseconds, eleven days at most; anything else is passed over, as the standard has it."""

_END = re.compile(rb"\r\n|\n|\r")


class BrokenStream(Exception):
    """A stream of events that cannot be carried. Holds nothing of its content."""


class TooLarge(BrokenStream):
    """An event is too large."""


class EventReader:
    """Takes bytes as they come; gives the events that are complete. ``most``: bytes of one."""

    def __init__(self, most: int) -> None:
        self._blocks = BlockReader(most)

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes.

        Raises:
            TooLarge: an event is too large.
            BrokenStream: it is no UTF-8, or its data is no JSON.

        """
        events = (_event(lines) for lines in self._blocks.feed(data))
        return [event for event in events if event is not None]


class BlockReader:
    """The same with events as they are written: the lines between two empty ones, without their ends."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rest = bytearray()
        self._searched = 0  # bytes of the rest in which no line ends
        self._lines: list[bytes] = []
        self._size = 0
        self._begun = False

    def feed(self, data: bytes) -> list[list[bytes]]:
        """The lines of the events that ``data`` completes.

        Raises:
            TooLarge: an event is too large.

        """
        if not self._begun and data:
            self._begun = True
            data = data.removeprefix(b"\xef\xbb\xbf")
        self._rest += data
        found, at = [], 0
        for end in _END.finditer(self._rest, self._searched):
            if end[0] == b"\r" and end.end() == len(self._rest):
                break  # perhaps an LF follows
            line, at = bytes(self._rest[at : end.start()]), end.end()
            if line:
                self._size += len(line)
                self._lines.append(line)
            elif self._lines:
                found.append(self._lines)
                self._lines, self._size = [], 0
            if self._size > self._most:
                raise TooLarge("an event is too large")
        del self._rest[:at]
        self._searched = max(0, len(self._rest) - 1)
        if len(self._rest) + self._size > self._most:
            raise TooLarge("an event is too large")
        return found


def fields(lines: list[bytes]) -> dict[str, str]:
    """What the lines of an event say: ``data`` joined, and the last ``event``, ``id`` and ``retry``.

    Raises:
        BrokenStream: they are not UTF-8.

    """
    said: dict[str, str] = {}
    data: list[str] = []
    try:
        for line in lines:
            name, _, value = line.decode().partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name in {"event", "id", "retry"}:
                said[name] = value
    except UnicodeDecodeError:
        raise BrokenStream("an event is not UTF-8") from None
    return said | {"data": "\n".join(data)} if data else said


def _event(lines: list[bytes]) -> Event | None:
    """The event that lines are; None for one of comments only."""
    said = fields(lines)
    if not said:
        return None
    text = said.get("data", "")
    retry = said.get("retry", "")
    try:
        return Event(
            event=said.get("event", ""),
            id=said.get("id"),
            retry=int(retry) if _RETRY.fullmatch(retry) else None,
            data=strict_json.parse(text) if text else "",
        )
    except NotStrict as error:
        raise BrokenStream(f"the data of an event cannot be taken: {error}") from None
    except ValidationError:
        raise BrokenStream("a field of an event cannot be taken") from None


def write(event: Event) -> bytes:
    """An event as it is sent."""
    lines = []
    if event.event:
        lines.append(f"event: {event.event}".encode())
    if event.id is not None:
        lines.append(f"id: {event.id}".encode())
    if event.retry is not None:
        lines.append(f"retry: {event.retry}".encode())
    data = b"" if event.data == "" else orjson.dumps(event.data)
    lines.append(b"data: " + data if data else b"data:")
    return b"\n".join(lines) + b"\n\n"
