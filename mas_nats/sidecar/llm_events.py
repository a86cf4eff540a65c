"""The events of a language model's streamed answer, on their way through the search.

    events -> taken apart: texts that go on from event to event | the rest -> searched -> put together again

A text is searched with what follows it, so the event waits as long as that may make a secret of it. Arguments
of a call are searched when they are complete, as the JSON that they are: nobody can act on a part of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from mas_nats.sidecar.llm_api import Interface
from mas_nats.sidecar.llm_search import (
    Object,
    Passed,
    no_object,
    nonsense,
    too_many_texts,
    without_logprobs,
)
from mas_nats.sidecar.llm_texts import TEXTS, Text
from mas_nats.wire.frames import WHOLE

DONE = "[DONE]"

_PADDING = "obfuscation"
"""A member of OpenAI's events: random letters, so that nobody tells texts by their length. Not passed on."""
_LONG_NUMBER = 10_000_000
"""Whole numbers from here on are searched."""
_MOST_KNOWN, _LONGEST_KNOWN = 10_000, 256
"""Members that are not searched a second time, and characters of one with its place."""
_MOST_TEXTS = 1_000
"""Texts of one answer."""
_NOTHING = object()
_PLACE = "place"

Member = tuple[str, object]


@dataclass(eq=False, slots=True)
class LlmEvent:
    """An event. ``data`` is JSON, "[DONE]", or None for a comment."""

    name: str = ""
    data: Any = None
    size: int = 0  # bytes, as it came
    unseen: int = 0  # parts of it that were not searched yet
    changed: bool = False

    def written(self) -> bytes:
        """As it is sent."""
        if self.data is None:
            return b": alive\n\n"
        data = without_logprobs(self.data) if self.changed else self.data
        said = DONE.encode() if data == DONE else orjson.dumps(data)
        return (f"event: {self.name}\n".encode() if self.name else b"") + b"data: " + said + b"\n\n"


@dataclass(eq=False, slots=True)
class _Shown:
    """An object that is searched, and where what it says stands."""

    key: str  # "" of the rest of an event
    places: list[tuple[LlmEvent, Text | None]]
    members: tuple[Member, ...] = ()  # what is known to be clean when it passes unchanged


@dataclass(eq=False, slots=True)
class Events:
    """One stream."""

    interface: Interface
    ended: bool = False  # the model has said that it has
    held: int = 0  # bytes of the events that have not gone
    chunks: list[Object] = field(default_factory=list)  # to be shown next
    _waiting: deque[LlmEvent] = field(default_factory=deque)
    _shown: deque[_Shown] = field(default_factory=deque)
    _arguments: dict[str, list[tuple[LlmEvent, Text]]] = field(default_factory=dict)
    _known: set[Member] = field(default_factory=set)
    _texts: dict[str, str] = field(default_factory=dict)

    def take(self, event: LlmEvent) -> None:
        """Take one more event; what comes after the end is dropped, but for the mark of the end itself.

        Raises:
            Refusal: it is no object, or one text too many.

        """
        if self.ended and event.data != DONE:
            return
        self._waiting.append(event)
        self.held += event.size
        if event.data is None:
            return
        if not isinstance(event.data, dict):
            if event.data != DONE:
                raise no_object()
            self.end()
            return
        event.data.pop(_PADDING, None)
        said = TEXTS[self.interface](event.data)
        texts = [text for text in said.texts if text.value]
        members: list[Member] = []
        rest = self._new(event.data, "", {(id(text.place), text.member) for text in texts}, members)
        if rest is not _NOTHING:
            self._show({WHOLE: True, "rest": rest}, _Shown("", [(event, None)], tuple(members)))
        for text in texts:
            if text.arguments:
                self._argue(event, text)
            else:
                key = self._key(event, text.channel)
                self._show({key: text.value}, _Shown(key, [(event, text)]))
        for channel in [each for each in self._arguments if said.complete and each.startswith(said.complete)]:
            self._close(channel)
        if said.ended:
            self.end()

    def end(self) -> None:
        """Nothing follows."""
        self.ended = True
        for channel in list(self._arguments):
            self._close(channel)

    def shown(self) -> list[Object]:
        """What is to be searched next."""
        chunks, self.chunks = self.chunks, []
        return chunks

    @property
    def waits(self) -> bool:
        """Whether something was taken and has not gone."""
        return bool(self._waiting)

    def passed(self, passed: Passed) -> None:
        """Some objects were searched.

        Raises:
            Refusal: that does not fit what was shown.

        """
        for number in range(passed.gone):
            if not self._shown:
                raise nonsense()
            shown = self._shown.popleft()
            made = passed.changed.get(number)
            try:
                if made is not None:
                    _put_back(shown, made)
                elif len(self._known) < _MOST_KNOWN:
                    self._known.update(shown.members)
            except (LookupError, TypeError, ValueError, AttributeError):
                raise nonsense() from None
            for event, _ in shown.places:
                event.unseen -= 1

    def gone(self) -> Iterator[LlmEvent]:
        """The events that may be handed over now, in their order."""
        while self._waiting and not self._waiting[0].unseen:
            event = self._waiting.popleft()
            self.held -= event.size
            yield event

    def _key(self, event: LlmEvent, channel: str) -> str:
        """The member as which a text is shown. Its place is shown once, before it: names say something, too.

        Raises:
            Refusal: it is one text too many.

        """
        if channel not in self._texts:
            if len(self._texts) >= _MOST_TEXTS or len(channel) > _LONGEST_KNOWN:
                raise too_many_texts()
            self._texts[channel] = f"t{len(self._texts)}"
            self._show({WHOLE: True, _PLACE: channel}, _Shown(_PLACE, [(event, None)]))
        return self._texts[channel]

    def _show(self, chunk: Object, shown: _Shown) -> None:
        for event, _ in shown.places:
            event.unseen += 1
        self.chunks.append(chunk)
        self._shown.append(shown)

    def _argue(self, event: LlmEvent, text: Text) -> None:
        """A part of arguments; where another call has the place of one before, that one is complete."""
        parts = self._arguments.get(text.channel)
        if parts and text.call and any(each.call not in ("", text.call) for _, each in parts):
            self._close(text.channel)
        event.unseen += 1
        self._arguments.setdefault(text.channel, []).append((event, text))

    def _close(self, channel: str) -> None:
        parts = self._arguments.pop(channel)
        text = "".join(text.value for _, text in parts)
        for event, _ in parts:
            event.unseen -= 1
        self._show({WHOLE: True, "arguments": text}, _Shown("arguments", list(parts)))

    def _new(self, value: Any, path: str, texts: set[tuple[int, str | int]], members: list[Member]) -> Any:
        """``value`` without its texts and what is known to be clean at its place; ``_NOTHING``: that is all.

        ``members`` gets what is shown. A list is shown by its places, so that it can be put back.
        """
        if isinstance(value, dict) and value:
            inner = ((key, each) for key, each in value.items() if (id(value), key) not in texts)
        elif isinstance(value, list) and value:
            inner = (
                (str(number), each) for number, each in enumerate(value) if (id(value), number) not in texts
            )
        else:
            searched = (isinstance(value, str) and value) or (
                isinstance(value, int | float) and abs(value) >= _LONG_NUMBER
            )
            member = (path, value if searched else None)  # of what is not searched the name still is
            if member in self._known:
                return _NOTHING
            if len(path) + len(str(member[1])) <= _LONGEST_KNOWN:
                members.append(member)
            return {} if isinstance(value, dict | list) else value
        found = {}
        for key, each in inner:
            new = self._new(each, f"{path}\0{key}", texts, members)
            if new is not _NOTHING:
                found[key] = new
        return found or _NOTHING


def _put_back(shown: _Shown, made: Mapping[str, Any]) -> None:
    """Put what an object has become where it came from; of a text in parts the first one gets all."""
    if shown.key == _PLACE:
        raise ValueError("the name of a member has become something else")
    for event, _ in shown.places:
        event.changed = True
    if not shown.key:
        ((event, _),) = shown.places
        _merge(event.data, made["rest"])
        return
    new = made[shown.key]
    if not isinstance(new, str):
        raise TypeError("a text has become something else")
    for _, text in shown.places:
        if text is not None:
            text.place[text.member], new = new, ""


def _merge(value: Any, made: Any) -> None:
    for key, new in made.items():
        place = int(key) if isinstance(value, list) else key
        if isinstance(value[place], dict | list) and isinstance(new, dict):
            _merge(value[place], new)
        else:
            value[place] = new
