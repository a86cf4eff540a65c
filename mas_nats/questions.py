"""Requests that wait for their answers, on one connection."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any, NamedTuple

from nats import errors
from nats.aio.msg import Msg


class PublishDenied(errors.Error):
    """The server does not let this identity publish there."""


class _Question(NamedTuple):
    subject: str
    answer: asyncio.Future[Msg]


class Questions:
    """By the last token of the subject to which each answer comes."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._asked: dict[str, _Question] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def ask(self, subject: str) -> tuple[str, asyncio.Future[Msg]]:
        """A new one: its token, and what waits for the answer. ``forget`` it in any case."""
        token = str(next(self._numbers))
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._asked[token] = _Question(subject, answer)
        return token, answer

    def forget(self, token: str) -> None:
        """Nobody waits for it any more."""
        _, answer = self._asked.pop(token)
        if not answer.cancel() and not answer.cancelled():
            answer.exception()  # read, also where asking failed first

    async def answered(self, message: Msg) -> None:
        """Give an answer to whoever waits for it."""
        question = self._asked.get(message.subject.rpartition(".")[2])
        if question is not None and not question.answer.done():
            question.answer.set_result(message)

    def give_up(self, error: type[errors.Error]) -> None:
        """None of them will be answered."""
        for _, answer in self._asked.values():
            fail(answer, error())

    def denied(self, subject: str) -> None:
        """Nobody may publish to ``subject``, which the server says in lower case."""
        for asked, answer in self._asked.values():
            if asked.lower() == subject:
                fail(answer, PublishDenied(f"this identity may not publish to {asked}"))


def fail(waiting: asyncio.Future[Any], error: Exception) -> None:
    """End what waits with ``error``, unless it has ended."""
    if not waiting.done():
        waiting.set_exception(error)
