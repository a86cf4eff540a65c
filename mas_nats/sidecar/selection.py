"""Which tools a language model selected, read from its answer: whole, or event by event.

A call counts once it is complete. One that was cut off does not, nor one that can be read in two ways: whose
name goes on after its arguments have begun, or is said differently by two events, or whose id another has.
Whoever acts on such a call all the same acts on a tool that nobody selected.

Sources: OpenAI chat completions (``tool_calls``) and responses (``function_call`` items), Anthropic messages
(``tool_use`` blocks).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mas_nats.sidecar.jsonrpc import NAME
from mas_nats.sidecar.llm_api import Interface

MOST_CALLS = 256
"""Calls in one answer."""
_LONGEST = 256
"""Characters of a name or an id that are looked at; no tool's name is so long."""
_CUT_OFF = frozenset({"length", "content_filter", "error"})
"""Why a choice ended before its calls were complete."""
_UNFINISHED = frozenset({"incomplete", "in_progress", "failed"})
_ITEMS = frozenset({"function_call", "custom_tool_call"})


class TooMany(Exception):
    """An answer has more calls than any that would be looked at."""


@dataclass(slots=True)
class _Call:
    """A call that is being said."""

    name: str = ""
    id: str = ""
    begun: bool = False  # its arguments have
    doubtful: bool = False

    def named(self, part: object) -> None:
        """A part of its name came."""
        if isinstance(part, str) and part:
            self.doubtful |= self.begun
            self.name = (self.name + part)[:_LONGEST]

    def identified(self, said: object) -> None:
        """Its id came."""
        if isinstance(said, str) and said and not self.id:
            self.id = said[:_LONGEST]


class Counted:
    """The calls of one answer that count, by the names that ``names`` has for tools."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._ids: set[str] = set()
        self._seen = 0
        self.doubtful = 0
        """Calls that did not count."""

    def tool(self, call: _Call) -> Iterator[str]:
        """The tool that a complete call selects; nothing where it does not count."""
        self._seen += 1
        if self._seen > MOST_CALLS:
            raise TooMany
        name = self._names.get(call.name, call.name)
        if call.doubtful or NAME.fullmatch(name) is None or (call.id and call.id in self._ids):
            self.doubtful += 1
            return
        self._ids.add(call.id)
        yield name


class Answer:
    """One answer of a language model. ``names``: tools by other names than their own, as declared."""

    def __init__(self, interface: Interface, names: Mapping[str, str]) -> None:
        self.counted = Counted(names)
        self._read = _READERS[interface](self.counted)

    def whole(self, document: Any) -> list[str]:
        """The tools that a whole answer selects.

        Raises:
            TooMany: it has too many calls.

        """
        return list(self._read.whole(document)) if isinstance(document, dict) else []

    def event(self, data: Any) -> list[str]:
        """The tools whose calls the data of an event completes; raises as ``whole``."""
        return list(self._read.event(data)) if isinstance(data, dict) else []


class _Chat:
    """Chat completions: deltas are put together by choice and index."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._open: dict[int, dict[int, _Call]] = {}  # choice -> index -> call
        self._ended: set[tuple[int, int]] = set()

    def whole(self, document: dict[str, Any]) -> Iterator[str]:
        for choice in _objects(document.get("choices")):
            message = choice.get("message")
            if not isinstance(message, dict) or choice.get("finish_reason") in _CUT_OFF:
                continue
            for said in (*_objects(message.get("tool_calls")), *_old(message)):
                call = _Call()
                _take(call, said)
                yield from self._counted.tool(call)

    def event(self, data: dict[str, Any]) -> Iterator[str]:
        for choice in _objects(data.get("choices")):
            number = _index(choice.get("index", 0))
            if number is None:
                continue
            delta = choice.get("delta")
            if isinstance(delta, dict):
                for said in _objects(delta.get("tool_calls")):
                    yield from self._delta(number, _index(said.get("index")), said)
                for said in _old(delta):
                    yield from self._delta(number, -1, said)
            why = choice.get("finish_reason")
            if isinstance(why, str):
                yield from self._finished(number, complete=why not in _CUT_OFF)

    def _delta(self, choice: int, index: int | None, said: dict[str, Any]) -> Iterator[str]:
        if index is None or (choice, index) in self._ended:
            return
        calls = self._open.setdefault(choice, {})
        call = calls.get(index)
        again = call is not None and bool(call.id) and said.get("id") not in (None, "", call.id)
        if call is None or again:  # another call begins: those before it are complete
            yield from self._complete(choice, [each for each in calls if each != index or again])
            if len(self._open) > MOST_CALLS or len(self._ended) > MOST_CALLS:
                raise TooMany
            self._ended.discard((choice, index))
            call = self._open.setdefault(choice, {})[index] = _Call()
        _take(call, said)

    def _finished(self, choice: int, *, complete: bool) -> Iterator[str]:
        calls = self._open.get(choice, {})
        if complete:
            yield from self._complete(choice, list(calls))
        calls.clear()

    def _complete(self, choice: int, indexes: Iterable[int]) -> Iterator[str]:
        for index in indexes:
            call = self._open[choice].pop(index)
            self._ended.add((choice, index))
            yield from self._counted.tool(call)


class _Responses:
    """Responses: items, which are said to be added, then to be done, and once more when all is."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._open: dict[int, _Call] = {}
        self._ended: dict[int, str] = {}  # names of the calls that are complete

    def whole(self, document: dict[str, Any]) -> Iterator[str]:
        for number, item in enumerate(_list(document.get("output"))):
            yield from self._item(number, item)

    def event(self, data: dict[str, Any]) -> Iterator[str]:
        number = _index(data.get("output_index"))
        match data.get("type"):
            case "response.output_item.added" if number is not None:
                self._added(number, data.get("item"))
            case "response.function_call_arguments.done" | "response.custom_tool_call_input.done":
                if number in self._open:
                    yield from self._done(number, data.get("name"))
            case "response.output_item.done" if number is not None:
                yield from self._item(number, data.get("item"))
            case "response.completed" | "response.incomplete" | "response.failed":
                response = data.get("response")
                yield from self.whole(response if isinstance(response, dict) else {})

    def _added(self, number: int, item: Any) -> None:
        if not isinstance(item, dict) or item.get("type") not in _ITEMS or number in self._ended:
            return
        if number not in self._open and len(self._open) + len(self._ended) >= MOST_CALLS:
            raise TooMany
        call = self._open.setdefault(number, _Call())
        call.doubtful |= bool(call.name)
        call.named(item.get("name"))
        call.identified(item.get("call_id"))

    def _item(self, number: int, item: Any) -> Iterator[str]:
        if not isinstance(item, dict) or item.get("type") not in _ITEMS:
            return
        if number in self._ended or item.get("status") in _UNFINISHED:
            return
        if number not in self._open:
            self._added(number, item)
        yield from self._done(number, item.get("name"))

    def _done(self, number: int, name: object) -> Iterator[str]:
        call = self._open.pop(number)
        call.doubtful |= name is not None and name != call.name
        self._ended[number] = call.name
        yield from self._counted.tool(call)


class _Messages:
    """Messages: blocks, which start with a name and stop when their input is complete."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._open: dict[int, _Call] = {}

    def whole(self, document: dict[str, Any]) -> Iterator[str]:
        blocks = _list(document.get("content"))
        if document.get("stop_reason") == "max_tokens":
            blocks = blocks[:-1]  # the last may be cut off
        for block in blocks:
            if (call := self._begun(block)) is not None:
                yield from self._counted.tool(call)

    def event(self, data: dict[str, Any]) -> Iterator[str]:
        index = _index(data.get("index"))
        if index is None:
            return
        match data.get("type"):
            case "content_block_start":
                again = self._open.pop(index, None) is not None
                if (call := self._begun(data.get("content_block"))) is not None:
                    call.doubtful = again
                    if len(self._open) >= MOST_CALLS:
                        raise TooMany
                    self._open[index] = call
            case "content_block_stop" if index in self._open:
                yield from self._counted.tool(self._open.pop(index))

    def _begun(self, block: Any) -> _Call | None:
        if not isinstance(block, dict) or block.get("type") != "tool_use":
            return None
        call = _Call()
        call.named(block.get("name"))
        call.identified(block.get("id"))
        return call


_READERS: dict[Interface, type[_Chat | _Responses | _Messages]] = {
    Interface.CHAT: _Chat,
    Interface.RESPONSES: _Responses,
    Interface.MESSAGES: _Messages,
}


def _take(call: _Call, said: dict[str, Any]) -> None:
    """What a call of chat completions, or a delta of one, says of it."""
    call.identified(said.get("id"))
    kinds = [said[kind] for kind in ("function", "custom") if isinstance(said.get(kind), dict)]
    call.doubtful |= len(kinds) > 1
    for kind in kinds:
        call.named(kind.get("name"))
        call.begun |= bool(kind.get("arguments") or kind.get("input"))


def _old(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The one call of the older form, as one of the newer."""
    if isinstance(message.get("function_call"), dict):
        yield {"function": message["function_call"]}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in _list(value) if isinstance(each, dict)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _index(value: Any) -> int | None:
    """A place in an answer; None where there is none."""
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
    return value if known else None
