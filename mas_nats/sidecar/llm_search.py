"""The seam for searching a language model's answer before the application gets it, and whole answers.

What is searched is what is said, not how it is written: JSON objects. Vectors are left out: they are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mas_nats.errors import MasError, OutcomeUnknown, Refused
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN, UNAVAILABLE, Refusal
from mas_nats.sidecar.told import told
from mas_nats.wire.frames import WHOLE
from mas_nats.wire.verdict import Decision

Object = dict[str, Any]

_SPELLED_ANEW = "logprobs"
"""A member of answers that says the text a second time, in pieces: left out where the text is another."""


@dataclass(frozen=True, slots=True)
class Said:
    """A part of the answer of ``host`` to the prompt ``asked``. ``cursor``: of the part before."""

    asked: str
    host: str
    operation: str
    chunks: Sequence[Object] = field(repr=False)
    cursor: str = field(default="", repr=False)
    final: bool = False


@dataclass(frozen=True, slots=True)
class Passed:
    """So many of the objects that wait and that were shown may go, ``changed`` ones in another form."""

    gone: int
    changed: Mapping[int, Object] = field(default_factory=dict, repr=False)
    cursor: str = field(default="", repr=False)


class Search(Protocol):
    """Asks policy what of an answer the application may get."""

    async def __call__(self, said: Said) -> Passed:
        """What may go.

        Raises:
            MasError: nothing of it, or nobody could be asked.

        """


class Searching:
    """One answer, searched part by part."""

    def __init__(self, search: Search, said: Said) -> None:
        self._search = search
        self._said = said

    async def part(self, chunks: Sequence[Object], *, final: bool) -> Passed:
        """What may go, with what waits.

        Raises:
            Refusal: nothing of it may, or nobody could be asked.

        """
        asked = self._said.asked
        try:
            passed = await self._search(replace(self._said, chunks=chunks, final=final))
        except OutcomeUnknown:
            text = "policy did not answer, so the language model's answer is not handed over"
            raise Refusal("unavailable", text, "", 503, UNAVAILABLE, ran="yes", message_id=asked) from None
        except MasError as error:
            if isinstance(error, Refused) and error.decision is Decision.TOO_LARGE:
                raise _too_large(asked) from None
            raise replace(told(error, asked), ran="yes") from None
        self._said = replace(self._said, cursor=passed.cursor)
        return passed

    async def whole(self, document: Any) -> Any:
        """A whole answer as the application may get it; raises as ``part``."""
        bare, vectors = _without_vectors(document)
        passed = await self.part([{WHOLE: True, "answer": bare}], final=True)
        if passed.gone != 1:
            raise nonsense()
        if not passed.changed:
            return document
        try:
            return _with_vectors(without_logprobs(passed.changed[0]["answer"]), vectors)
        except (LookupError, TypeError):
            raise nonsense() from None


def without_logprobs(value: Any) -> Any:
    """``value`` without what says its text a second time."""
    if isinstance(value, dict):
        return {key: without_logprobs(each) for key, each in value.items() if key != _SPELLED_ANEW}
    return [without_logprobs(each) for each in value] if isinstance(value, list) else value


def nonsense() -> Refusal:
    """What policy says of an answer does not fit it."""
    return _kept_back("what policy lets pass is not the language model's answer any more")


def too_many_texts() -> Refusal:
    """An answer has more texts than are kept apart."""
    return _kept_back("the language model's answer has too many texts")


def no_object() -> Refusal:
    """An event of an answer is something that no interface has, and that nobody would search."""
    return _kept_back("an event of the language model's answer is no JSON object")


def _too_large(asked: str) -> Refusal:
    text = "the language model's answer, or what of it waits to be searched, is larger than one message"
    return _kept_back(text, "Ask for less, or raise limits.max_payload of the namespace", asked)


def _kept_back(text: str, fix: str = "", asked: str = "") -> Refusal:
    return Refusal("llm_answer", text, fix, 502, OUTCOME_UNKNOWN, ran="yes", message_id=asked)


def _without_vectors(document: Any) -> tuple[Any, dict[int, Any]]:
    """An answer of ``embeddings`` without the vectors, and those by their places."""
    items = document.get("data") if isinstance(document, dict) else None
    if not isinstance(items, list):
        return document, {}
    vectors = {
        place: item["embedding"]
        for place, item in enumerate(items)
        if isinstance(item, dict) and item.get("object") == "embedding" and "embedding" in item
    }
    if not vectors:
        return document, {}
    bare = [
        {key: value for key, value in item.items() if key != "embedding"} if place in vectors else item
        for place, item in enumerate(items)
    ]
    return {**document, "data": bare}, vectors


def _with_vectors(document: Any, vectors: Mapping[int, Any]) -> Any:
    for place, vector in vectors.items():
        document["data"][place]["embedding"] = vector
    return document
