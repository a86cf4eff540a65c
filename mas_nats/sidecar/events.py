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


_END = re.compile(rb"\r\n|\n|\r")


class BrokenStream(Exception):
    """A stream of events that cannot be carried. Holds nothing of its content."""


class EventReader:
    """Takes bytes as they come; gives the events that are complete."""

    def __init__(self, most: int) -> None:
        self._most = most  # bytes of one event
        self._rest = b""
        self._lines: list[bytes] = []
        self._size = 0
        self._begun = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes.

        Raises:
            BrokenStream: an event is too large, no UTF-8, or its data is no JSON.

        """
        if not self._begun and data:
            self._begun = True
            data = data.removeprefix(b"\xef\xbb\xbf")
        self._rest += data
        found = []
        while (line := self._line()) is not None:
            if line:
                self._size += len(line)
                self._lines.append(line)
            elif self._lines:
                if (event := _event(self._lines)) is not None:
                    found.append(event)
                self._lines, self._size = [], 0
            if self._size > self._most:
                raise BrokenStream("an event is too large")
        if len(self._rest) + self._size > self._most:
            raise BrokenStream("an event is too large")
        return found

    def _line(self) -> bytes | None:
        """The next whole line; a line ends with CR LF, LF or CR."""
        found = _END.search(self._rest)
        if found is None or (found[0] == b"\r" and found.end() == len(self._rest)):
            return None  # after a CR at the very end perhaps an LF follows
        line, self._rest = self._rest[: found.start()], self._rest[found.end() :]
        return line


def _event(lines: list[bytes]) -> Event | None:
    """The event that lines are; None for one of comments only."""
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
    if not said and not data:
        return None
    text = "\n".join(data)
    retry = said.get("retry", "")
    try:
        return Event(
            event=said.get("event", ""),
            id=said.get("id"),
            retry=int(retry) if retry.isascii() and retry.isdecimal() else None,
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
