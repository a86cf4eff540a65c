"""Which members of a language model's events are parts of texts that go on from one event to the next.

Sources: those of ``selection``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from mas_nats.sidecar.llm_api import Interface

_ARGUMENTS = (".function_call_arguments.delta", ".custom_tool_call_input.delta", ".mcp_call_arguments.delta")
_COMPLETE = (".function_call_arguments.done", ".custom_tool_call_input.done", ".output_item.done")
_LABELS = frozenset({"role", "type", "id", "name", "format"})
"""Members that say the same in each event, or once: nothing that goes on."""
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "message_stop"})


@dataclass(frozen=True, slots=True)
class Text:
    """A part of the text ``channel``: ``place[member]``, of an object or a list.

    Names of members stand in the channel as words, so that they are searched as such.
    ``arguments``: it is one of arguments, of the call ``call`` where that is said.
    """

    channel: str
    place: Any
    member: str | int
    arguments: bool = False
    call: str = ""

    @property
    def value(self) -> str:
        """What it says."""
        return str(self.place[self.member])


@dataclass(frozen=True, slots=True)
class Texts:
    """What is in one event. ``complete``: how the channels of arguments begin that are complete with it.

    ``ended``: the answer is.
    """

    texts: tuple[Text, ...] = ()
    complete: tuple[str, ...] = ()
    ended: bool = False


def _chat(data: dict[str, Any]) -> Texts:
    texts: list[Text] = []
    complete: list[str] = []
    for choice in _objects(data.get("choices")):
        number, delta = choice.get("index", 0), choice.get("delta")
        if isinstance(delta, dict):
            arguments = list(_called(delta, f"{number}/"))
            texts += _within(delta, f"{number}", {(id(each.place), each.member) for each in arguments})
            texts += arguments
        if isinstance(choice.get("finish_reason"), str):
            complete.append(f"{number}/")
    return Texts(tuple(texts), tuple(complete))


def _within(value: Any, path: str, but: AbstractSet[tuple[int, str | int]]) -> Iterator[Text]:
    """The texts in a delta, however deep: in its ``audio``, in the parts of a ``content`` or of a reasoning.

    Those of a list are one text: a part need not stand at the same place in the next event.
    """
    named: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        named = value.items()
    elif isinstance(value, list):
        named = enumerate(value)
    for member, each in named:
        where = f"{path} {member}" if isinstance(member, str) else f"{path} []"
        if not isinstance(each, str):
            yield from _within(each, where, but)
        elif member not in _LABELS and (id(value), member) not in but:
            yield Text(where, value, member)


def _called(delta: dict[str, Any], before: str) -> Iterator[Text]:
    said = [(each.get("index"), each) for each in _objects(delta.get("tool_calls"))]
    if isinstance(delta.get("function_call"), dict):
        said.append((-1, {"function": delta["function_call"]}))
    for index, call in said:
        for kind, member in (("function", "arguments"), ("custom", "input")):
            place = call.get(kind)
            if isinstance(place, dict) and isinstance(place.get(member), str):
                yield Text(
                    f"{before}{index}/{kind}", place, member, arguments=True, call=str(call.get("id") or "")
                )


def _responses(data: dict[str, Any]) -> Texts:
    kind = data.get("type")
    if not isinstance(kind, str):
        return Texts()
    number = f"{data.get('output_index')}/"
    if kind.endswith(_COMPLETE):
        return Texts(complete=(number,))
    if not kind.endswith(".delta") or not isinstance(data.get("delta"), str):
        return Texts(ended=kind in _ENDS)
    if kind.endswith(_ARGUMENTS):
        return Texts((Text(f"{number}{kind}", data, "delta", arguments=True),))
    where = f"{number}{data.get('content_index')}/{data.get('summary_index')}/{kind}"
    return Texts((Text(where, data, "delta"),))


def _messages(data: dict[str, Any]) -> Texts:
    number, kind = f"{data.get('index')}/ ", data.get("type")
    match kind:
        case "content_block_start":
            block = data.get("content_block")
            texts = _members(block, number, only=("text", "thinking")) if isinstance(block, dict) else ()
            return Texts(tuple(texts))
        case "content_block_delta":
            delta = data.get("delta")
            if not isinstance(delta, dict):
                return Texts()
            said = [
                Text(each.channel, each.place, each.member, each.member == "partial_json")
                for each in _members(delta, number, but=("type",))
            ]
            return Texts(tuple(said))
        case "content_block_stop":
            return Texts(complete=(number,))
    return Texts(ended=kind in _ENDS)


def _members(
    place: dict[str, Any], before: str, *, but: tuple[str, ...] = (), only: tuple[str, ...] = ()
) -> Iterator[Text]:
    for member, value in place.items():
        if isinstance(value, str) and member not in but and (not only or member in only):
            yield Text(f"{before}{member}", place, member)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


TEXTS: dict[Interface, Callable[[dict[str, Any]], Texts]] = {
    Interface.CHAT: _chat,
    Interface.RESPONSES: _responses,
    Interface.MESSAGES: _messages,
}
"""By interface."""
